"""deploy.py をローカル AWS に向けて動かす: 何度でも、途中で止まっても、拒否されても。"""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import boto3
import botocore.endpoint
import botocore.waiter
import pytest
from botocore.awsrequest import AWSResponse
from botocore.httpsession import URLLib3Session

import deploy
from tests.local_aws.gateway import LocalAws

ROOT = Path(deploy.__file__).parent
UPDATES = {"UpdateFunctionCode", "UpdateFunctionConfiguration"}


class Body(io.BytesIO):
    """botocore が読む、HTTP 応答の本文。"""

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


def raw(status: int, body: str, code: str = "") -> AWSResponse:
    return AWSResponse("", status, {"x-amzn-errortype": code}, Body(body.encode()))


def refusal(operation: str, status: int, code: str, message: str = "") -> AWSResponse:
    """AWS のエラーの応答。IAM は XML、Lambda は JSON とヘッダーで読まれる。"""
    if operation != "GetRole":
        return raw(status, json.dumps({"message": message}), code)
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return raw(status, f"<ErrorResponse>{error}</ErrorResponse>")


Hook = Callable[[str, Any], Any]


class Aws:
    """ローカル AWS と、deploy.py が呼んだ API。応答を hook で差し替え、edit で書き換える。"""

    def __init__(self, server: LocalAws) -> None:
        self.server = server
        self.calls: list[str] = []
        self.hook: Hook = lambda name, request: None
        self.edit: Callable[[str, dict[str, Any]], Any] = lambda name, parsed: None
        self.killed_after = 0
        self.clock = Clock()
        self.client = boto3.client("lambda")
        self.iam = boto3.client("iam")

    def session(self) -> boto3.Session:
        session = boto3.session.Session()
        session.events.register("before-send", self._before_send)
        session.events.register("after-call", self._after_call)
        return session

    def _before_send(self, request: Any, event_name: str, **_: Any) -> Any:
        return self.hook(event_name.rpartition(".")[2], request)

    def _after_call(self, event_name: str, parsed: dict[str, Any], **_: Any) -> None:
        self.calls.append(event_name.rpartition(".")[2])
        self.edit(self.calls[-1], parsed)
        if len(self.calls) == self.killed_after:
            raise Killed

    def state(self) -> dict[str, Any]:
        """デプロイの結果として残ったもの。"""
        versions = self.client.list_versions_by_function(FunctionName=deploy.FUNCTION_NAME)
        return {
            version["Version"]: (version["CodeSha256"], version["MemorySize"])
            for version in versions["Versions"]
        }


class Killed(BaseException):
    """プロセスがここで強制終了された。"""


@pytest.fixture(scope="module")
def server() -> Iterator[LocalAws]:
    with LocalAws() as server:
        yield server


@pytest.fixture
def aws(server: LocalAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """ロールだけがある、まっさらな AWS。"""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "HOME": str(tmp_path),
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "ap-northeast-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    aws = Aws(server)
    monkeypatch.setattr(boto3, "Session", aws.session)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    clock = aws.clock
    monkeypatch.setattr(deploy, "time", clock)
    monkeypatch.setattr(botocore.waiter, "time", clock)
    monkeypatch.setattr(botocore.endpoint, "time", clock)
    take_new_names(aws, monkeypatch)
    return aws


def take_new_names(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    """まだ関数のない名前と、ロールのある名前にする。"""
    suffix = uuid.uuid4().hex[:8]
    monkeypatch.setattr(deploy, "FUNCTION_NAME", f"order-processing-durable-{suffix}")
    monkeypatch.setattr(deploy, "ROLE_NAME", f"lambda-durable-demo-role-{suffix}")
    trust = (ROOT / "trust-policy.json").read_text("utf-8")
    aws.iam.create_role(RoleName=deploy.ROLE_NAME, AssumeRolePolicyDocument=trust)


class Clock:
    """sleep するとその分だけ進む時計。"""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def failure(capsys: pytest.CaptureFixture[str]) -> str:
    """デプロイが残した 1 文。表示済みの出力は捨てる。AWS のエラーなら、名前で終わる。"""
    stdout = sys.stdout
    with pytest.raises(SystemExit) as stopped:
        deploy.main()
    sys.stdout = stdout
    capsys.readouterr()
    sentence = stopped.value.code
    assert isinstance(sentence, str)
    assert re.search(r"。(（\w.*）)?$", sentence)
    assert "\n" not in sentence
    return sentence


def change_app(monkeypatch: pytest.MonkeyPatch, addition: bytes = b"# changed\n") -> None:
    unchanged = deploy.build_zip

    def changed() -> bytes:
        buffer = io.BytesIO(unchanged())
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(zipfile.ZipInfo("changed.py"), addition)
        return buffer.getvalue()

    monkeypatch.setattr(deploy, "build_zip", changed)


# ---- 作成する、もう一度、更新する -------------------------------------------------------


def test_first_run_creates_version_1_and_prints_how_to_invoke_it(
    aws: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy.main()

    function = aws.client.get_function_configuration(FunctionName=deploy.FUNCTION_NAME)
    assert function["DurableConfig"] == {"ExecutionTimeout": 1200, "RetentionPeriodInDays": 1}
    assert function["LoggingConfig"]["LogFormat"] == "JSON"
    assert function["LoggingConfig"]["ApplicationLogLevel"] == "INFO"
    assert (function["Runtime"], function["Architectures"]) == ("python3.13", ["arm64"])
    assert function["Handler"] == "app.handler"
    assert function["Role"].endswith(f":role/{deploy.ROLE_NAME}")
    assert sorted(aws.state()) == ["$LATEST", "1"]
    assert f"--function-name {deploy.FUNCTION_NAME}:1 \\\n" in capsys.readouterr().out


def test_running_again_updates_nothing_and_stays_at_version_1(
    aws: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy.main()
    aws.calls.clear()
    capsys.readouterr()
    deploy.main()

    assert not UPDATES & set(aws.calls)
    assert sorted(aws.state()) == ["$LATEST", "1"]
    assert "変わっていません" in capsys.readouterr().out


def test_changed_code_updates_the_code_alone_and_keeps_old_versions(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy.main()
    before = aws.state()
    change_app(monkeypatch)
    aws.calls.clear()
    deploy.main()

    assert UPDATES & set(aws.calls) == {"UpdateFunctionCode"}
    assert sorted(aws.state()) == ["$LATEST", "1", "2"]
    assert aws.state()["1"] == before["1"]
    assert aws.state()["2"] != before["1"]


@pytest.mark.parametrize(
    "change",
    [
        {"MemorySize": 512},
        {"DurableConfig": {"ExecutionTimeout": 60, "RetentionPeriodInDays": 2}},
        {"LoggingConfig": {"LogFormat": "Text"}},
    ],
)
def test_changed_configuration_is_put_back_without_touching_the_code(
    aws: Aws, change: dict[str, Any]
) -> None:
    deploy.main()
    aws.client.update_function_configuration(FunctionName=deploy.FUNCTION_NAME, **change)
    aws.calls.clear()
    deploy.main()

    assert UPDATES & set(aws.calls) == {"UpdateFunctionConfiguration"}
    function = aws.client.get_function_configuration(FunctionName=deploy.FUNCTION_NAME)
    wanted = deploy.desired_settings(function["Role"])
    key = next(iter(change))
    assert (
        wanted[key] == {**wanted, **function}[key] or wanted[key].items() <= function[key].items()
    )


def test_names_come_from_the_environment(aws: Aws) -> None:
    done = run_deploy(FUNCTION_NAME=deploy.FUNCTION_NAME, ROLE_NAME=deploy.ROLE_NAME)

    assert (done.returncode, done.stderr) == (0, "")
    assert f"--function-name {deploy.FUNCTION_NAME}:1 \\\n" in done.stdout
    assert sorted(aws.state()) == ["$LATEST", "1"]


# ---- 途中で止まる ------------------------------------------------------------------


@pytest.mark.parametrize("deployed_before", [False, True])
def test_killed_after_any_call_and_run_again_ends_as_if_it_had_not_been(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, deployed_before: bool
) -> None:
    def start() -> None:
        take_new_names(aws, monkeypatch)
        if deployed_before:
            with monkeypatch.context() as earlier:
                change_app(earlier, b"# earlier\n")
                deploy.main()
            name = deploy.FUNCTION_NAME
            aws.client.update_function_configuration(FunctionName=name, MemorySize=512)
        aws.calls.clear()

    start()
    deploy.main()
    wanted, calls = aws.state(), list(aws.calls)
    assert len(calls) >= 5
    for number, name in enumerate(calls, start=1):
        start()
        aws.killed_after = number
        with pytest.raises(Killed):
            deploy.main()
        aws.killed_after = 0
        deploy.main()
        assert aws.state() == wanted, name


FAULTS = ["throttled", "server error", "lost answer"]
OPERATIONS = [
    "GetRole",
    "GetFunctionConfiguration",
    "CreateFunction",
    "PublishVersion",
    "UpdateFunctionConfiguration",
    "UpdateFunctionCode",
]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_any_call_may_fail_once(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, operation: str, fault: str
) -> None:
    wanted = ["$LATEST", "1"]
    if operation in UPDATES:
        deploy.main()
        change_app(monkeypatch)
        monkeypatch.setattr(deploy, "ARM", ["x86_64"])
        settings = deploy.desired_settings
        monkeypatch.setattr(
            deploy, "desired_settings", lambda role: settings(role) | {"MemorySize": 300}
        )
        wanted.append("2")
    failed: list[str] = []

    def fail_once(name: str, request: Any) -> Any:
        if name != operation or failed:
            return None
        failed.append(name)
        if fault == "throttled":
            code = "Throttling" if operation == "GetRole" else "TooManyRequestsException"
            return refusal(name, 429, code, "Rate exceeded")
        if fault == "lost answer":
            URLLib3Session().send(request)
        return refusal(name, 500, "ServiceException")

    aws.hook = fail_once
    deploy.main()

    assert failed == [operation]
    assert sorted(aws.state()) == wanted


# ---- 待つ --------------------------------------------------------------------------

UNSEEN = "The role defined for the function cannot be assumed by Lambda."


def refused(operation: str, times: int, code: str, message: str) -> Hook:
    left = [refusal(operation, 400, code, message) for _ in range(times)]
    return lambda name, _: left.pop() if name == operation and left else None


@pytest.mark.parametrize(
    ("operation", "code", "message", "waiting"),
    [
        ("CreateFunction", "InvalidParameterValueException", UNSEEN, "伝播を待っています"),
        ("UpdateFunctionCode", "ResourceConflictException", "in progress", "進行中の更新"),
        ("PublishVersion", "ResourceConflictException", "in progress", "進行中の更新"),
    ],
)
def test_what_passes_by_itself_is_waited_for_one_minute(
    aws: Aws, monkeypatch: Any, capsys: Any, operation: str, code: str, message: str, waiting: str
) -> None:
    if operation != "CreateFunction":
        deploy.main()
        change_app(monkeypatch)
    aws.hook = refused(operation, 99, code, message)
    sentence = failure(capsys)
    assert "1 分待ちました" in sentence
    assert sentence.endswith(f"（{code}: {message}）")
    assert 60 <= aws.clock.now <= 70

    aws.hook = refused(operation, 2, code, message)
    capsys.readouterr()
    deploy.main()
    assert capsys.readouterr().out.count(waiting) == 2
    assert "1" in aws.state()


@pytest.mark.parametrize("busy", [{"State": "Pending"}, {"LastUpdateStatus": "InProgress"}])
def test_unsettled_function_is_waited_for_two_minutes(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, capsys: Any, busy: dict[str, str]
) -> None:
    deploy.main()
    change_app(monkeypatch)
    aws.calls.clear()
    aws.edit = lambda name, parsed: name == "GetFunctionConfiguration" and parsed.update(busy)
    assert "もう一度実行してください" in failure(capsys)
    assert 110 <= aws.clock.now <= 120
    assert not UPDATES & set(aws.calls)

    aws.calls.clear()
    aws.edit = lambda name, parsed: aws.calls.count(name) < 4 and parsed.update(busy)
    deploy.main()
    assert sorted(aws.state()) == ["$LATEST", "1", "2"]


@pytest.mark.parametrize("status", ["State", "LastUpdateStatus"])
def test_failed_function_is_updated_and_explained_if_that_does_not_help(
    aws: Aws, capsys: Any, status: str
) -> None:
    deploy.main()
    aws.calls.clear()
    why = {status: "Failed", f"{status}Reason": "No key", f"{status}ReasonCode": "InvalidKey"}

    def fail(name: str, parsed: dict[str, Any]) -> None:
        if name == "GetFunctionConfiguration" and (forever or not set(aws.calls) >= UPDATES):
            parsed.update(why)

    forever, aws.edit = True, fail
    assert failure(capsys).endswith("（InvalidKey: No key）")
    forever = False
    aws.calls.clear()
    deploy.main()
    assert set(aws.calls) >= UPDATES


# ---- 同時に動く --------------------------------------------------------------------


def test_function_that_another_deploy_creates_first_is_updated(aws: Aws) -> None:
    code = deploy.build_zip()

    def create_first(name: str, _: Any) -> None:
        if name == "CreateFunction":
            create_other(aws, DurableConfig={"ExecutionTimeout": 60})

    aws.hook = create_first
    deploy.main()
    digest, _memory = aws.state()["1"]
    assert digest == digest_of(code)


def test_code_of_another_deploy_is_not_published(aws: Aws, capsys: Any) -> None:
    def overtake(name: str, request: Any) -> Any:
        if name != "PublishVersion":
            return None
        aws.client.update_function_code(FunctionName=deploy.FUNCTION_NAME, ZipFile=other_zip())
        assert json.loads(request.body)["CodeSha256"] == digest_of(deploy.build_zip())
        return refusal(name, 400, "InvalidParameterValueException", "is different")

    aws.hook = overtake
    sentence = failure(capsys)
    assert "ほかの人が同じ関数をデプロイしています" in sentence
    assert "もう一度実行してください" in sentence
    assert sorted(aws.state()) == ["$LATEST"]


def digest_of(code: bytes) -> str:
    return base64.b64encode(hashlib.sha256(code).digest()).decode()


def other_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("other.py", "")
    return buffer.getvalue()


def create_other(aws: Aws, **settings: Any) -> None:
    """ほかの人の関数。"""
    aws.client.create_function(
        FunctionName=deploy.FUNCTION_NAME,
        Role=aws.iam.get_role(RoleName=deploy.ROLE_NAME)["Role"]["Arn"],
        Handler="other.handler",
        Runtime="python3.13",
        Code={"ZipFile": other_zip()},
        **settings,
    )


# ---- 設定の誤り --------------------------------------------------------------------


def run_deploy(*arguments: str, folder: Any = ROOT, **environment: Any) -> Any:
    command = [sys.executable, *(arguments or ["deploy.py"])]
    env = {**os.environ, **environment}
    return subprocess.run(
        command,
        cwd=folder,
        env={name: value for name, value in env.items() if value},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # MFA コードを尋ねる端末がない
        text=True,
        timeout=60,
    )


def assert_refused(done: Any, words: str) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


PROXIED = {"HTTP_PROXY": "http://127.0.0.1:{closed}", "NO_PROXY": ""}


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "認証情報がない"),
        ({"AWS_ACCESS_KEY_ID": "a\nb"}, "認証情報がないか、読み取れません"),
        ({"AWS_SESSION_TOKEN": "secret\n"}, "Invalid header value …）"),
        ({"AWS_PROFILE": "nobody"}, "AWS_PROFILE"),
        ({"AWS_CONFIG_FILE": __file__}, "ConfigParseError"),
        ({"AWS_DEFAULT_REGION": ""}, "リージョンが未設定か、正しくありません"),
        ({"AWS_DEFAULT_REGION": "ap_northeast_1"}, "リージョンが未設定か、正しくありません"),
        ({"AWS_DEFAULT_REGION": "ap-northeast-1 "}, "リージョンが未設定か、正しくありません"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:{closed}"}, "AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:99999"}, "AWS_ENDPOINT_URL を http://"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:4566"}, "AWS_ENDPOINT_URL を http://"),
        ({"AWS_ENDPOINT_URL": "ftp://127.0.0.1"}, "AWS_ENDPOINT_URL を http://"),
        (PROXIED, "接続できません。ネットワーク、プロキシ、AWS_ENDPOINT_URL を"),
        ({"FUNCTION_NAME": "order-processing-durable-bad name"}, "FUNCTION_NAME"),
        ({"FUNCTION_NAME": "order-processing"}, "durable-policy.json"),
        ({"FUNCTION_NAME": "order-processing-durable2"}, "durable-policy.json"),
        ({"FUNCTION_NAME": "my-order-processing-durable"}, "durable-policy.json"),
        (
            {"ROLE_NAME": "no-such-role"},
            "「1. IAM ロールの作成」を実行してください。（NoSuchEntity",
        ),
    ],
)
def test_unusable_environment_gets_one_sentence(
    aws: Aws, environment: dict[str, str], words: str
) -> None:
    port = str(closed_port())
    given = {name: value.replace("{closed}", port) for name, value in environment.items()}
    assert_refused(run_deploy(**given), words)


EXPIRED = {"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "c"} | {
    "Expiration": "2020-01-01T00:00:00Z"
}
ROLE = "role_arn = arn:aws:iam::123456789012:role/r\n"
KEYS = "[profile keys]\naws_access_key_id = a\naws_secret_access_key = b\n"


@pytest.mark.parametrize(
    ("profile", "error"),
    [
        ("credential_process = /no/such/program", "FileNotFoundError"),
        ("credential_process = false", "CredentialRetrievalError"),
        ("credential_process = echo garbage", "JSONDecodeError"),
        ("credential_process = echo []", "AttributeError"),
        (f"credential_process = echo '{json.dumps(EXPIRED)}'", "RuntimeError"),
        (f"{ROLE}web_identity_token_file = /no/such/token", "FileNotFoundError"),
        (f"{ROLE}source_profile = keys\nmfa_serial = mfa/me\n{KEYS}", "EOFError"),
        (f"{ROLE}source_profile = nobody", "InvalidConfigError"),
    ],
)
def test_unusable_credentials_get_one_sentence(
    aws: Aws, tmp_path: Path, profile: str, error: str
) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(f"[default]\n{profile}\n")
    done = run_deploy(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    assert_refused(
        done, f"認証情報を取得できません。AWS_PROFILE などの設定を確認してください。（{error}: "
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("durable-policy.json", None, "durable-policy.json"),
        ("durable-policy.json", b"\xff", "UnicodeDecodeError"),
        ("durable-policy.json", b"{}", "durable-policy.json"),
        ("requirements.txt", None, "requirements.txt"),
        ("requirements.txt", b"boto3\n", "requirements.txt に SDK の行がありません"),
        ("requirements.txt", f"{deploy.SDK}==2.0.0\n".encode(), "requirements.txt の 2.0.0"),
        ("app.py", None, "app.py を読み込めません"),
        ("app.py", b"def handler(\n", "（SyntaxError: "),
        ("app.py", b"import no_such_module\n", "no_such_module"),
        ("app.py", b"", "EXECUTION_TIMEOUT"),
    ],
)
def test_damaged_folder_gets_one_sentence(
    aws: Aws, tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    for file in ("deploy.py", "app.py", "durable-policy.json", "requirements.txt"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = run_deploy(folder=tmp_path, ROLE_NAME=deploy.ROLE_NAME)
    assert_refused(done, words)


def test_python_without_boto3_gets_one_sentence() -> None:
    assert_refused(
        run_deploy("-S", "deploy.py"), "boto3 がインストールされていません。source .venv"
    )


@pytest.mark.parametrize("files", [None, []])
def test_sdk_without_its_list_of_files_is_not_deployed(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, capsys: Any, files: Any
) -> None:
    monkeypatch.setattr(metadata, "files", lambda name: files)
    assert "RECORD" in failure(capsys)
    assert aws.calls == ["GetRole"]


def test_boto3_without_durable_config_is_refused(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    create = aws.session

    def old_session() -> Any:
        session = create()
        client = session.client("lambda")
        shape = client.meta.service_model.operation_model("CreateFunction").input_shape
        shape.members.pop("DurableConfig")
        monkeypatch.setattr(session, "client", lambda *_, **__: client)
        return session

    monkeypatch.setattr(boto3, "Session", old_session)
    assert "DurableConfig" in failure(capsys)
    assert aws.calls == []


@pytest.mark.parametrize("output", ["> /dev/full", ">&-", "| true"])
def test_output_that_cannot_be_written_gets_one_sentence(aws: Aws, output: str) -> None:
    script = f'{{ "$0" deploy.py; echo "exit $?" >&2; }} {output}'
    wait = "| { exec 0<&-; sleep 0; }" if output == "| true" else output
    done = subprocess.run(
        ["bash", "-c", script.replace("| true", wait), sys.executable],
        cwd=ROOT,
        env={**os.environ, "FUNCTION_NAME": deploy.FUNCTION_NAME, "ROLE_NAME": deploy.ROLE_NAME},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert re.fullmatch(
        r"ファイルか出力を読み書きできません。.+（\w+Error: .+）\nexit 1\n", done.stderr
    )


def test_output_without_japanese_still_shows_the_command(aws: Aws) -> None:
    names = {"FUNCTION_NAME": deploy.FUNCTION_NAME, "ROLE_NAME": deploy.ROLE_NAME}
    done = run_deploy(PYTHONIOENCODING="ascii", **names)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"--function-name {deploy.FUNCTION_NAME}:1 \\\n" in done.stdout


def test_fault_of_deploy_itself_keeps_its_traceback(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(deploy, "settled")
    with pytest.raises(NameError):
        deploy.main()


def test_ctrl_c_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(deploy, "deploy", interrupted)
    with pytest.raises(SystemExit, match="もう一度実行すると、残りの処理を行います"):
        deploy.main()


# ---- 拒否される --------------------------------------------------------------------

DENIED = "User: x is not authorized to perform: {} on resource: y"


@pytest.mark.parametrize(
    ("operation", "code", "message", "words"),
    [
        ("GetRole", "ExpiredToken", "expired", "有効期限が切れています"),
        ("GetRole", "SignatureDoesNotMatch", "Signature expired: 2020 is now", "時刻が違います"),
        ("GetRole", "InvalidClientTokenId", "invalid", "認証情報かリージョンが正しくありません"),
        ("GetRole", "AccessDenied", DENIED.format("iam:GetRole"), "iam:GetRole の権限"),
        ("GetRole", "Throttling", "Rate exceeded", "混み合っています"),
        ("GetRole", "Teapot", "short and stout", "AWS API の呼び出しに失敗しました"),
        ("CreateFunction", "InvalidSignatureException", "Signature not yet current", "時刻が"),
        (
            "CreateFunction",
            "AccessDeniedException",
            DENIED.format("iam:PassRole"),
            "iam:PassRole の",
        ),
        ("CreateFunction", "ServiceQuotaExceededException", "quota", "クォータ"),
        ("CreateFunction", "CodeStorageExceededException", "limit", "クォータ"),
        (
            "GetFunctionConfiguration",
            "UnrecognizedClientException",
            "token",
            "認証情報かリージョン",
        ),
        ("GetFunctionConfiguration", "ResourceNotFoundException", "gone", "もう一度実行して"),
        ("PublishVersion", "AccessDeniedException", "", "PublishVersion の権限がありません"),
    ],
)
def test_refusal_by_aws_gets_one_sentence_that_ends_with_its_name(
    aws: Aws, capsys: Any, operation: str, code: str, message: str, words: str
) -> None:
    aws.hook = lambda name, _: refusal(name, 403, code, message) if name == operation else None
    sentence = failure(capsys)
    assert words in sentence
    denied = re.search(r"perform: (\S+)", message)
    assert f"（{code}: {denied[1] if denied else message}" in sentence


HALF = [
    "",
    "{}",
    '{"FunctionNa',
    "<html>Login</html>",
    "<html><p>Login</html>",
    "<GetRoleResponse>",
]


@pytest.mark.parametrize("operation", ["GetRole", "GetFunctionConfiguration", "PublishVersion"])
@pytest.mark.parametrize("status", [200, 302, 404])
def test_nothing_is_concluded_from_half_an_answer(
    aws: Aws, capsys: Any, operation: str, status: int
) -> None:
    deploy.main()
    for body in HALF:
        aws.hook = lambda name, _, body=body: raw(status, body) if name == operation else None  # type: ignore[misc]
        sentence = failure(capsys)
        assert "AWS からの応答が途中までか、AWS 以外からの応答です" in sentence
        assert "delete" not in sentence


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\n\r\n<htm"])
def test_endpoint_that_is_no_aws_gets_one_sentence(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, capsys: Any, reply: bytes
) -> None:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(reply)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        assert "AWS_ENDPOINT_URL を確認してください" in failure(capsys)
        server.shutdown()


LAMBDA = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}} | {
    "Action": "sts:AssumeRole"
}
ELSEWHERE = {"StringNotEquals": {"aws:SourceAccount": "123456789012"}}


@pytest.mark.parametrize(
    ("statement", "trusted"),
    [
        (LAMBDA, True),
        (
            [LAMBDA | {"Principal": {"Service": ["ec2.amazonaws.com", "lambda.amazonaws.com"]}}],
            True,
        ),
        ([LAMBDA, LAMBDA | {"Effect": "Deny", "Condition": ELSEWHERE}], True),
        ([LAMBDA, LAMBDA | {"Effect": "Deny"}], False),
        ([LAMBDA, LAMBDA | {"Effect": "Deny", "Principal": "*"}], False),
        ([LAMBDA | {"Principal": {"Service": "edgelambda.amazonaws.com"}}], False),
        ([LAMBDA | {"Principal": {"Service": "ec2.amazonaws.com"}}], False),
    ],
)
def test_role_that_lambda_may_not_assume_gets_the_command_that_mends_it(
    aws: Aws, capsys: Any, statement: Any, trusted: bool
) -> None:
    trust = json.dumps({"Version": "2012-10-17", "Statement": statement})
    aws.iam.update_assume_role_policy(RoleName=deploy.ROLE_NAME, PolicyDocument=trust)
    if trusted:
        assert deploy.role_arn(aws.iam).endswith(deploy.ROLE_NAME)
    else:
        command = (
            f"aws iam update-assume-role-policy --role-name {deploy.ROLE_NAME} --policy-document"
        )
        assert f"{command} file://trust-policy.json を実行してください" in failure(capsys)
        assert aws.clock.now == 0


def test_function_that_is_not_durable_is_left_to_its_owner(aws: Aws, capsys: Any) -> None:
    create_other(aws)
    sentence = failure(capsys)
    another, deletion = sentence.index("FUNCTION_NAME を変える"), sentence.index("不要な関数なら")
    assert another < deletion
    assert f"aws lambda delete-function --function-name {deploy.FUNCTION_NAME} " in sentence
    assert not UPDATES & set(aws.calls)


# ---- zip ---------------------------------------------------------------------------


def test_zip_holds_app_and_the_sdk_and_nothing_else() -> None:
    with zipfile.ZipFile(io.BytesIO(deploy.build_zip())) as archive:
        names = archive.namelist()
        entries = archive.infolist()
        assert archive.read("app.py") == (ROOT / "app.py").read_bytes()
    assert {name.split("/")[0] for name in names} == {"app.py", "aws_durable_execution_sdk_python"}
    assert all(name.endswith(".py") for name in names)
    assert names == sorted(names)
    assert {(e.date_time, e.compress_type, e.external_attr >> 16) for e in entries} == {
        ((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED, 0o100644)
    }


def test_zip_is_the_same_under_any_umask_hash_seed_and_time_zone() -> None:
    code = "import hashlib, os, deploy; os.umask({}); print(hashlib.sha256({}).hexdigest())"
    digests = {
        run_deploy(
            "-c", code.format(umask, "deploy.build_zip()"), PYTHONHASHSEED=seed, TZ=zone
        ).stdout.strip()
        for umask, seed, zone in ((0, "0", "UTC"), (0o77, "1", "Asia/Tokyo"))
    }
    assert digests == {hashlib.sha256(deploy.build_zip()).hexdigest()}
