"""注文処理の Lambda 関数を作成する。すでにあれば、差分だけを更新する。

何度実行しても安全。途中で止まっても、再実行すれば残りを処理する。何も削除しない。
名前は環境変数 FUNCTION_NAME と ROLE_NAME、リージョンと認証情報は boto3 の通常の設定で決まる。
"""

import base64
import hashlib
import inspect
import io
import os
import re
import sys
import time
import zipfile
from contextlib import redirect_stderr
from importlib import metadata
from pathlib import Path
from typing import Any

INSTALL = "source .venv/bin/activate と pip install -r requirements.txt を実行してください。"
try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
except ModuleNotFoundError:
    sys.exit(f"boto3 がインストールされていません。{INSTALL}")

ROOT = Path(__file__).parent
SDK = "aws-durable-execution-sdk-python"
FUNCTION_NAME = os.environ.get("FUNCTION_NAME") or "order-processing-durable"
ROLE_NAME = os.environ.get("ROLE_NAME") or "lambda-durable-demo-role"
ARM = ["arm64"]


def main() -> None:
    """デプロイする。続行できなければ、対処方法を標準エラー出力に示し、終了コード 1 で終わる。"""
    try:
        os.fstat(1)  # 閉じた標準出力は、ここで OSError になる
        if isinstance(sys.stdout, io.TextIOWrapper):  # 表示できない文字があっても、処理を続ける
            sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
        with redirect_stderr(io.StringIO()):  # MFA コードを入力できないときの警告
            deploy()
    except KeyboardInterrupt:
        sys.exit("中断しました。もう一度実行すると、残りの処理を行います。")
    except Exception as error:
        frames = inspect.trace(0)
        if frames[-1].frame.f_globals is globals() and not isinstance(error, (KeyError, OSError)):
            raise  # deploy.py の誤り。KeyError は応答の、OSError は出力の誤り
        aws = isinstance(error, (BotoCoreError, ClientError))
        credentials = not aws and any("credentials.py" in frame.filename for frame in frames)
        sys.exit(advice_for(error, CREDENTIALS if credentials else ""))


def deploy() -> None:
    """関数を作成または更新し、バージョンを発行して、その呼び出し方を表示する。"""
    check_name_and_sdk()
    options = Config(connect_timeout=5, retries={"mode": "standard", "max_attempts": 5})
    session = boto3.Session()
    client, iam = (session.client(service, config=options) for service in ("lambda", "iam"))
    create_input = client.meta.service_model.operation_model("CreateFunction").input_shape
    if "DurableConfig" not in create_input.members:  # 古い boto3 は、黙って無視する
        sys.exit(f"boto3 が古く、DurableConfig に対応していません。{INSTALL}")
    settings, code = desired_settings(role_arn(iam)), build_zip()
    digest = base64.b64encode(hashlib.sha256(code).digest()).decode()

    new = {**settings, "Code": {"ZipFile": code}, "Architectures": ARM}
    if created := when_ready(client.create_function, **new):
        print(f"関数 {FUNCTION_NAME} を作成しました")
    current = settled(client)
    failed = "Failed" in (current["State"], current.get("LastUpdateStatus"))
    # LoggingConfig などの応答には、指定していない項目も含まれる
    wanted = {k: current.get(k, {}) | v if isinstance(v, dict) else v for k, v in settings.items()}
    new_settings = failed or not wanted.items() <= current.items()
    new_code = failed or (current["CodeSha256"], current["Architectures"]) != (digest, ARM)
    if not current.get("DurableConfig"):
        sys.exit(
            f"関数 {FUNCTION_NAME} は DurableConfig なしで作られていて、後から有効にできません。"
            "FUNCTION_NAME を変えるか、不要な関数なら aws lambda delete-function --function-name"
            f" {FUNCTION_NAME} で削除してから、もう一度実行してください。"
        )
    if new_settings:
        print(f"関数 {FUNCTION_NAME} の設定を更新します")
        when_ready(client.update_function_configuration, **settings)
    if new_code:
        print(f"関数 {FUNCTION_NAME} のコードを更新します")
        when_ready(client.update_function_code, ZipFile=code, Architectures=ARM)
    if not (created or new_settings or new_code):
        print(f"関数 {FUNCTION_NAME} は、コードも設定も変わっていません")
    updated = settled(client)
    if "Failed" in (updated["State"], updated.get("LastUpdateStatus")):
        why = ": ".join(updated[key] for key in sorted(updated)[::-1] if "Reason" in key)
        sys.exit(f"関数 {FUNCTION_NAME} の作成か更新が失敗しました。{FIX}（{why}）")
    # 発行するのはこのコードだけ。変わっていなければ、現在のバージョンが返る
    version = when_ready(client.publish_version, CodeSha256=digest)["Version"]
    print(NEXT.format(name=FUNCTION_NAME, version=version))


NEXT = """バージョン {version} を呼び出せます。注文を開始するには、次のコマンドを実行してください:

aws lambda invoke \\
  --function-name {name}:{version} \\
  --invocation-type Event \\
  --payload '{{"order_id": "order-123", "items": [{{"product_id": "prod-001", "name": "Widget", "price": 1000, "quantity": 2}}]}}' \\
  response.json"""  # noqa: E501


def check_name_and_sdk() -> None:
    """権限のある関数名か、テスト済みの SDK かを確認する。"""
    covered = re.findall(r"function:(.+?):", (ROOT / "durable-policy.json").read_text("utf-8"))
    if not re.fullmatch("|".join(covered).replace("*", r"[\w-]*"), FUNCTION_NAME, re.ASCII):
        sys.exit(
            f"durable-policy.json の許可対象に、関数 {FUNCTION_NAME} が含まれていません。"
            f"FUNCTION_NAME を {' か '.join(covered)} の形にしてください。"
        )
    pinned = re.findall(rf"^{SDK}==(\S+)$", (ROOT / "requirements.txt").read_text("utf-8"), re.M)
    if not pinned:
        sys.exit("requirements.txt に SDK の行がありません。git checkout で元に戻してください。")
    if [distribution.version for distribution in metadata.distributions(name=SDK)] != pinned:
        sys.exit(f"SDK のバージョンが requirements.txt の {pinned[0]} と違います。{INSTALL}")


def role_arn(iam: Any) -> str:
    """Lambda が引き受けられるロールの ARN を返す。条件付きの Deny は、AWS の判定に任せる。"""
    role = iam.get_role(RoleName=ROLE_NAME)["Role"]
    found = role["AssumeRolePolicyDocument"]["Statement"]
    found = [found] if isinstance(found, dict) else found
    named = [s for s in found if re.search(r"'lambda\.amazonaws\.com'|\*", str(s.get("Principal")))]
    effects = {s["Effect"] for s in named if s["Effect"] == "Allow" or "Condition" not in s}
    if effects != {"Allow"}:
        sys.exit(
            f"ロール {ROLE_NAME} の信頼ポリシーが Lambda を許可していません。aws iam"
            f" update-assume-role-policy --role-name {ROLE_NAME} --policy-document"
            " file://trust-policy.json を実行してください。"
        )
    return str(role["Arn"])


def desired_settings(role: str) -> dict[str, Any]:
    """関数の設定を返す。時間は秒、メモリは MB。"""
    try:
        from app import EXECUTION_TIMEOUT as limit  # SDK のバージョンを確認した後で読み込む
    except Exception as error:  # noqa: BLE001
        sys.exit(advice_for(error, f"app.py を読み込めません。{FIX}"))
    return {
        "Role": role,
        "Handler": "app.handler",
        "Runtime": "python3.13",
        "Timeout": 30,
        "MemorySize": 256,
        "LoggingConfig": {"LogFormat": "JSON", "ApplicationLogLevel": "INFO"},
        "DurableConfig": {"ExecutionTimeout": limit.to_seconds(), "RetentionPeriodInDays": 1},
    }


def build_zip() -> bytes:
    """app.py と SDK だけの zip を作成する。どこで作成しても同じバイト列になる。"""
    files = {f.as_posix(): f.read_binary() for f in metadata.files(SDK) or [] if f.suffix == ".py"}
    if not files:
        sys.exit("SDK のファイルの一覧（RECORD）がありません。.venv を作り直してください。")
    files["app.py"] = (ROOT / "app.py").read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)  # 日付は 1980-01-01 になる
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def when_ready(call: Any, **parameters: Any) -> Any:
    """ロールの伝播と進行中の更新の完了を、最長 1 分待って、呼び出す。"""
    for seconds_left in range(60, -1, -5):
        try:
            return call(FunctionName=FUNCTION_NAME, **parameters)
        except ClientError as error:
            if re.search("already exist|state: Failed", str(error)):
                return None  # 作成済み（その応答が届かなかったときも）か、Failed
            busy = "ResourceConflict" in str(error)
            if not (busy or "cannot be assumed" in str(error)) or not seconds_left:
                raise
        waits = "進行中の更新が完了するの" if busy else f"ロール {ROLE_NAME} の伝播"
        print(f"{waits}を待っています")
        time.sleep(5)


def settled(client: Any) -> dict[str, Any]:
    """関数の作成や進行中の更新が完了するまで、最長 2 分待って、関数の状態と設定を返す。"""
    for _ in range(60):
        function: dict[str, Any] = client.get_function_configuration(FunctionName=FUNCTION_NAME)
        if function["State"] != "Pending" and function.get("LastUpdateStatus") != "InProgress":
            return function
        time.sleep(2)
    sys.exit(f"関数 {FUNCTION_NAME} の準備を 2 分待ちましたが、完了しませんでした。{AGAIN}")


AGAIN = "しばらく待って、もう一度実行してください。"
FIX = "原因を取り除いて、もう一度実行してください。"
PREPARE = "README の「準備」のとおりに設定してください。"
CHECK = "リージョン、ネットワーク、プロキシ、AWS_ENDPOINT_URL を確認し、もう一度実行してください。"
CREDENTIALS = "AWS の認証情報を取得できません。AWS_PROFILE などの設定を確認してください。"
NOT_AWS = f"AWS からの応答が途中までか、AWS 以外からの応答です。{CHECK}"
BUSY = f"AWS 側の処理が完了していないか、一時的に混み合っています。{AGAIN}"
ADVICE = {  # 「エラー名 操作: メッセージ」に対する正規表現と、対処方法
    "Region": f"リージョンが未設定か、正しくありません。{PREPARE}",
    "Profile|CredentialRet|ConfigParse|InvalidConfig": CREDENTIALS,
    "(No|Partial)Cred|.*header value": f"AWS の認証情報がないか、読み取れません。{PREPARE}",
    ".*Signature (exp|not yet)|RequestExp|TimeToo": f"コンピューターの時刻が違います。{FIX}",
    "ClientTok|Unrec|Signat": "AWS の認証情報かリージョンが正しくありません。確認してください。",
    "Expir|SSO|Token": "認証情報の有効期限が切れています。再取得するか、ログインし直してください。",
    "ValueError|.*URL scheme": "AWS_ENDPOINT_URL を http://127.0.0.1:4566 の形にしてください。",
    "Connect|ReadTimeout|SSL|HTTPClient": f"AWS に接続できません。{CHECK}",
    "ResponseParser|KeyError|Incomplete|ClientError|[34]\\d\\d ": NOT_AWS,
    "NoSuch": "ロール {role} がありません。README の「1. IAM ロールの作成」を実行してください。",
    "AccessD": "{action} の権限がありません。アカウントの管理者に権限の付与を依頼してください。",
    "Quota|LimitEx|StorageEx": "AWS のクォータに達しています。管理者に引き上げを依頼してください。",
    "ResourceConf|.*assumed": f"伝播か更新を 1 分待ちましたが、完了しませんでした。{AGAIN}",
    "Invalid.* PublishVersion": f"ほかの人が同じ関数をデプロイしています。{AGAIN}",
    "Throttl|TooMany|Internal|Service|Unavail|ResourceNotFound|5\\d\\d ": BUSY,
    "OSErr|BrokenP|FileNot|Perm|IsADir|Unicode": f"ファイルか出力を読み書きできません。{FIX}",
    "": f"AWS API の呼び出しに失敗しました。{FIX}",
}


def advice_for(error: Any, sentence: str = "") -> str:
    """AWS がエラーを返したときや、接続できないときの対処方法を、エラー名を付けて返す。"""
    details = (getattr(error, "response", None) or {}).get("Error") or {}
    name = details.get("Code") or type(error).__name__
    message = " ".join(str(details.get("Message") or error).split())
    denied = re.search(r"perform: (\S+)", message)
    action = denied[1] if denied else getattr(error, "operation_name", "")
    fits = [a for w, a in ADVICE.items() if re.match(rf"\w*({w})", f"{name} {action}: {message}")]
    sentence = (sentence or fits[0]).format(action=action, role=ROLE_NAME)
    shown = denied[1] if denied else re.sub(r"\bb['\"].*", "…", message)[:200]
    return f"{sentence}（{name}: {shown}）"


if __name__ == "__main__":
    main()
