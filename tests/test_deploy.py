"""deploy.py をローカル AWS に向けて動かす: 何度でも、途中で止まっても、拒否されても。"""

import io
import os
import re
import shutil
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import boto3
import botocore.waiter
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError, ReadTimeoutError

import deploy
from tests.local_aws.gateway import LocalAws
from tests.support.account import Account

BUILD_ZIP = deploy.build_zip
CODE, CONFIGURATION = "UpdateFunctionCode", "UpdateFunctionConfiguration"
FIRST, CHANGED = b"first", b"changed"  # zip の代わり


class Aws:
    """ローカル AWS。deploy.py が呼んだ API を記録し、killed_at 回目で強制終了させる。"""

    def __init__(self, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
        self.account, self.functions, self.monkeypatch = account, account.functions, monkeypatch
        self.code, self.killed_at, self.slept = FIRST, 0, 0
        self.calls: list[str] = []
        self.session = boto3.Session()
        self.on = self.session.events.register
        self.on("before-call", self.called)
        self.take_new_name()

    def take_new_name(self) -> None:
        self.name = {"FunctionName": f"order-processing-durable-{uuid.uuid4().hex[:8]}"}
        self.monkeypatch.setattr(deploy, "FUNCTION_NAME", self.name["FunctionName"])

    def called(self, model: Any, **_: Any) -> None:
        self.calls.append(model.name)
        if len(self.calls) == self.killed_at:
            raise BaseException("killed")

    def sleep(self, seconds: int) -> None:
        self.slept += seconds

    def configure(self, **settings: Any) -> None:
        self.functions.update_function_configuration(**self.name, **settings)

    def versions(self) -> dict[str, Any]:
        found = self.functions.list_versions_by_function(**self.name)["Versions"]
        return {v["Version"]: (v["CodeSha256"], v["MemorySize"]) for v in found}


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    """ロールだけがある AWS のアカウント。"""
    with LocalAws() as server, pytest.MonkeyPatch.context() as monkeypatch:
        account = Account(server.endpoint, server.access_key)
        monkeypatch.setattr(deploy, "ROLE_NAME", account.role().rpartition("/")[2])
        yield account


@pytest.fixture
def aws(account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Aws:
    for name, value in (account.environment | {"HOME": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    aws = Aws(account, monkeypatch)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", aws.session)
    monkeypatch.setattr(deploy, "build_zip", lambda: aws.code)
    monkeypatch.setattr(deploy, "time", aws)
    monkeypatch.setattr(botocore.waiter, "time", aws)
    return aws


def run(*arguments: str, folder: Path = deploy.ROOT, env: Any = (), **started: Any) -> Any:
    names = {"FUNCTION_NAME": deploy.FUNCTION_NAME, "ROLE_NAME": deploy.ROLE_NAME}
    command, env = [sys.executable, "deploy.py", *arguments], {**os.environ, **names, **dict(env)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, **started)


def only_sentence(done: Any) -> str:
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    return str(done.stderr)


# ---- 作成する、もう一度、更新する -------------------------------------------------------


def test_first_run_creates_version_1_with_the_same_zip_everywhere(aws: Aws) -> None:
    done = run(env={"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"}, umask=0o77)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"--function-name {deploy.FUNCTION_NAME}:1 \\\n" in done.stdout
    function = aws.functions.get_function_configuration(**aws.name, Qualifier="1")
    wanted = {**deploy.SETTINGS, **deploy.ARM, "LoggingConfig": function["LoggingConfig"]}
    assert wanted.items() <= function.items()
    assert function["DurableConfig"] == {"ExecutionTimeout": 1200, "RetentionPeriodInDays": 1}
    assert function["Role"].endswith(f":role/{deploy.ROLE_NAME}")
    aws.code = BUILD_ZIP()
    deploy.deploy()
    assert not {CODE, CONFIGURATION} & set(aws.calls)


RERUNS = [
    *(({}, FIRST, set()), ({}, CHANGED, {CODE})),
    *(({s: v}, FIRST, {CONFIGURATION}) for s, v in (("MemorySize", 512), ("Timeout", 3))),
    ({"LoggingConfig": {"LogFormat": "Text"}}, CHANGED, {CODE, CONFIGURATION}),
]


@pytest.mark.parametrize("rerun", RERUNS, ids=range(5))
def test_running_again_updates_what_differs_alone(aws: Aws, capsys: Any, rerun: Any) -> None:
    settings, code, updates = rerun
    deploy.deploy()
    first, aws.code = aws.versions()["1"], code
    if settings:
        aws.configure(**settings)
    aws.calls.clear()
    capsys.readouterr()
    deploy.deploy()
    assert {CODE, CONFIGURATION, "CreateFunction"} & set(aws.calls) == updates
    assert ("変わっていません" in capsys.readouterr().out) == (not updates)
    assert ("2" in aws.versions()) == bool(updates)
    assert aws.versions()["1"] == first


def test_zip_holds_app_and_the_sdk_and_nothing_else() -> None:
    with zipfile.ZipFile(io.BytesIO(BUILD_ZIP())) as archive:
        assert archive.read("app.py") == (deploy.ROOT / "app.py").read_bytes()
        names, entries = archive.namelist(), archive.infolist()
    assert names == sorted(names)
    assert {name.split("/")[0] for name in names} == {"app.py", "aws_durable_execution_sdk_python"}
    assert {(e.filename[-3:], e.external_attr >> 16) for e in entries} == {(".py", 0o100644)}


# ---- 途中で止まる、待つ、同時に動く ----------------------------------------------------


def test_killed_at_any_call_and_run_again_ends_as_if_it_had_not_been(aws: Aws) -> None:
    def start(deployed_before: bool) -> None:
        aws.take_new_name()
        aws.code, aws.killed_at = CHANGED, 0
        if deployed_before:
            deploy.deploy()
            aws.configure(MemorySize=512)
        aws.code = FIRST
        aws.calls.clear()

    for deployed_before in (False, True):
        start(deployed_before)
        deploy.deploy()
        wanted, calls = aws.versions(), list(aws.calls)
        for number, name in enumerate(calls, start=1):
            start(deployed_before)
            aws.killed_at = number
            with pytest.raises(BaseException, match="killed"):
                deploy.deploy()
            deploy.deploy()
            assert aws.versions() == wanted, name


def test_new_role_is_waited_for_one_minute(aws: Aws, capsys: Any) -> None:
    cannot: Any = {"Error": {"Code": "Invalid", "Message": "The role cannot be assumed."}}
    refusal = ClientError(cannot, "CreateFunction")
    assert deploy.when_role_is_ready(Mock(side_effect=[refusal, "created"])) == "created"
    assert "伝播を待っています" in capsys.readouterr().out
    with pytest.raises(ClientError, match="cannot be assumed"):
        deploy.when_role_is_ready(Mock(side_effect=refusal))
    assert aws.slept == 65


def test_update_in_progress_is_waited_for_and_a_failed_one_says_why(aws: Aws) -> None:
    deploy.deploy()
    why = {"LastUpdateStatusReason": "The key is disabled."}
    answers = [{"LastUpdateStatus": "InProgress"}, {"LastUpdateStatus": "Failed", **why}]
    ok = Mock(status_code=200)
    aws.on("before-call.lambda.GetFunction", lambda **_: (ok, {"Configuration": answers.pop(0)}))
    with pytest.raises(botocore.waiter.WaiterError) as stopped:
        deploy.deploy()
    assert deploy.explain(stopped.value).endswith("The key is disabled.）")


def test_two_deploys_at_once_never_publish_the_code_of_each_other(aws: Aws) -> None:
    other, name = aws.functions.update_function_code, aws.name
    aws.on("before-call.lambda.PublishVersion", lambda **_: other(**name, ZipFile=CHANGED) and None)
    with pytest.raises(ClientError, match="InvalidParameterValueException"):
        deploy.deploy()
    assert list(aws.versions()) == ["$LATEST"]


# ---- 失敗を 1 文で ------------------------------------------------------------------

NO_KEYS = dict.fromkeys(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], "")
NO_KEYS |= {"AWS_EC2_METADATA_DISABLED": "true"}
NOBODY = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "認証情報がありません。",
        ),
        ({"AWS_DEFAULT_REGION": ""}, "リージョンが設定されていません。"),
        (NOBODY, r"接続できません。ローカル AWS.+（EndpointConnectionError: Could not"),
        ({"ROLE_NAME": "no-role"}, r"ロール no-role がありません。README の手順 1.+（NoSuchEntity"),
        ({"FUNCTION_NAME": "order-processing-durablesato"}, "durablesato には.+SUFFIX を -sato"),
        ({"FUNCTION_NAME": "other"}, "SUFFIX を -sato"),
        ({"AWS_ENDPOINT_URL": "localhost"}, "（ValueError: Invalid endpoint"),
        ({"AWS_PROFILE": "nobody"}, "（ProfileNotFound: The config profile"),
    ],
)
def test_likely_failure_is_one_sentence_with_its_cause(aws: Aws, env: Any, words: str) -> None:
    assert re.search(words, only_sentence(run(env=env)))


@pytest.mark.parametrize("code", ["ExpiredToken", "AccessDenied", "ExpiredAccessDenied"])
def test_refusal_is_known_by_its_exact_name_and_its_reason_is_kept(code: str) -> None:
    why = "x is not authorized to perform: iam:PassRole with an explicit deny in an SCP"
    known = {"ExpiredToken": "認証情報の期限切れです", "AccessDenied": "権限がありません"}
    for name in (code, f"{code}Exception"):
        sentence = deploy.explain(ClientError({"Error": {"Code": name, "Message": why}}, "GetRole"))
        assert sentence.startswith(known.get(code, "AWS から結果を得られませんでした。"))
        assert sentence.endswith(f"（{name}: {why}）")


def test_function_that_is_not_durable_is_left_to_its_owner(aws: Aws) -> None:
    aws.account.create(FIRST, **aws.name, DurableConfig=None)
    with pytest.raises(SystemExit, match=r"durable ではありません。SUFFIX を変えて"):
        deploy.deploy()
    assert aws.calls == ["GetRole", "GetFunctionConfiguration", "GetFunction"]


ODD = [
    *(("GetRole", 200, "<p>Login"), ("CreateFunction", 200, "<p>Login"), (CODE, 200, "{}")),
    *(("GetFunctionConfiguration", 200, "{}"), ("GetFunctionConfiguration", 404, "<p>No")),
    *((CONFIGURATION, 200, '{"Funct'), ("PublishVersion", 302, "<p>Moved")),
]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_nothing_is_claimed_that_aws_has_not_said(aws: Aws, capsys: Any, odd: Any) -> None:
    operation, status, body = odd
    if operation not in ("GetRole", "CreateFunction"):
        deploy.deploy()
        aws.configure(MemorySize=512 if operation == CONFIGURATION else 256)
        aws.code = CHANGED if operation == CODE else FIRST
    capsys.readouterr()
    answer = AWSResponse("", status, {}, Mock(stream=lambda: [body.encode()]))
    aws.on(f"before-send.*.{operation}", lambda **_: answer)
    with pytest.raises(Exception) as stopped:  # noqa: PT011 何が応答しても
        deploy.deploy()
    assert "\n" not in deploy.explain(stopped.value)
    assert not re.search("作成しま|更新しま|呼び出せ", capsys.readouterr().out)


def test_silent_server_is_given_up_within_a_minute(aws: Aws) -> None:
    client, limits = boto3.client, {}
    aws.monkeypatch.setattr(boto3, "client", lambda s, **o: limits.update(o) or client(s, **o))
    silent = Mock(side_effect=ReadTimeoutError(endpoint_url=""))
    aws.monkeypatch.setattr("botocore.httpsession.URLLib3Session.send", silent)
    with pytest.raises(ReadTimeoutError):
        deploy.deploy()
    assert silent.call_count * limits["config"].read_timeout <= 60


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("app.py", "\n\nLIMIT = Duration\n", "app.py の 3 行目.+（NameError: .*'Duration'"),
        ("app.py", "def handler(\n", "app.py の 1 行目.+（SyntaxError: .*line 1"),
        ("boto3.py", "import os\nos.kill(os.getpid(), 2)\n", "中断しました。"),
        ("boto3.py", "import nowhere\n", "「準備」.+（ModuleNotFoundError: .*'nowhere'"),
    ],
)
def test_failing_import_is_one_sentence(tmp_path: Path, file: str, text: str, words: str) -> None:
    for name in ("app.py", "deploy.py"):
        shutil.copy(deploy.ROOT / name, tmp_path)
    (tmp_path / file).write_text(text)
    assert re.search(words, only_sentence(run(folder=tmp_path)))


def test_any_argument_is_answered_and_deploys_nothing() -> None:
    assert "引数はありません" in only_sentence(run("--help", env=NOBODY))
