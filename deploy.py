"""注文処理の関数を Lambda に作る。すでにあれば、違うところだけを更新する。

何度実行してもよい。途中で止まっても、もう一度実行すれば続きから終わる。何も削除しない。
名前は環境変数 FUNCTION_NAME と ROLE_NAME、リージョンと認証情報は boto3 の通常の設定で決まる。
"""

import base64
import hashlib
import io
import json
import os
import re
import sys
import time
import zipfile
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any

INSTALL = "source .venv/bin/activate と pip install -r requirements.txt を実行してください。"
try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
except ModuleNotFoundError:
    sys.exit(f"boto3 がありません。{INSTALL}")

ROOT = Path(__file__).parent
SDK = "aws-durable-execution-sdk-python"
FUNCTION_NAME = os.environ.get("FUNCTION_NAME") or "order-processing-durable"
ROLE_NAME = os.environ.get("ROLE_NAME") or "lambda-durable-demo-role"
ARM = ["arm64"]


def main() -> None:
    """デプロイする。続けられなければ、次にすることを標準エラーに示し、終了コード 1 で終わる。"""
    try:
        deploy()
    except KeyboardInterrupt:
        sys.exit("中断しました。もう一度実行すれば、続きから終わります。")
    except DeployError as error:
        sys.exit(str(error))
    except (BotoCoreError, ClientError) as error:
        sys.exit(advice_for(error))


def deploy() -> None:
    """関数を作るか更新し、バージョンを発行して、その呼び出し方を表示する。"""
    check_names_and_versions()
    options = Config(connect_timeout=5, retries={"mode": "standard", "max_attempts": 5})
    session = boto3.Session()
    try:
        client, iam = (session.client(service, config=options) for service in ("lambda", "iam"))
    except ValueError as error:
        raise DeployError(BAD_ENDPOINT) from error
    create_input = client.meta.service_model.operation_model("CreateFunction").input_shape
    if "DurableConfig" not in create_input.members:  # 古い boto3 は、黙って捨ててしまう
        raise DeployError(f"boto3 が古く、DurableConfig を知りません。{INSTALL}")

    settings = desired_settings(role_arn(iam))
    code = build_zip()
    try:
        client.get_function_configuration(FunctionName=FUNCTION_NAME)
    except client.exceptions.ResourceNotFoundException:
        say(f"関数 {FUNCTION_NAME} を作ります")
        when_ready(client.create_function, **settings, Code={"ZipFile": code}, Architectures=ARM)
        wait_until_settled(client)
    else:
        update(client, settings, code)

    version = client.publish_version(FunctionName=FUNCTION_NAME)["Version"]  # 同じなら今の版を返す
    say(f"バージョン {version} を呼び出せます。次のコマンドで注文を始めます:\n")
    say(INVOKE_COMMAND.format(name=FUNCTION_NAME, version=version))


INVOKE_COMMAND = """aws lambda invoke \\
  --function-name {name}:{version} \\
  --invocation-type Event \\
  --payload '{{"order_id": "order-123", "items": [{{"product_id": "prod-001", "name": "Widget", "price": 1000, "quantity": 2}}]}}' \\
  response.json"""  # noqa: E501


def check_names_and_versions() -> None:
    """関数名と、同梱する SDK の版を確かめる。使えなければ DeployError。"""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", FUNCTION_NAME):
        raise DeployError("FUNCTION_NAME は英数字と - _ の 1〜64 文字にしてください。")
    if not re.fullmatch(r"[A-Za-z0-9_+=,.@-]{1,64}", ROLE_NAME):
        raise DeployError("ROLE_NAME は英数字と _+=,.@- の 1〜64 文字にしてください。")
    policy = json.loads((ROOT / "durable-policy.json").read_text("utf-8"))
    covered = [arn.partition(":function:")[2] for s in policy["Statement"] for arn in s["Resource"]]
    if not any(fnmatchcase(f"{FUNCTION_NAME}:1", pattern) for pattern in covered):
        raise DeployError(UNCOVERED.format(name=FUNCTION_NAME))
    requirements = (ROOT / "requirements.txt").read_text("utf-8")
    pinned = re.findall(rf"^{SDK}==(\S+)$", requirements, re.MULTILINE)
    installed = [distribution.version for distribution in metadata.distributions(name=SDK)]
    if installed != pinned:
        raise DeployError(f"SDK の版が requirements.txt の {pinned[0]} と違います。{INSTALL}")


def role_arn(iam: Any) -> str:
    """ロールの ARN を返す。ないか、Lambda が引き受けられなければ DeployError。"""
    try:
        role = iam.get_role(RoleName=ROLE_NAME)["Role"]
    except iam.exceptions.NoSuchEntityException as error:
        raise DeployError(f"ロール {ROLE_NAME} がありません。{STEP_1}") from error
    if "lambda.amazonaws.com" not in str(role["AssumeRolePolicyDocument"]):
        raise DeployError(f"Lambda はロール {ROLE_NAME} を引き受けられません。{STEP_1}")
    return str(role["Arn"])


def desired_settings(role: str) -> dict[str, Any]:
    """関数の設定を返す。時間は秒、メモリは MB。"""
    from app import EXECUTION_TIMEOUT  # SDK の版を確かめたあとで読み込む

    return {
        "Role": role,
        "Handler": "app.handler",
        "Runtime": "python3.13",
        "Timeout": 30,
        "MemorySize": 256,
        "LoggingConfig": {"LogFormat": "JSON", "ApplicationLogLevel": "INFO"},
        "DurableConfig": {
            "ExecutionTimeout": EXECUTION_TIMEOUT.to_seconds(),
            "RetentionPeriodInDays": 1,
        },
    }


def build_zip() -> bytes:
    """app.py と SDK だけの zip を作る。どこで作っても同じバイト列になる。"""
    files = {"app.py": (ROOT / "app.py").read_bytes()}
    for file in metadata.files(SDK) or []:
        if file.suffix == ".py":
            files[file.as_posix()] = file.read_binary()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)  # 日付は 1980-01-01 になる
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def update(client: Any, settings: dict[str, Any], code: bytes) -> None:
    """設定とコードのうち、違うものだけを更新する。durable でない関数なら DeployError。"""
    wait_until_settled(client)
    current = client.get_function_configuration(FunctionName=FUNCTION_NAME)
    if not current.get("DurableConfig"):
        raise DeployError(
            f"関数 {FUNCTION_NAME} は durable ではなく、あとから変えることもできません。"
            f"aws lambda delete-function --function-name {FUNCTION_NAME} で消してください。"
        )
    # LoggingConfig には、頼んでいない LogGroup なども入って返る
    same_settings = all(
        {**current.get(key, {}), **value} == current.get(key)
        if isinstance(value, dict)
        else value == current.get(key)
        for key, value in settings.items()
    )
    digest = base64.b64encode(hashlib.sha256(code).digest()).decode()
    same_code = (current["CodeSha256"], current["Architectures"]) == (digest, ARM)
    if same_settings and same_code:
        say(f"関数 {FUNCTION_NAME} は、コードも設定も変わっていません")
    if not same_settings:
        say(f"関数 {FUNCTION_NAME} の設定を更新します")
        when_ready(client.update_function_configuration, **settings)
        wait_until_settled(client)
    if not same_code:
        say(f"関数 {FUNCTION_NAME} のコードを更新します")
        when_ready(client.update_function_code, ZipFile=code, Architectures=ARM)
        wait_until_settled(client)


def when_ready(call: Any, **parameters: Any) -> None:
    """ロールが Lambda に届くのと、進行中の更新が終わるのを、1 分まで待って call を呼ぶ。"""
    deadline = time.monotonic() + 60
    while True:
        try:
            call(FunctionName=FUNCTION_NAME, **parameters)
            return
        except ClientError as error:
            if "already exist" in str(error):
                return  # 作れたが、その答えが届かず、boto3 がもう一度頼んだ
            if "cannot be assumed" in str(error):
                waiting_for = f"ロール {ROLE_NAME} が Lambda に届くの"
            elif "ResourceConflict" in str(error):
                waiting_for = "進行中の更新が終わるの"
            else:
                raise
            if time.monotonic() > deadline:
                raise DeployError(f"{waiting_for}を 1 分待ちました。{AGAIN}") from error
            say(f"{waiting_for}を待っています")
        time.sleep(5)


def wait_until_settled(client: Any) -> None:
    """関数が使えて、進行中の更新もない状態になるまで、それぞれ 2 分まで待つ。"""
    for waiter in ("function_active_v2", "function_updated_v2"):
        config = {"Delay": 2, "MaxAttempts": 60}
        client.get_waiter(waiter).wait(FunctionName=FUNCTION_NAME, WaiterConfig=config)


def say(text: str) -> None:
    print(text, flush=True)


# ---- 続けられないとき --------------------------------------------------------------

PREPARE = "README の「準備」のとおりに設定してください。"
STEP_1 = "README の「1. IAM ロールの作成」を実行してください。"
AGAIN = "しばらく待って、もう一度実行してください。"
UNCOVERED = (
    "durable-policy.json は関数 {name} を許していません。"
    "FUNCTION_NAME を order-processing-durable か order-processing-durable-… にしてください。"
)
BAD_ENDPOINT = "AWS_ENDPOINT_URL を http://127.0.0.1:4566 のような URL にしてください。"
ADVICE = {  # エラーの名前に現れる語と、次にすること
    "ProfileNotFound": "AWS_PROFILE の名前のプロファイルがありません。名前を確かめてください。",
    "Region": f"リージョンが決まりません。{PREPARE}",
    "Expired|SSO|TokenRetrieval": "認証情報の期限が切れています。取り直してください。",
    "Credential": f"AWS の認証情報がありません。{PREPARE}",
    "ClientToken|UnrecognizedClient|Signature": "AWS の認証情報が違います。確かめてください。",
    "Connect|ReadTimeout|SSL": "AWS に届きません。接続と AWS_ENDPOINT_URL を確かめてください。",
    "AccessDenied": "{action} の権限がありません。アカウントの管理者に許可を頼んでください。",
    "Waiter|Conflict|Throttl|TooMany|Internal|Service": f"AWS の準備ができていません。{AGAIN}",
}


class DeployError(Exception):
    """デプロイを続けられない。メッセージは次にすることを示す。"""


def advice_for(error: Any) -> str:
    """AWS に断られたか届かなかったときに、次にすることを返す。"""
    details = getattr(error, "last_response", getattr(error, "response", {})).get("Error", {})
    name = details.get("Code", type(error).__name__)
    denied = re.search(r"perform: (\S+)", details.get("Message") or "")
    action = denied[1] if denied else getattr(error, "operation_name", "GetFunction")
    for words, advice in ADVICE.items():
        if re.search(words, name):
            return advice.format(action=action)
    why = " ".join(str(error).split())
    return f"AWS の呼び出しに失敗しました（{why}）。直して、もう一度実行してください。"


if __name__ == "__main__":
    main()
