"""deploy.py をローカル AWS に向けて動かす: 何度でも、途中で止まっても、拒否されても。"""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator
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
from botocore.model import StructureShape

import deploy
from tests.local_aws.gateway import LocalAws
from tests.support.account import Account

ROOT = Path(deploy.__file__).parent
BUILD_ZIP = deploy.build_zip
LOADER = botocore.loaders.create_loader()  # サービスのモデルを、テストごとに読み直さない
UPDATES = {"UpdateFunctionCode", "UpdateFunctionConfiguration"}


def digest(code: bytes) -> str:
    return base64.b64encode(hashlib.sha256(code).digest()).decode()


FIRST, CHANGED, OTHER = b"first", b"changed", b"other"  # zip の代わり


class Aws:
    """ローカル AWS。deploy.py が呼んだ API を記録し、answers があれば、AWS の代わりに答える。"""

    def __init__(self, account: Account, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.account, self.functions = account, account.functions
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.code = FIRST
        self.calls: list[str] = []
        self.answers: dict[str, list[dict[str, Any]]] = {}
        self.killed_at = self.slept = 0
        core = botocore.session.Session()
        core.register_component("data_loader", LOADER)
        self.session = boto3.session.Session(botocore_session=core)
        self.events = self.session.events
        self.events.register("before-call", self.called)
        self.take_new_name()

    def take_new_name(self) -> None:
        name = f"order-processing-durable-{uuid.uuid4().hex[:8]}"
        self.monkeypatch.setattr(deploy, "FUNCTION_NAME", name)

    def called(self, model: Any, **_: Any) -> Any:
        self.calls.append(model.name)
        if len(self.calls) == self.killed_at:
            raise BaseException("killed")
        if not self.answers.get(model.name):
            return None
        answer = self.answers[model.name].pop()
        return Mock(status_code=400 if "Error" in answer else 200), answer

    def sleep(self, seconds: int) -> None:
        self.slept += seconds

    def failure(self) -> str:
        """デプロイが残した 1 文。表示済みの出力は捨てる。AWS のエラーなら、名前で終わる。"""
        with pytest.raises(SystemExit) as stopped:
            deploy.main()
        self.capsys.readouterr()
        sentence = stopped.value.code
        assert isinstance(sentence, str)
        assert re.search(r"。(（\w.*）)?$", sentence)
        assert "\n" not in sentence
        return sentence

    def function(self) -> Any:
        return self.functions.get_function_configuration(FunctionName=deploy.FUNCTION_NAME)

    def configure(self, **settings: Any) -> None:
        name = deploy.FUNCTION_NAME
        self.functions.update_function_configuration(FunctionName=name, **settings)

    def versions(self) -> dict[str, Any]:
        """デプロイの結果として残ったもの。"""
        found = self.functions.list_versions_by_function(FunctionName=deploy.FUNCTION_NAME)
        return {v["Version"]: (v["CodeSha256"], v["MemorySize"]) for v in found["Versions"]}


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    """ロールだけがある AWS のアカウント。"""
    with LocalAws() as server, pytest.MonkeyPatch.context() as monkeypatch:
        account = Account(server.endpoint, server.access_key)
        monkeypatch.setattr(deploy, "ROLE_NAME", account.role().rpartition("/")[2])
        yield account


@pytest.fixture
def aws(account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Aws:
    here = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in (account.environment | here).items():
        monkeypatch.setenv(name, value)
    aws = Aws(account, monkeypatch, capsys)
    monkeypatch.setattr(boto3, "Session", lambda: aws.session)
    monkeypatch.setattr(deploy, "build_zip", lambda: aws.code)
    monkeypatch.setattr(deploy, "time", aws)
    monkeypatch.setattr(botocore.endpoint, "time", aws)
    return aws


def refusal(code: str, message: str = "") -> dict[str, Any]:
    return {"Error": {"Code": code, "Message": message}}


def run_deploy(environment: dict[str, str], *options: str, **started: Any) -> Any:
    names = {"FUNCTION_NAME": deploy.FUNCTION_NAME, "ROLE_NAME": deploy.ROLE_NAME}
    return subprocess.run(
        [sys.executable, *options, "deploy.py"],
        cwd=ROOT,
        env={**os.environ, **names, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,  # MFA コードを入力するターミナルがない
        text=True,
        timeout=60,
        **started,
    )


# ---- 作成する、もう一度、更新する -------------------------------------------------------


def test_first_run_creates_version_1_and_prints_how_to_invoke_it(aws: Aws) -> None:
    """zip はどこで作成しても同じになる。日本語を表示できなくても、コマンドは表示する。"""
    elsewhere = {"PYTHONIOENCODING": "ascii", "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"}
    done = run_deploy(elsewhere, umask=0o77)

    assert (done.returncode, done.stderr) == (0, "")
    assert f"--function-name {deploy.FUNCTION_NAME}:1 \\\n" in done.stdout
    assert sorted(aws.versions()) == ["$LATEST", "1"]
    function = aws.function()
    assert function["CodeSha256"] == digest(BUILD_ZIP())
    assert function["DurableConfig"] == {"ExecutionTimeout": 1200, "RetentionPeriodInDays": 1}
    logging = {"LogFormat": "JSON", "ApplicationLogLevel": "INFO"}
    assert function["LoggingConfig"].items() >= logging.items()
    assert (function["Runtime"], function["Architectures"]) == ("python3.13", ["arm64"])
    assert (function["Handler"], function["MemorySize"]) == ("app.handler", 256)
    assert function["Role"].endswith(f":role/{deploy.ROLE_NAME}")


@pytest.mark.parametrize(
    ("settings", "code", "updates"),
    [
        ({}, FIRST, set()),
        ({}, CHANGED, {"UpdateFunctionCode"}),
        ({"DurableConfig": {"ExecutionTimeout": 60}}, FIRST, {"UpdateFunctionConfiguration"}),
        ({"MemorySize": 512, "LoggingConfig": {"LogFormat": "Text"}}, CHANGED, UPDATES),
    ],
)
def test_running_again_updates_what_differs_and_keeps_old_versions(
    aws: Aws, settings: Any, code: bytes, updates: set[str]
) -> None:
    deploy.main()
    first, before = aws.versions()["1"], aws.function()
    aws.configure(**settings)
    aws.code = code
    aws.calls.clear()
    aws.capsys.readouterr()
    deploy.main()

    assert UPDATES & set(aws.calls) == updates
    assert ("変わっていません" in aws.capsys.readouterr().out) == (not updates)
    assert aws.versions()["1"] == first
    assert ("2" in aws.versions()) >= (code is CHANGED)
    after = aws.function()
    assert {key: after[key] for key in settings} == {key: before[key] for key in settings}
    assert after["CodeSha256"] == digest(code)


def test_zip_holds_app_and_the_sdk_and_nothing_else() -> None:
    with zipfile.ZipFile(io.BytesIO(deploy.build_zip())) as archive:
        names, entries = archive.namelist(), archive.infolist()
        assert archive.read("app.py") == (ROOT / "app.py").read_bytes()
    assert {name.split("/")[0] for name in names} == {"app.py", "aws_durable_execution_sdk_python"}
    assert all(name.endswith(".py") for name in names)
    assert names == sorted(names)
    assert {(e.date_time, e.compress_type, e.external_attr >> 16) for e in entries} == {
        ((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED, 0o100644)
    }


# ---- 途中で止まる、待つ、同時に動く ----------------------------------------------------


@pytest.mark.parametrize("deployed_before", [False, True])
def test_killed_at_any_call_and_run_again_ends_as_if_it_had_not_been(
    aws: Aws, deployed_before: bool
) -> None:
    def start() -> None:
        aws.take_new_name()
        if deployed_before:
            aws.code = OTHER
            deploy.main()
            aws.configure(MemorySize=512)
            aws.code = FIRST
        aws.calls.clear()

    start()
    deploy.main()
    wanted, calls = aws.versions(), list(aws.calls)
    assert len(calls) >= 5
    for number, name in enumerate(calls, start=1):
        start()
        aws.killed_at = number
        with pytest.raises(BaseException, match="killed"):
            deploy.main()
        aws.killed_at = 0
        deploy.main()
        assert aws.versions() == wanted, name


def answer(status: int, body: str, code: str = "") -> AWSResponse:
    """HTTP の応答。"""
    headers = {"x-amzn-errortype": code} if code else {}
    return AWSResponse("", status, headers, Mock(stream=lambda: [body.encode()]))


@pytest.mark.parametrize("lost", [False, True])
def test_every_call_may_be_throttled_or_lose_its_answer_once(aws: Aws, lost: bool) -> None:
    failed: list[str] = []
    throttled = "<ErrorResponse><Error><Code>Throttling</Code></Error></ErrorResponse>"

    def fail_once(request: Any, event_name: str, **_: Any) -> Any:
        if event_name in failed:
            return None
        failed.append(event_name)
        if not lost:
            return answer(429, throttled, "TooManyRequestsException")
        URLLib3Session().send(request)
        return answer(500, "")

    aws.events.register("before-send", fail_once)
    deploy.main()
    assert len(failed) == 4
    aws.configure(MemorySize=512)
    aws.code = CHANGED
    failed.clear()
    deploy.main()
    assert len(failed) == 6
    assert sorted(aws.versions()) == ["$LATEST", "1", "2"]


UNSEEN = ("InvalidParameterValueException", "The role cannot be assumed by Lambda.")
CONFLICT = ("ResourceConflictException", "in progress")


@pytest.mark.parametrize(
    ("operation", "error", "waiting"),
    [
        ("CreateFunction", UNSEEN, "伝播を待っています"),
        ("UpdateFunctionCode", CONFLICT, "進行中の更新"),
        ("PublishVersion", CONFLICT, "進行中の更新"),
    ],
)
def test_what_passes_by_itself_is_waited_for_one_minute(
    aws: Aws, operation: str, error: tuple[str, str], waiting: str
) -> None:
    if operation != "CreateFunction":
        deploy.main()
        aws.code = CHANGED
    aws.answers[operation] = [refusal(*error)] * 99
    sentence = aws.failure()
    assert "1 分待ちました" in sentence
    assert sentence.endswith(f"（{': '.join(error)}）")
    assert 60 <= aws.slept <= 70
    aws.answers[operation] = [refusal(*error)] * 2
    deploy.main()
    assert aws.capsys.readouterr().out.count(waiting) == 2
    assert "1" in aws.versions()


@pytest.mark.parametrize("busy", [{"State": "Pending"}, {"LastUpdateStatus": "InProgress"}])
def test_unsettled_function_is_waited_for_two_minutes(aws: Aws, busy: dict[str, str]) -> None:
    deploy.main()
    aws.code = CHANGED
    aws.calls.clear()
    unsettled = aws.function() | busy
    aws.answers["GetFunctionConfiguration"] = [unsettled] * 99
    assert "もう一度実行してください" in aws.failure()
    assert 110 <= aws.slept <= 120
    assert not UPDATES & set(aws.calls)
    aws.answers["GetFunctionConfiguration"] = [unsettled] * 2
    deploy.main()
    assert sorted(aws.versions()) == ["$LATEST", "1", "2"]


@pytest.mark.parametrize("status", ["State", "LastUpdateStatus"])
def test_failed_function_is_updated_and_explained_if_that_does_not_help(
    aws: Aws, status: str
) -> None:
    deploy.main()
    failed = {status: "Failed", f"{status}Reason": "No key", f"{status}ReasonCode": "InvalidKey"}
    answers = [aws.function() | failed] * 2
    aws.answers["GetFunctionConfiguration"] = list(answers)
    assert aws.failure().endswith("もう一度実行してください。（InvalidKey: No key）")
    conflict = refusal("ResourceConflictException", "It is in the following state: Failed")
    aws.answers = {"GetFunctionConfiguration": list(answers), "UpdateFunctionCode": [conflict]}
    assert "InvalidKey" in aws.failure()
    assert aws.slept == 0
    aws.answers["GetFunctionConfiguration"] = answers[:1]
    aws.calls.clear()
    deploy.main()
    assert set(aws.calls) >= UPDATES


def test_two_deploys_at_once_never_publish_the_code_of_each_other(aws: Aws) -> None:
    def overtake(**_: Any) -> None:
        assert aws.function()["CodeSha256"] == digest(FIRST)
        aws.functions.update_function_code(FunctionName=deploy.FUNCTION_NAME, ZipFile=OTHER)

    aws.account.create(OTHER, FunctionName=deploy.FUNCTION_NAME)
    aws.events.register("before-call.lambda.PublishVersion", overtake)
    assert "ほかの人が同じ関数をデプロイしています。しばらく" in aws.failure()
    assert sorted(aws.versions()) == ["$LATEST", "1"]
    aws.events.unregister("before-call.lambda.PublishVersion", overtake)
    deploy.main()
    assert aws.versions()["2"][0] == digest(FIRST)


# ---- 周囲の誤り --------------------------------------------------------------------


def profile(text: str) -> dict[str, str | None]:
    keys = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    return {**keys, ".aws/config": f"[default]\n{text}\n"}


NOBODY = "http://127.0.0.1:1"
ROLE = "role_arn = arn:aws:iam::123456789012:role/r\n"
KEYS = "aws_access_key_id = a\naws_secret_access_key = b\n"
NOT_FOUND = "認証情報を取得できません。AWS_PROFILE などの設定を確認してください。（FileNotFound"


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "認証情報がない"),
        ({"AWS_SESSION_TOKEN": "secret\n"}, "読み取れません。.+: Invalid header value …）"),
        ({"AWS_PROFILE": "nobody"}, "AWS_PROFILE などの設定を確認してください。（ProfileNotFound"),
        ({"AWS_CONFIG_FILE": __file__}, "設定を確認してください。（ConfigParseError"),
        ({"AWS_DEFAULT_REGION": ""}, "リージョンが未設定か、正しくありません"),
        ({"AWS_DEFAULT_REGION": "ap-northeast-1 "}, "リージョンが未設定か、正しくありません"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:4566"}, "AWS_ENDPOINT_URL を http://"),
        ({"AWS_ENDPOINT_URL": "ftp://127.0.0.1"}, "AWS_ENDPOINT_URL を http://"),
        ({"AWS_ENDPOINT_URL": NOBODY}, "AWS に接続できません。リージョン、ネットワーク、プロキシ"),
        ({"HTTP_PROXY": NOBODY}, "確認し、もう一度実行してください。（ProxyConn"),
        ({"FUNCTION_NAME": "order-processing-durable-注文"}, "FUNCTION_NAME"),
        ({"FUNCTION_NAME": "order-processing-durable2"}, "durable-policy.json"),
        ({"FUNCTION_NAME": "my-order-processing-durable"}, "durable-policy.json"),
        ({"ROLE_NAME": "no-such-role"}, "ロールの作成」を実行してください。（NoSuchEntity"),
        (profile("credential_process = /no/such/program"), NOT_FOUND),
        (profile("credential_process = false"), "設定を確認してください。（CredentialRetrieval"),
        (profile(f"{ROLE}source_profile = nobody"), "設定を確認してください。（InvalidConfig"),
        ({"durable-policy.json": "\xff"}, "ファイルか出力を読み書きできません"),
        ({"requirements.txt": None}, "ファイルか出力を読み書きできません"),
        ({"requirements.txt": "boto3\n"}, "requirements.txt に SDK の行がありません"),
        ({"requirements.txt": f"{deploy.SDK}==2.0.0\n"}, "requirements.txt の 2.0.0 と違います"),
        ({"app.py": "def handler(\n"}, "app.py を読み込めません。原因を取り除いて"),
        ({"app.py": ""}, "EXECUTION_TIMEOUT"),
    ],
)
def test_odd_surroundings_get_one_sentence(
    aws: Aws, tmp_path: Path, monkeypatch: Any, odd: dict[str, Any], words: str
) -> None:
    for name in ("app.py", "durable-policy.json", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(deploy, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "app", raising=False)
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
    assert re.search(words, aws.failure())


NO_OUTPUT = "ファイルか出力を読み書きできません。.+（{}: .+）"
PLACES = [
    (lambda: os.close(1), {}, NO_OUTPUT.format("OSError")),
    (lambda: os.dup2(os.pipe()[1], 1), {}, NO_OUTPUT.format("BrokenPipeError")),
    (None, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, ".+（EOFError: ）"),
]


@pytest.mark.parametrize(("first", "keys", "sentence"), PLACES, ids=["closed", "pipe", "MFA"])
def test_start_that_can_neither_show_nor_ask_ends_with_one_sentence(
    aws: Aws, tmp_path: Path, first: Any, keys: dict[str, str], sentence: str
) -> None:
    mfa = f"[default]\n{ROLE}source_profile = keys\nmfa_serial = me\n"
    (tmp_path / "config").write_text(f"{mfa}[profile keys]\n{KEYS}")
    keys = keys | {"AWS_CONFIG_FILE": str(tmp_path / "config")}
    done = run_deploy(keys, preexec_fn=first)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"{sentence}\n", done.stderr)


def test_python_without_boto3_gets_one_sentence() -> None:
    missing = r"boto3 がインストールされていません。.+requirements.txt.+\n"
    assert re.fullmatch(missing, run_deploy({}, "-S").stderr)


@pytest.mark.parametrize(
    ("changed", "words", "calls"),
    [
        ((metadata, "files", lambda name: None), "RECORD", ["GetRole"]),
        ((StructureShape, "members", {}), "DurableConfig", []),
        ((deploy, "role_arn", Mock(side_effect=KeyboardInterrupt)), "もう一度実行すると、", []),
    ],
)
def test_nothing_is_created_without_an_sdk_or_after_ctrl_c(
    aws: Aws, changed: Any, words: str, calls: list[str]
) -> None:
    aws.monkeypatch.setattr(deploy, "build_zip", BUILD_ZIP)
    aws.monkeypatch.setattr(*changed)
    assert words in aws.failure()
    assert aws.calls == calls


def test_fault_of_deploy_itself_keeps_its_traceback(aws: Aws, monkeypatch: Any) -> None:
    monkeypatch.delattr(deploy, "settled")
    with pytest.raises(NameError):
        deploy.main()


# ---- 拒否、AWS ではない応答、ほかの人のもの ------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "code", "message", "words"),
    [
        ("GetRole", "ExpiredToken", "expired", "有効期限が切れています"),
        ("GetRole", "SignatureDoesNotMatch", "Signature expired: 2020 is now", "時刻が違います"),
        ("GetRole", "InvalidClientTokenId", "invalid", "認証情報かリージョンが正しくありません"),
        ("GetRole", "Throttling", "Rate exceeded", "混み合っています"),
        ("GetRole", "Teapot", "short and stout", "AWS API の呼び出しに失敗しました"),
        ("CreateFunction", "InvalidSignatureException", "Signature not yet current", "時刻が"),
        ("CreateFunction", "AccessDeniedException", "x to perform: iam:PassRole", "PassRole の"),
        ("CreateFunction", "ServiceQuotaExceededException", "quota", "クォータ"),
        ("CreateFunction", "CodeStorageExceededException", "limit", "クォータ"),
        ("GetFunctionConfiguration", "ResourceNotFoundException", "gone", "完了していない"),
        ("PublishVersion", "AccessDeniedException", "", "PublishVersion の権限がありません"),
    ],
)
def test_refusal_by_aws_gets_one_sentence_that_ends_with_its_name(
    aws: Aws, operation: str, code: str, message: str, words: str
) -> None:
    aws.answers[operation] = [refusal(code, message)]
    sentence = aws.failure()
    assert words in sentence
    assert f"（{code}: {message.removeprefix('x to perform: ')}" in sentence


@pytest.mark.parametrize("operation", ["GetRole", "GetFunctionConfiguration", "PublishVersion"])
@pytest.mark.parametrize(
    ("status", "body"),
    [(200, ""), (200, '{"FunctionNa'), (302, "<html><p>Login</html>"), (404, "{}")],
)
def test_nothing_is_concluded_from_half_an_answer(
    aws: Aws, operation: str, status: int, body: str
) -> None:
    half = f"before-send.*.{operation}"
    aws.events.register(half, lambda **_: answer(status, body))
    assert "AWS からの応答が途中までか、AWS 以外からの応答です" in aws.failure()


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
    ],
)
def test_role_that_lambda_may_not_assume_gets_the_command_that_mends_it(
    aws: Aws, statement: Any, trusted: bool
) -> None:
    document = json.dumps({"Statement": statement})
    aws.answers["GetRole"] = [{"Role": {"Arn": "arn", "AssumeRolePolicyDocument": document}}]
    if trusted:
        assert deploy.role_arn(aws.session.client("iam")) == "arn"
    else:
        command = (
            f"aws iam update-assume-role-policy --role-name {deploy.ROLE_NAME} --policy-document"
        )
        assert f"{command} file://trust-policy.json を実行してください" in aws.failure()


def test_function_that_is_not_durable_is_left_to_its_owner(aws: Aws) -> None:
    aws.account.create(OTHER, FunctionName=deploy.FUNCTION_NAME, DurableConfig=None)
    sentence = aws.failure()
    command = f"aws lambda delete-function --function-name {deploy.FUNCTION_NAME} "
    assert sentence.index("FUNCTION_NAME を変える") < sentence.index(command)
    assert not UPDATES & set(aws.calls)
