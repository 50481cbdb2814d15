"""deploy.py をローカル AWS に向けて動かす: 何度でも、途中で止まっても、拒否されても。"""

import hashlib
import io
import json
import os
import re
import shutil
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
from unittest.mock import Mock

import boto3
import botocore.endpoint
import botocore.loaders
import botocore.session
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


def raw(operation: str, status: int, body: str, code: str = "") -> AWSResponse:
    headers = {"x-amzn-errortype": code} if code else {}
    return AWSResponse("", status, headers, Body(body.encode()))


def refusal(operation: str, status: int, code: str, message: str = "") -> AWSResponse:
    """AWS のエラーの応答。IAM は XML、Lambda は JSON とヘッダーで読まれる。"""
    if operation != "GetRole":
        return raw(operation, status, json.dumps({"message": message}), code)
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return raw(operation, status, f"<ErrorResponse>{error}</ErrorResponse>")


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
        session = new_session()
        self.client, self.iam = session.client("lambda"), session.client("iam")

    def session(self) -> boto3.Session:
        session = new_session()
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

    def answer(self, operation: str, make: Any, *response: Any, times: int = 99) -> None:
        """operation に、times 回まで AWS の代わりに答える。"""
        left = [response] * times
        self.hook = lambda name, _: make(name, *left.pop()) if name == operation and left else None

    def state(self) -> dict[str, Any]:
        """デプロイの結果として残ったもの。"""
        versions = self.client.list_versions_by_function(FunctionName=deploy.FUNCTION_NAME)
        return {
            version["Version"]: (version["CodeSha256"], version["MemorySize"])
            for version in versions["Versions"]
        }


LOADER = botocore.loaders.create_loader()


def new_session() -> boto3.Session:
    """サービスのモデルを、テストごとに読み直さない。"""
    core = botocore.session.Session()
    core.register_component("data_loader", LOADER)
    return boto3.session.Session(botocore_session=core)


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
    monkeypatch.setattr(deploy, "time", aws.clock)
    monkeypatch.setattr(botocore.endpoint, "time", aws.clock)
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

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def failure(capsys: Any) -> str:
    """デプロイが残した 1 文。表示済みの出力は捨てる。AWS のエラーなら、名前で終わる。"""
    with pytest.raises(SystemExit) as stopped:
        deploy.main()
    capsys.readouterr()
    sentence = stopped.value.code
    assert isinstance(sentence, str)
    assert re.search(r"。(（\w.*）)?$", sentence)
    assert "\n" not in sentence
    return sentence


def change_app(monkeypatch: pytest.MonkeyPatch, addition: bytes = b"# changed\n") -> None:
    changed = io.BytesIO(deploy.build_zip())
    with zipfile.ZipFile(changed, "a") as archive:
        archive.writestr(zipfile.ZipInfo("changed.py"), addition)
    monkeypatch.setattr(deploy, "build_zip", changed.getvalue)


# ---- 作成する、もう一度、更新する -------------------------------------------------------


def test_first_run_creates_version_1_and_prints_how_to_invoke_it(aws: Aws, capsys: Any) -> None:
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


CHANGES: list[tuple[dict[str, Any], bool, set[str]]] = [
    ({}, False, set()),
    ({}, True, {"UpdateFunctionCode"}),
    ({"MemorySize": 512}, False, {"UpdateFunctionConfiguration"}),
    ({"DurableConfig": {"ExecutionTimeout": 60}}, False, {"UpdateFunctionConfiguration"}),
    ({"LoggingConfig": {"LogFormat": "Text"}}, True, UPDATES),
]


@pytest.mark.parametrize(("settings", "new_code", "updates"), CHANGES)
def test_running_again_updates_what_differs_and_keeps_old_versions(
    aws: Aws, monkeypatch: Any, capsys: Any, settings: Any, new_code: bool, updates: set[str]
) -> None:
    name = {"FunctionName": deploy.FUNCTION_NAME}
    deploy.main()
    first, before = aws.state()["1"], aws.client.get_function_configuration(**name)
    if settings:
        aws.client.update_function_configuration(**name, **settings)
    if new_code:
        change_app(monkeypatch)
    aws.calls.clear()
    capsys.readouterr()
    deploy.main()

    assert UPDATES & set(aws.calls) == updates
    assert ("変わっていません" in capsys.readouterr().out) == (not updates)
    assert aws.state()["1"] == first
    assert ("2" in aws.state()) >= new_code
    after = aws.client.get_function_configuration(**name)
    assert {key: after[key] for key in settings} == {key: before[key] for key in settings}
    assert (after["CodeSha256"] != before["CodeSha256"]) == new_code


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


OPERATIONS = [
    "GetRole",
    "CreateFunction",
    "GetFunctionConfiguration",
    "PublishVersion",
    *sorted(UPDATES),
]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", ["throttled", "server error", "lost answer"])
def test_any_call_may_fail_once(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, operation: str, fault: str
) -> None:
    wanted = ["$LATEST", "1"]
    if operation in UPDATES:
        deploy.main()
        change_app(monkeypatch)
        name = deploy.FUNCTION_NAME
        aws.client.update_function_configuration(FunctionName=name, MemorySize=512)
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


# ---- 待つ、同時に動く ---------------------------------------------------------------

UNSEEN = "The role defined for the function cannot be assumed by Lambda."


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
    aws.answer(operation, refusal, 400, code, message)
    sentence = failure(capsys)
    assert "1 分待ちました" in sentence
    assert sentence.endswith(f"（{code}: {message}）")
    assert 60 <= aws.clock.now <= 70
    aws.answer(operation, refusal, 400, code, message, times=2)
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
    failed = {status: "Failed", f"{status}Reason": "No key", f"{status}ReasonCode": "InvalidKey"}
    lasting = True

    def fail(name: str, parsed: dict[str, Any]) -> None:
        if name == "GetFunctionConfiguration" and (lasting or not set(aws.calls) >= UPDATES):
            parsed.update(failed)

    aws.edit = fail
    assert failure(capsys).endswith("もう一度実行してください。（InvalidKey: No key）")
    conflict = "It is in the following state: Failed"
    aws.answer("UpdateFunctionCode", refusal, 409, "ResourceConflictException", conflict)
    assert "InvalidKey" in failure(capsys)
    assert aws.clock.now == 0
    lasting, aws.hook = False, lambda name, request: None
    aws.calls.clear()
    deploy.main()
    assert set(aws.calls) >= UPDATES


OTHER = io.BytesIO()
with zipfile.ZipFile(OTHER, "w") as archive:
    archive.writestr("other.py", "")


def create_other(aws: Aws, **settings: Any) -> None:
    """ほかの人の関数。"""
    aws.client.create_function(
        FunctionName=deploy.FUNCTION_NAME,
        Role=aws.iam.get_role(RoleName=deploy.ROLE_NAME)["Role"]["Arn"],
        Handler="other.handler",
        Runtime="python3.13",
        Code={"ZipFile": OTHER.getvalue()},
        **settings,
    )


def test_two_deploys_at_once_never_publish_the_code_of_each_other(aws: Aws, capsys: Any) -> None:
    asked: list[str] = []

    def overtake(name: str, request: Any) -> Any:
        if name == "CreateFunction":
            create_other(aws, DurableConfig={"ExecutionTimeout": 60})
        if name != "PublishVersion":
            return None
        update = {"FunctionName": deploy.FUNCTION_NAME, "ZipFile": OTHER.getvalue()}
        asked.append(json.loads(request.body)["CodeSha256"])
        assert aws.state()["$LATEST"][0] == asked[-1]
        assert aws.client.update_function_code(**update)["CodeSha256"] != asked[-1]
        return refusal(name, 400, "InvalidParameterValueException", "is different")

    aws.hook = overtake
    assert "ほかの人が同じ関数をデプロイしています。しばらく" in failure(capsys)
    assert sorted(aws.state()) == ["$LATEST"]
    aws.hook = lambda name, request: None
    deploy.main()
    assert aws.state()["1"][0] == asked[0]


# ---- 周囲の誤り --------------------------------------------------------------------


def run_deploy(
    *arguments: str, folder: Path = ROOT, stdout: int = subprocess.PIPE, **environment: Any
) -> Any:
    names = {"FUNCTION_NAME": deploy.FUNCTION_NAME, "ROLE_NAME": deploy.ROLE_NAME}
    env = {**os.environ, **names, **environment}
    return subprocess.run(
        [sys.executable, *(arguments or ["deploy.py"])],
        cwd=folder,
        env={name: value for name, value in env.items() if value},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        start_new_session=True,  # MFA コードを入力するターミナルがない
        text=True,
        timeout=60,
    )


def profile(text: str) -> dict[str, str | None]:
    keys = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    return {**keys, ".aws/config": f"[default]\n{text}\n"}


EXPIRED = {"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "c"}
EXPIRED["Expiration"] = "2020-01-01T00:00:00Z"
ROLE = "role_arn = arn:aws:iam::123456789012:role/r\n"
KEYS = "[profile keys]\naws_access_key_id = a\naws_secret_access_key = b\n"
NOT_FOUND = "認証情報を取得できません。AWS_PROFILE などの設定を確認してください。（FileNotFound"


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "認証情報がない"),
        ({"AWS_ACCESS_KEY_ID": "a\nb"}, "認証情報がないか、読み取れません"),
        ({"AWS_SESSION_TOKEN": "secret\n"}, "Invalid header value …）"),
        ({"AWS_PROFILE": "nobody"}, "AWS_PROFILE などの設定を確認してください。（ProfileNotFound"),
        ({"AWS_CONFIG_FILE": __file__}, "ConfigParseError"),
        ({"AWS_DEFAULT_REGION": ""}, "リージョンが未設定か、正しくありません"),
        ({"AWS_DEFAULT_REGION": "ap_northeast_1"}, "リージョンが未設定か、正しくありません"),
        ({"AWS_DEFAULT_REGION": "ap-northeast-1 "}, "リージョンが未設定か、正しくありません"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:99999"}, "AWS_ENDPOINT_URL を http://"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:4566"}, "AWS_ENDPOINT_URL を http://"),
        ({"AWS_ENDPOINT_URL": "ftp://127.0.0.1"}, "AWS_ENDPOINT_URL を http://"),
        ({"FUNCTION_NAME": "order-processing-durable-bad name"}, "FUNCTION_NAME"),
        ({"FUNCTION_NAME": "order-processing-durable2"}, "durable-policy.json"),
        ({"FUNCTION_NAME": "my-order-processing-durable"}, "durable-policy.json"),
        ({"ROLE_NAME": "no-such-role"}, "ロールの作成」を実行してください。（NoSuchEntity"),
        (profile("credential_process = /no/such/program"), NOT_FOUND),
        (profile(f"{ROLE}web_identity_token_file = /no/such/token"), NOT_FOUND),
        (profile("credential_process = false"), "認証情報を取得できません"),
        (profile("credential_process = echo garbage"), "（JSONDecodeError: "),
        (profile("credential_process = echo []"), "認証情報を取得できません"),
        (profile(f"credential_process = echo '{json.dumps(EXPIRED)}'"), "認証情報を取得できません"),
        (profile(f"{ROLE}source_profile = nobody"), "（InvalidConfigError: "),
        ({"durable-policy.json": None}, "durable-policy.json"),
        ({"durable-policy.json": "\xff"}, "ファイルか出力を読み書きできません"),
        ({"durable-policy.json": "{}"}, "durable-policy.json"),
        ({"requirements.txt": None}, "requirements.txt"),
        ({"requirements.txt": "boto3\n"}, "requirements.txt に SDK の行がありません"),
        ({"requirements.txt": f"{deploy.SDK}==2.0.0\n"}, "requirements.txt の 2.0.0 と違います"),
        ({"app.py": "def handler(\n"}, "app.py を読み込めません。原因を取り除いて"),
        ({"app.py": ""}, "EXECUTION_TIMEOUT"),
    ],
)
def test_odd_surroundings_get_one_sentence(
    aws: Aws, tmp_path: Path, monkeypatch: Any, capsys: Any, odd: dict[str, Any], words: str
) -> None:
    for name in ("app.py", "durable-policy.json", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(deploy, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    if "app.py" in odd:
        monkeypatch.delitem(sys.modules, "app")
    for name, value in odd.items():
        if name in ("FUNCTION_NAME", "ROLE_NAME"):
            monkeypatch.setattr(deploy, name, value)
        elif "." not in name:
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
        elif value is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(value, "latin-1")
    assert words in failure(capsys)


def test_mfa_code_without_a_terminal_gets_one_sentence(aws: Aws, tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    source = f"{ROLE}source_profile = keys\nmfa_serial = me\n{KEYS}"
    (tmp_path / ".aws" / "config").write_text(f"[default]\n{source}")
    done = run_deploy(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "（EOFError: ）" in done.stderr


def test_python_without_boto3_gets_one_sentence() -> None:
    missing = r"boto3 がインストールされていません。.+requirements.txt.+\n"
    assert re.fullmatch(missing, run_deploy("-S", "deploy.py").stderr)


@pytest.mark.parametrize("output", ["full", "pipe", "closed"])
def test_output_that_cannot_be_written_gets_one_sentence(aws: Aws, output: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    closed = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, 'deploy.py'])"
    arguments = ["-c", closed] if output == "closed" else ["deploy.py"]
    with open("/dev/full" if output == "full" else writer, "w") as stdout:
        done = run_deploy(*arguments, stdout=stdout.fileno())
    assert done.returncode == 1
    assert re.fullmatch(r"ファイルか出力を読み書きできません。.+（\w+Error: .+）\n", done.stderr)


def test_output_without_japanese_still_shows_the_command(aws: Aws) -> None:
    done = run_deploy(PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"--function-name {deploy.FUNCTION_NAME}:1 \\\n" in done.stdout


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
    session = aws.session()
    client = session.client("lambda")
    shape = client.meta.service_model.operation_model("CreateFunction").input_shape
    shape.members.pop("DurableConfig")
    monkeypatch.setattr(session, "client", lambda *_, **__: client)
    monkeypatch.setattr(boto3, "Session", lambda: session)
    assert "DurableConfig" in failure(capsys)
    assert aws.calls == []


def test_fault_of_deploy_itself_keeps_its_traceback(aws: Aws, monkeypatch: Any) -> None:
    monkeypatch.delattr(deploy, "settled")
    with pytest.raises(NameError):
        deploy.main()


def test_ctrl_c_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "deploy", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit, match="もう一度実行すると、残りの処理を行います"):
        deploy.main()


# ---- 拒否と、AWS ではない応答 -------------------------------------------------------

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
        ("CreateFunction", "AccessDeniedException", DENIED.format("iam:PassRole"), "PassRole の"),
        ("CreateFunction", "ServiceQuotaExceededException", "quota", "クォータ"),
        ("CreateFunction", "CodeStorageExceededException", "limit", "クォータ"),
        ("GetFunctionConfiguration", "ResourceNotFoundException", "gone", "完了していない"),
        ("PublishVersion", "AccessDeniedException", "", "PublishVersion の権限がありません"),
    ],
)
def test_refusal_by_aws_gets_one_sentence_that_ends_with_its_name(
    aws: Aws, capsys: Any, operation: str, code: str, message: str, words: str
) -> None:
    aws.answer(operation, refusal, 403, code, message)
    sentence = failure(capsys)
    assert words in sentence
    denied = re.search(r"perform: (\S+)", message)
    assert f"（{code}: {denied[1] if denied else message}" in sentence


HALF = ["", "{}", '{"FunctionNa', "<html><p>Login</html>", "<GetRoleResponse>"]


@pytest.mark.parametrize("operation", ["GetRole", "GetFunctionConfiguration", "PublishVersion"])
@pytest.mark.parametrize("status", [200, 302, 404])
def test_nothing_is_concluded_from_half_an_answer(
    aws: Aws, capsys: Any, operation: str, status: int
) -> None:
    deploy.main()
    for body in HALF:
        aws.answer(operation, raw, status, body)
        sentence = failure(capsys)
        assert "AWS からの応答が途中までか、AWS 以外からの応答です" in sentence
        assert "delete" not in sentence


@pytest.mark.parametrize("reply", [None, b"", b"SSH-2.0\r\n", b"HTTP/1.1 200 OK\r\n\r\n<htm"])
@pytest.mark.parametrize("proxied", [False, True])
def test_endpoint_or_proxy_that_is_no_aws_gets_one_sentence(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, capsys: Any, reply: bytes | None, proxied: bool
) -> None:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(reply)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("HTTP_PROXY" if proxied else "AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("NO_PROXY", "" if proxied else "127.0.0.1")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        if reply is None:  # だれも待ち受けていない
            server.shutdown()
            server.server_close()
        assert "プロキシ、AWS_ENDPOINT_URL を確認し" in failure(capsys)
        server.shutdown()


# ---- ロールと、ほかの人の関数 -------------------------------------------------------

LAMBDA = json.loads((ROOT / "trust-policy.json").read_text("utf-8"))["Statement"][0]
ELSEWHERE = {"StringNotEquals": {"aws:SourceAccount": "123456789012"}}


@pytest.mark.parametrize(
    ("statement", "trusted"),
    [
        (LAMBDA, True),
        ([LAMBDA | {"Principal": {"Service": ["ec2", "lambda.amazonaws.com"]}}], True),
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
    command = f"aws lambda delete-function --function-name {deploy.FUNCTION_NAME} "
    assert sentence.index("FUNCTION_NAME を変える") < sentence.index(command)
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
