"""注文処理の Lambda 関数を boto3 でデプロイする。なければ作成し、あれば異なる部分だけを更新する。

何度実行しても安全で、途中で止まっても、再実行すれば残りを処理する。何も削除しない。
名前は環境変数 FUNCTION_NAME と ROLE_NAME、リージョンと認証情報は boto3 の設定で決まる。"""

import signal
import sys

if __name__ == "__main__":  # 残りの import の途中でも、Ctrl-C は 1 文で終わる
    signal.signal(signal.SIGINT, lambda *_: sys.exit("中断しました。もう一度実行してください。"))

import base64
import hashlib
import io
import os
import time
import traceback
import zipfile
from pathlib import Path
from typing import Any

PREPARE = "README の「準備」のブロックを貼り付けてから、もう一度実行してください。"
try:
    import aws_durable_execution_sdk_python as sdk
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ClientError, NoRegionError

    from app import EXECUTION_TIMEOUT as LIMIT
except Exception as error:  # noqa: BLE001 app.py の間違いは、どんな例外にもなる
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if "app.py" in f.filename]
    line = (lines or [getattr(error, "lineno", None)])[-1]
    place = f"app.py の {line} 行目を修正してください。" if line else PREPARE
    sys.exit(f"{place}（{type(error).__name__}: {error}）")

ROOT = Path(__file__).parent
FUNCTION_NAME = os.environ.get("FUNCTION_NAME") or "order-processing-durable"
ROLE_NAME = os.environ.get("ROLE_NAME") or "lambda-durable-demo-role"
SETTINGS: dict[str, Any] = {  # 時間は秒、メモリは MB
    "Handler": "app.handler",
    "Runtime": "python3.13",
    "Timeout": 30,
    "MemorySize": 256,
    "LoggingConfig": {"LogFormat": "JSON", "ApplicationLogLevel": "INFO"},
    "DurableConfig": {"ExecutionTimeout": LIMIT.to_seconds(), "RetentionPeriodInDays": 1},
}
ARM = {"Architectures": ["arm64"]}


def deploy() -> None:
    """関数を作成または更新し、バージョンを発行して、注文を開始するコマンドを表示する。"""
    suffix = FUNCTION_NAME.removeprefix("order-processing-durable")
    if suffix[:1] not in ("", "-"):  # durable-policy.json が許可しない名前
        sys.exit(f"関数 {FUNCTION_NAME} には権限が及びません。SUFFIX を -sato の形にしてください。")
    if not boto3.Session().region_name:
        raise NoRegionError
    limits = Config(connect_timeout=5, read_timeout=15, retries={"mode": "standard"})
    iam, client = (boto3.client(service, config=limits) for service in ("iam", "lambda"))
    role = iam.get_role(RoleName=ROLE_NAME)["Role"]["Arn"]
    settings = {"FunctionName": FUNCTION_NAME, "Role": role, **SETTINGS}
    code = {"ZipFile": build_zip()}
    digest = base64.b64encode(hashlib.sha256(code["ZipFile"]).digest()).decode()
    updated = client.get_waiter("function_updated_v2")
    try:
        current = client.get_function_configuration(FunctionName=FUNCTION_NAME)
    except client.exceptions.ResourceNotFoundException:
        answer = when_role_is_ready(client.create_function, **settings, Code=code, **ARM)
        print(f"関数 {answer['FunctionName']} を作成しました")
        client.get_waiter("function_active_v2").wait(FunctionName=FUNCTION_NAME)
    else:
        updated.wait(FunctionName=FUNCTION_NAME)  # 前回の作成や更新が、まだ途中かもしれない
        if current["State"] and not current.get("DurableConfig"):
            sys.exit(f"関数 {FUNCTION_NAME} は durable ではありません。SUFFIX を変えてください。")
        # LoggingConfig などの応答には、指定していない項目も含まれる
        asked = {k: current[k] | v if isinstance(v, dict) else v for k, v in settings.items()}
        if new_settings := not asked.items() <= current.items():
            answer = when_role_is_ready(client.update_function_configuration, **settings)
            print(f"関数 {answer['FunctionName']} の設定を更新しました")
            updated.wait(FunctionName=FUNCTION_NAME)
        if new_code := not {"CodeSha256": digest, **ARM}.items() <= current.items():
            answer = client.update_function_code(FunctionName=FUNCTION_NAME, **code, **ARM)
            print(f"関数 {answer['FunctionName']} のコードを更新しました")
            updated.wait(FunctionName=FUNCTION_NAME)
        if not (new_settings or new_code):
            print(f"関数 {FUNCTION_NAME} は、コードも設定も変わっていません")
    # 発行するのはこのコードだけ。前回の発行から変わっていなければ、そのバージョンが返る
    version = client.publish_version(FunctionName=FUNCTION_NAME, CodeSha256=digest)["Version"]
    print(NEXT.format(name=FUNCTION_NAME, version=version, suffix=suffix))


NEXT = """バージョン {version} を呼び出せます。注文を開始するコマンド（README の「3. 注文の開始」）:

aws lambda invoke \\
  --function-name {name}:{version} \\
  --invocation-type Event \\
  --durable-execution-name order-123{suffix} \\
  --payload '{{"order_id": "order-123", "items": [{{"product_id": "prod-001", "name": "Widget", "price": 1000, "quantity": 2}}]}}' \\
  response.json"""  # noqa: E501


def build_zip() -> bytes:
    """app.py と SDK だけの zip を作成する。どこで作成しても同じバイト列になる。"""
    package = Path(sdk.__file__).parent
    files = {str(file.relative_to(package.parent)): file for file in package.rglob("*.py")}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, file in sorted({**files, "app.py": ROOT / "app.py"}.items()):
            entry = zipfile.ZipInfo(name)  # 日付は 1980-01-01 になる
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, file.read_bytes())
    return buffer.getvalue()


def when_role_is_ready(call: Any, **parameters: Any) -> Any:
    """作成したばかりのロールを Lambda が使えるようになるまで、最長 1 分待って呼び出す。"""
    for seconds_left in range(60, -1, -5):
        try:
            return call(**parameters)
        except ClientError as error:
            if "cannot be assumed" not in str(error) or not seconds_left:
                raise
        print(f"ロール {ROLE_NAME} の伝播を待っています")
        time.sleep(5)


def explain(error: Exception) -> str:
    """エラーを 1 行にする。分かっている失敗には対処方法を付け、AWS の名前とメッセージで終わる。"""
    sentences = {
        "NoCredentialsError": f"AWS の認証情報がありません。{PREPARE}",
        "NoRegionError": f"AWS のリージョンが設定されていません。{PREPARE}",
        "ExpiredToken ExpiredTokenException": "認証情報の期限切れです。取得し直してください。",
        "EndpointConnectionError": "AWS に接続できません。ローカル AWS なら起動してください。",
        "NoSuchEntity": f"ロール {ROLE_NAME} がありません。README の手順 1 で作成してください。",
        "AccessDenied AccessDeniedException": "権限がありません。管理者に依頼してください。",
    }
    answer = getattr(error, "response", None) or getattr(error, "last_response", None) or {}
    details = {"Code": type(error).__name__, "Message": str(error), **(answer.get("Error") or {})}
    reason = answer.get("Configuration", {}).get("LastUpdateStatusReason", "")
    name, message = details["Code"], " ".join(f"{details['Message']} {reason}".split())
    known = [sentences[names] for names in sentences if name in names.split()]
    return f"{(known or ['AWS から結果を得られませんでした。'])[0]}（{name}: {message[:1000]}）"


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit("引数はありません。名前は、環境変数 FUNCTION_NAME と ROLE_NAME で指定します。")
    try:
        deploy()
    except Exception as error:  # noqa: BLE001 何が応答しても、1 行で終わる
        sys.exit(explain(error))
