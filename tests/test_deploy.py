"""deploy.py をローカル AWS に向けて動かす: 何度でも、途中で止まっても、拒否されても。"""

import io
import os
import re
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import boto3
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
        self.code, self.killed_at, self.calls = FIRST, 0, list[str]()
        self.session, self.time = boto3.Session(), Mock()
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", self.session)
        monkeypatch.setattr(deploy, "build_zip", lambda: self.code)
        monkeypatch.setattr(deploy, "time", self.time)
        monkeypatch.setattr("botocore.waiter.time", self.time)
        self.on = self.session.events.register
        self.on("before-call", self.called)
        self.take_new_name()

    def take_new_name(self) -> None:
        self.name = {"FunctionName": f"order-processing-durable-{uuid.uuid4().hex[:8]}"}
        self.monkeypatch.setattr(deploy, "FUNCTION_NAME", self.name["FunctionName"])

    def called(self, model: Any, **_: Any) -> None:
        self.calls.append(model.name)
        if len(self.calls) == self.killed_at:
            raise KeyboardInterrupt

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
    alone = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in (account.environment | alone).items():
        monkeypatch.setenv(name, value)
    return Aws(account, monkeypatch)


def run(*arguments: str, folder: Path = deploy.ROOT, env: Any = (), **started: Any) -> Any:
    names = {"FUNCTION_NAME": deploy.FUNCTION_NAME, "ROLE_NAME": deploy.ROLE_NAME}
    command, env = [sys.executable, "deploy.py", *arguments], {**os.environ, **names, **dict(env)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, **started)


def test_first_run_creates_version_1_with_the_same_zip_everywhere(aws: Aws) -> None:
    done = run(env={"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"}, umask=0o77)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"--function-name {deploy.FUNCTION_NAME}:1 \\\n" in done.stdout
    function = aws.functions.get_function_configuration(**aws.name, Qualifier="1")
    assert function["DurableConfig"] == {"ExecutionTimeout": 1200, "RetentionPeriodInDays": 1}
    aws.code = BUILD_ZIP()
    deploy.deploy()
    assert not {CODE, CONFIGURATION} & set(aws.calls)
    with zipfile.ZipFile(io.BytesIO(aws.code)) as archive:
        assert archive.read("app.py") == (deploy.ROOT / "app.py").read_bytes()
        names, entries = archive.namelist(), archive.infolist()
    assert names == sorted(names)
    assert {name.split("/")[0] for name in names} == {"app.py", "aws_durable_execution_sdk_python"}
    fixed = {(e.filename[-3:], e.external_attr >> 16, e.date_time[0]) for e in entries}
    assert fixed == {(".py", 0o100644, 1980)}


RERUNS = [
    ("", {}, FIRST, set()),
    ("", {}, CHANGED, {CODE}),
    ("code", {"ZipFile": FIRST, "Architectures": ["x86_64"]}, FIRST, {CODE}),
    ("configuration", {"MemorySize": 512}, FIRST, {CONFIGURATION}),
    ("configuration", {"LoggingConfig": {"LogFormat": "Text"}}, CHANGED, {CODE, CONFIGURATION}),
]


@pytest.mark.parametrize("rerun", RERUNS, ids=range(5))
def test_running_again_updates_what_differs_alone(aws: Aws, capsys: Any, rerun: Any) -> None:
    by_hand, changes, code, updates = rerun
    deploy.deploy()
    first, aws.code = aws.versions()["1"], code
    if by_hand:
        getattr(aws.functions, f"update_function_{by_hand}")(**aws.name, **changes)
    for expected in (updates, set[str]()):
        aws.calls.clear()
        capsys.readouterr()
        deploy.deploy()
        assert {CODE, CONFIGURATION, "CreateFunction"} & set(aws.calls) == expected
        assert ("変わっていません" in capsys.readouterr().out) == (not expected)
        assert list(aws.versions()) == ["$LATEST", "1", *["2"] * bool(updates)]
    assert aws.versions()["1"] == first


@pytest.mark.parametrize("deployed_before", [False, True])
def test_killed_at_any_call_and_run_again_ends_the_same(aws: Aws, deployed_before: bool) -> None:
    ends = []
    for number in count():  # 0 回目では止まらない
        aws.take_new_name()
        aws.code, aws.killed_at = CHANGED, 0
        if deployed_before:
            deploy.deploy()
            aws.functions.update_function_configuration(**aws.name, MemorySize=512)
        aws.code, aws.killed_at = FIRST, number
        aws.calls.clear()
        with suppress(KeyboardInterrupt):
            deploy.deploy()
            if number:  # もう、止まる呼び出しがない
                break
        deploy.deploy()
        ends.append(aws.versions())
    assert ends == [ends[0]] * (1 + len(aws.calls))


def test_new_role_is_waited_for_one_minute(aws: Aws, capsys: Any) -> None:
    cannot: Any = {"Error": {"Code": "Invalid", "Message": "The role cannot be assumed."}}
    refusal = ClientError(cannot, "CreateFunction")
    assert deploy.when_role_is_ready(Mock(side_effect=[refusal, "created"])) == "created"
    assert "伝播を待っています" in capsys.readouterr().out
    with pytest.raises(ClientError, match="cannot be assumed"):
        deploy.when_role_is_ready(Mock(side_effect=refusal))
    assert sum(each.args[0] for each in aws.time.sleep.mock_calls) == 65


def test_two_deploys_at_once_never_publish_the_code_of_each_other(aws: Aws) -> None:
    other, name = aws.functions.update_function_code, aws.name
    aws.on("before-call.lambda.PublishVersion", lambda **_: other(**name, ZipFile=CHANGED) and None)
    with pytest.raises(ClientError, match="InvalidParameterValueException"):
        deploy.deploy()
    assert list(aws.versions()) == ["$LATEST"]


LIKELY = [  # 環境変数か、ファイルか、引数
    ("AWS_ACCESS_KEY_ID", "", "認証情報がありません。"),
    ("AWS_DEFAULT_REGION", "", "リージョンが設定されていません。"),
    ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "接続できません。.+（EndpointConnectionError: "),
    ("ROLE_NAME", "no-role", r"ロール no-role がありません。README の手順 1.+（NoSuchEntity"),
    ("FUNCTION_NAME", "order-processing-durablesato", "durablesato には.+SUFFIX を -sato"),
    ("AWS_ENDPOINT_URL", "localhost", "（ValueError: Invalid endpoint"),
    ("AWS_PROFILE", "nobody", "（ProfileNotFound: The config profile"),
    ("app.py", "\n\nLIMIT = Duration\n", "app.py の 3 行目.+（NameError: .*'Duration'"),
    ("app.py", "def handler(\n", "app.py の 1 行目.+（SyntaxError: .*line 1"),
    ("boto3.py", "import os\nos.kill(os.getpid(), 2)\n", "中断しました。"),
    ("--help", "", "引数はありません。"),
    ("boto3.py", "import nowhere\n", "「準備」.+（ModuleNotFoundError: .*'nowhere'"),
]


@pytest.mark.parametrize("failure", LIKELY, ids=str)
def test_likely_failure_is_one_sentence(aws: Aws, tmp_path: Path, failure: Any) -> None:
    name, value, words = failure
    for file in ("app.py", "deploy.py"):
        (tmp_path / file).write_bytes((deploy.ROOT / file).read_bytes())
    if name.endswith(".py"):
        (tmp_path / name).write_text(value)
    arguments = [name] if name.startswith("--") else []
    done = run(*arguments, folder=tmp_path, env={name: value})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert re.search(words, done.stderr)


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


FAILED = '{"Configuration": {"LastUpdateStatus": "Failed", "LastUpdateStatusReason": "No key."}}'
ODD = [
    ("GetRole", 200, "<p>Login", "ResponseParserError: Unable to parse .+"),
    ("CreateFunction", 200, "<p>Login", "KeyError: 'FunctionName'"),
    ("GetFunctionConfiguration", 200, "{}", "KeyError: 'State'"),
    ("GetFunctionConfiguration", 404, "<p>No", "404: <p>No"),
    ("GetFunction", 200, FAILED, "WaiterError: .+ No key."),
    (CODE, 200, "{}", "KeyError: 'FunctionName'"),
    (CONFIGURATION, 200, '{"Funct', "KeyError: 'FunctionName'"),
    ("PublishVersion", 302, "<p>Moved", "302: <p>Moved"),
]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_nothing_is_claimed_that_aws_has_not_said(aws: Aws, capsys: Any, odd: Any) -> None:
    operation, status, body, words = odd
    if operation not in ("GetRole", "CreateFunction"):
        deploy.deploy()
        memory = 512 if operation == CONFIGURATION else 256
        aws.functions.update_function_configuration(**aws.name, MemorySize=memory)
        aws.code = CHANGED if operation == CODE else FIRST
    capsys.readouterr()
    answer = AWSResponse("", status, {}, Mock(stream=lambda: [body.encode()]))
    aws.on(f"before-send.*.{operation}", lambda **_: answer)
    with pytest.raises(Exception) as stopped:  # noqa: PT011 何が応答しても
        deploy.deploy()
    assert re.fullmatch(
        f"AWS から結果を得られませんでした。（{words}）", deploy.explain(stopped.value)
    )
    assert not re.search("作成しま|更新しま|呼び出せ", capsys.readouterr().out)


def test_silent_server_is_given_up_within_a_minute(aws: Aws) -> None:
    client, limits = boto3.client, {}
    aws.monkeypatch.setattr(boto3, "client", lambda s, **o: limits.update(o) or client(s, **o))
    silent = Mock(side_effect=ReadTimeoutError(endpoint_url=""))
    aws.monkeypatch.setattr("botocore.httpsession.URLLib3Session.send", silent)
    with pytest.raises(ReadTimeoutError):
        deploy.deploy()
    assert silent.call_count * limits["config"].read_timeout <= 60
