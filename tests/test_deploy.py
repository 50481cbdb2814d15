"""deploy.py を手元の AWS に向けて動かす: 何度でも、途中で止まっても、断られても。"""

import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterator
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


def answer(status: int, code: str, message: str = "") -> AWSResponse:
    """AWS の誤りの応答。IAM は XML、Lambda は JSON とヘッダーで読まれる。"""
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    xml = f"<ErrorResponse>{error}</ErrorResponse>"
    body = xml if code in IAM_CODES else json.dumps({"message": message})
    return AWSResponse("", status, {"x-amzn-errortype": code}, Body(body.encode()))


IAM_CODES = {"AccessDenied", "ExpiredToken", "Throttling", "InternalFailure", "Teapot"}
Hook = Callable[[str, Any], Any]


class Aws:
    """手元の AWS と、deploy.py が呼んだ API の記録。hook で応答を差し替え、killed_after で殺す。"""

    def __init__(self, server: LocalAws) -> None:
        self.server = server
        self.calls: list[str] = []
        self.hook: Hook = lambda name, request: None
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

    def _after_call(self, event_name: str, **_: Any) -> None:
        self.calls.append(event_name.rpartition(".")[2])
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
    """プロセスがここで殺された。"""


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
    """デプロイが残した 1 文。表示済みの出力は捨てる。"""
    with pytest.raises(SystemExit) as stopped:
        deploy.main()
    capsys.readouterr()
    sentence = stopped.value.code
    assert isinstance(sentence, str)
    assert re.search(r"。$", sentence)
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


# ---- 作る、もう一度、更新する -------------------------------------------------------


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
    assert len(calls) >= 6
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
    "GetFunction",
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
            return answer(429, code, "Rate exceeded")
        if fault == "lost answer":
            URLLib3Session().send(request)
        return answer(500, "InternalFailure" if operation == "GetRole" else "ServiceException")

    aws.hook = fail_once
    deploy.main()

    assert failed == [operation]
    assert sorted(aws.state()) == wanted


# ---- 待つ --------------------------------------------------------------------------

UNSEEN = "The role defined for the function cannot be assumed by Lambda."


def test_role_that_is_not_yet_visible_is_waited_for(
    aws: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    refusals = iter([answer(400, "InvalidParameterValueException", UNSEEN)] * 2)
    aws.hook = lambda name, _: next(refusals, None) if name == "CreateFunction" else None
    deploy.main()

    waiting = f"ロール {deploy.ROLE_NAME} が Lambda に届くのを待っています\n"
    assert capsys.readouterr().out.count(waiting) == 2
    assert sorted(aws.state()) == ["$LATEST", "1"]


def test_waiting_for_the_role_is_bounded(aws: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    aws.hook = lambda name, _: (
        answer(400, "InvalidParameterValueException", UNSEEN) if name == "CreateFunction" else None
    )
    assert "1 分待ちました" in failure(capsys)
    assert 60 <= aws.clock.now <= 70


def test_update_in_progress_is_waited_for(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    deploy.main()
    change_app(monkeypatch)
    conflicts = iter([answer(409, "ResourceConflictException", "An update is in progress")] * 2)
    aws.hook = lambda name, _: next(conflicts, None) if name == "UpdateFunctionCode" else None
    deploy.main()
    assert sorted(aws.state()) == ["$LATEST", "1", "2"]


@pytest.mark.parametrize(
    "busy",
    [{"State": "Pending"}, {"LastUpdateStatus": "InProgress"}, {"State": "Inactive"}],
)
def test_unsettled_function_is_waited_for(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, busy: dict[str, str]
) -> None:
    deploy.main()
    change_app(monkeypatch)
    left = [busy] * 3

    def unsettle(parsed: dict[str, Any], **_: Any) -> None:
        if left:
            parsed["Configuration"] |= left.pop()

    create = aws.session

    def session() -> boto3.Session:
        session = create()
        session.events.register("after-call.lambda.GetFunction", unsettle)
        return session

    monkeypatch.setattr(boto3, "Session", session)
    deploy.main()
    assert left == []
    assert sorted(aws.state()) == ["$LATEST", "1", "2"]


def test_waiting_for_a_stuck_function_is_bounded(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy.main()
    create = aws.session

    def session() -> boto3.Session:
        session = create()
        session.events.register(
            "after-call.lambda.GetFunction",
            lambda parsed, **_: parsed["Configuration"].update(State="Pending"),
        )
        return session

    monkeypatch.setattr(boto3, "Session", session)
    assert "もう一度実行してください" in failure(capsys)
    assert 110 <= aws.clock.now <= 120


# ---- 断られる ----------------------------------------------------------------------


def run_deploy(*arguments: str, **environment: str) -> Any:
    command = [sys.executable, *(arguments or ["deploy.py"])]
    env = {**os.environ, **environment}
    return subprocess.run(
        command,
        cwd=ROOT,
        env={name: value for name, value in env.items() if value},
        capture_output=True,
        text=True,
        timeout=60,
    )


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "認証情報がありません"),
        ({"AWS_PROFILE": "nobody"}, "AWS_PROFILE"),
        ({"AWS_DEFAULT_REGION": ""}, "リージョンが決まりません"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:{closed}"}, "AWS_ENDPOINT_URL"),
        ({"FUNCTION_NAME": "bad name"}, "FUNCTION_NAME"),
        ({"FUNCTION_NAME": "a" * 65}, "FUNCTION_NAME"),
        ({"FUNCTION_NAME": "order-processing"}, "durable-policy.json"),
        ({"FUNCTION_NAME": "order-processing-durable2"}, "durable-policy.json"),
        ({"FUNCTION_NAME": "my-order-processing-durable"}, "durable-policy.json"),
        ({"ROLE_NAME": "no-such-role"}, "1. IAM ロールの作成"),
        ({"ROLE_NAME": "bad name"}, "ROLE_NAME"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:4566"}, "AWS_ENDPOINT_URL"),
        ({"ROLE_NAME": "a" * 65}, "ROLE_NAME"),
    ],
)
def test_unusable_environment_gets_one_sentence_on_stderr(
    aws: Aws, environment: dict[str, str], words: str
) -> None:
    port = closed_port()
    done = run_deploy(**{k: v.format(closed=port) for k, v in environment.items()})
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_python_without_boto3_gets_one_sentence() -> None:
    done = run_deploy("-S", "deploy.py")
    assert done.returncode == 1
    assert re.fullmatch(r"boto3 がありません。.+requirements.txt.+\n", done.stderr)


def test_other_sdk_version_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, aws: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "requirements.txt").write_text(f"{deploy.SDK}==2.0.0\n")
    shutil.copy(ROOT / "durable-policy.json", tmp_path)
    monkeypatch.setattr(deploy, "ROOT", tmp_path)
    assert "2.0.0" in failure(capsys)
    assert aws.calls == []


def test_boto3_without_durable_config_is_refused(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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


@pytest.mark.parametrize(
    ("operation", "response", "words"),
    [
        ("GetRole", answer(403, "ExpiredToken", "expired"), "期限"),
        (
            "GetRole",
            answer(403, "AccessDenied", "User: x is not authorized to perform: iam:GetRole on"),
            "iam:GetRole ",
        ),
        (
            "CreateFunction",
            answer(403, "AccessDeniedException", "is not authorized to perform: iam:PassRole on"),
            "iam:PassRole ",
        ),
        ("PublishVersion", answer(403, "AccessDeniedException", ""), "PublishVersion "),
        ("GetFunction", answer(403, "AccessDeniedException", ""), "GetFunction "),
        (
            "GetFunctionConfiguration",
            answer(403, "UnrecognizedClientException", "The security token is invalid"),
            "認証情報",
        ),
    ],
)
def test_refusal_by_aws_gets_one_sentence(
    aws: Aws,
    capsys: pytest.CaptureFixture[str],
    operation: str,
    response: AWSResponse,
    words: str,
) -> None:
    aws.hook = lambda name, _: response if name == operation else None
    assert words in failure(capsys)


def test_role_that_lambda_may_not_assume_is_refused(
    aws: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    trust = (ROOT / "trust-policy.json").read_text("utf-8").replace("lambda.", "ec2.")
    aws.iam.update_assume_role_policy(RoleName=deploy.ROLE_NAME, PolicyDocument=trust)
    assert "1. IAM ロールの作成" in failure(capsys)


def test_function_that_is_not_durable_is_refused_with_how_to_delete_it(
    aws: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    aws.client.create_function(
        FunctionName=deploy.FUNCTION_NAME,
        Role=aws.iam.get_role(RoleName=deploy.ROLE_NAME)["Role"]["Arn"],
        Handler="app.handler",
        Runtime="python3.13",
        Code={"ZipFile": deploy.build_zip()},
    )
    command = f"aws lambda delete-function --function-name {deploy.FUNCTION_NAME}"
    assert command in failure(capsys)


def test_ctrl_c_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(deploy, "deploy", interrupted)
    with pytest.raises(SystemExit, match="もう一度実行すれば、続きから終わります"):
        deploy.main()


def test_unforeseen_refusal_is_shown_as_aws_words_it(
    aws: Aws, capsys: pytest.CaptureFixture[str]
) -> None:
    aws.hook = lambda name, _: answer(418, "Teapot") if name == "GetRole" else None
    assert "Teapot" in failure(capsys)


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
