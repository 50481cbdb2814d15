"""ローカル AWS が AWS と同じようにふるまうこと。"""

import errno
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import aws_durable_execution_sdk_python as sdk
import botocore.session
import pytest
from botocore.exceptions import ClientError
from botocore.validate import validate_parameters

from tests.local_aws import __main__ as command_line
from tests.local_aws.gateway import LocalAws
from tests.support.account import (
    BASIC,
    REGION,
    Account,
    eventually,
    refused,
    trust,
)

ROOT = Path(__file__).parents[1]
ACCOUNT = "123456789012"

DURABLE = """
import importlib.util
import os
import pathlib
import sys
import time
from aws_durable_execution_sdk_python import durable_execution, durable_step
from aws_durable_execution_sdk_python.config import CallbackConfig, Duration, StepConfig
from aws_durable_execution_sdk_python.retries import RetryStrategyConfig, create_retry_strategy

VERSION = "one"
SECOND = Duration.from_seconds(1)
DAYS = Duration.from_days(9)
RETRY = create_retry_strategy(RetryStrategyConfig(max_attempts=3, initial_delay=SECOND))


@durable_step
def accept(ctx, event):
    ctx.logger.info("受け付け %s", event["id"], extra={"order": event["id"]})
    return {"id": event["id"], "version": VERSION}


@durable_step
def pay(ctx, event):
    if ctx.attempt == 1:
        raise ConnectionError("once")
    return ctx.attempt


@durable_step
def dawdle(ctx, event):
    first = pathlib.Path(event["scratch"])
    if not first.exists():
        first.write_text(str(os.getpid()))
        time.sleep(600)
    return os.getpid()


@durable_execution
def handler(event, context):
    print("呼び出し", event["id"])
    accepted = context.step(accept(event))
    result = {"id": accepted["id"], "started": accepted["version"]}
    if event.get("fail"):
        raise ValueError("だめ")
    if event.get("target"):
        result["target"] = context.invoke(event["target"], {"id": "child"})
    if event.get("scratch"):
        result["pid"] = context.step(dawdle(event))
    if event.get("modules"):
        spec = {name: importlib.util.find_spec(name) for name in event["modules"]}
        result |= {"modules": [name for name in spec if spec[name]], "path": sys.path}
        result["environ"] = dict(os.environ)
    if event.get("ask"):
        limit = Duration.from_seconds(event["ask"])
        ask = CallbackConfig(timeout=limit, heartbeat_timeout=DAYS)
        callback = context.create_callback(name="ask", config=ask)
        result["answer"] = callback.result()
    context.wait(Duration.from_seconds(event.get("wait", 1)))
    result["attempts"] = context.step(pay(event), config=StepConfig(retry_strategy=RETRY))
    return result | {"version": VERSION}
"""


def zipped(code: str, with_sdk: bool = True) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr(zipfile.ZipInfo("app.py"), code)
        package = Path(sdk.__file__).parent
        for file in sorted(package.rglob("*.py")) if with_sdk else []:
            name = file.relative_to(package.parent).as_posix()
            target.writestr(zipfile.ZipInfo(name), file.read_bytes())
    return archive.getvalue()


ASK = {"ask": 8 * 86_400}  # 秒


@pytest.fixture(scope="module")
def server() -> Iterator[LocalAws]:
    with LocalAws(speed=20) as running:
        yield running


@pytest.fixture(scope="module")
def account(server: LocalAws) -> Account:
    return Account(server.endpoint, server.access_key)


@pytest.fixture(scope="module")
def code() -> bytes:
    return zipped(DURABLE)


@pytest.fixture(scope="module")
def plain() -> bytes:
    return zipped("handler = print", with_sdk=False)


@pytest.fixture(scope="module")
def function(account: Account, code: bytes) -> str:
    return account.create(code)


# 拒否する相手


def exchange(account: Account, headers: str, line: str = "POST / HTTP/1.1") -> tuple[int, str]:
    """本文のないリクエストを送り、応答のステータスと全体を返す。"""
    port = account.endpoint.rpartition(":")[2]
    scope = f"{account.access_key}/20250101/{REGION}/sts/aws4_request"
    signature = f"Authorization: AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host"
    request = f"{line}\r\n{headers}\r\n{signature}\r\n\r\n".replace("PORT", port)
    with socket.create_connection(("127.0.0.1", int(port)), timeout=20) as connection:
        connection.sendall(request.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return int(answer.split()[1]), answer


def test_one_sees_whom_one_talks_to(account: Account) -> None:
    for name in ("127.0.0.1", "localhost"):
        here = Account(account.endpoint.replace("127.0.0.1", name), account.access_key)
        assert here.sts.get_caller_identity()["Account"] == ACCOUNT


HERE = "Host: 127.0.0.1:PORT"


@pytest.mark.parametrize(
    "headers",
    [
        f"{HERE}\r\nOrigin: null",
        f"{HERE}\r\nOrigin: http://127.0.0.1:PORT",
        f"{HERE}\r\nOrigin: null\r\nTransfer-Encoding: chunked",
        "Host: rebound.example.com:PORT",
        "Host: example.com\r\nHost: 127.0.0.1:PORT",
        "X: no host",
    ],
)
@pytest.mark.parametrize("line", ["POST / HTTP/1.1", "OPTIONS / HTTP/1.1"])
def test_web_pages_are_refused(account: Account, headers: str, line: str) -> None:
    status, answer = exchange(account, headers, line)
    assert status == 403
    assert "AccessDeniedException" in answer
    assert "access-control" not in answer.lower()


def test_another_key_is_refused_before_the_body_is_read(account: Account) -> None:
    with LocalAws() as other:
        keys = ["local", account.access_key[:-1], other.access_key]
    for stranger in (Account(account.endpoint, key) for key in keys):
        message = refused("UnrecognizedClientException", stranger.functions.list_functions)
        assert message.endswith("export の行を貼り付けてください。")
        refused("UnrecognizedClientException", stranger.logs.describe_log_groups)
        refused("InvalidClientTokenId", stranger.iam.list_roles)
        refused("InvalidClientTokenId", stranger.sts.get_caller_identity)
        assert exchange(stranger, f"{HERE}\r\nContent-Length: 1000000")[0] == 403
    assert all(re.fullmatch(r"AKIA[0-9A-F]{16}", key) for key in (account.access_key, keys[2]))


def test_unsigned_and_chunked_requests_are_refused(account: Account) -> None:
    assert exchange(account, HERE + "\r\nTransfer-Encoding: chunked")[0] == 411
    assert exchange(Account(account.endpoint, "/"), HERE)[0] == 403


def test_what_the_demo_does_not_use_is_refused_in_a_sentence(account: Account, code: bytes) -> None:
    f, name = account.functions, account.create(code)
    arn = account.start(name, {"id": "beyond"})
    one: dict[str, Any] = {"FunctionName": name, "Qualifier": "1"}
    nothing_durable = account.create(code, DurableConfig=None)
    asked: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (f.pause_durable_execution, {"DurableExecutionArn": arn}),
        (f.resume_durable_execution, {"DurableExecutionArn": arn}),
        (f.delete_durable_execution, {"DurableExecutionArn": arn}),
        (f.invoke, {**one, "InvocationType": "DryRun"}),
        (f.invoke, {**one, "LogType": "Tail"}),
        (f.invoke, {"FunctionName": nothing_durable}),
        (f.create_alias, {"FunctionName": name, "FunctionVersion": "1", "Name": "live"}),
        (Account(account.endpoint, account.access_key, "xx-west-1").functions.list_functions, {}),
    ]
    for call, parameters in asked:
        message = refused("NotImplementedException", call, **parameters)
        assert re.fullmatch(r"ローカル AWS は [^。]+ に対応していません。", message)
    ended = account.ended(account.start(name, {"id": "x", "target": f"{name}:1"}))
    assert "no chained-invoke dispatcher" in ended["Error"]["ErrorMessage"]


# 関数の設定とバージョン


def test_each_update_makes_the_next_publish_mint_a_version(account: Account, plain: bytes) -> None:
    name, f = account.create(plain), account.functions

    def publish(**parameters: str) -> str:
        return str(f.publish_version(FunctionName=name, **parameters)["Version"])

    assert publish() == "1"
    f.update_function_code(FunctionName=name, ZipFile=plain)  # 同じ内容でも更新
    assert [publish(), publish()] == ["2", "2"]
    f.update_function_configuration(FunctionName=name, Timeout=30)
    f.update_function_configuration(FunctionName=name, Timeout=30)
    assert [publish(), publish()] == ["3", "3"]
    f.delete_function(FunctionName=name, Qualifier="2")
    assert publish() == "3"
    f.delete_function(FunctionName=f"{name}:3")
    assert [publish(), publish()] == ["4", "4"]

    f.update_function_code(FunctionName=name, ZipFile=zipped("handler = repr", with_sdk=False))
    old, new = (
        f.get_function_configuration(FunctionName=name, Qualifier=version)["CodeSha256"]
        for version in ("4", "$LATEST")
    )
    message = refused(
        "InvalidParameterValueException", f.publish_version, FunctionName=name, CodeSha256=old
    )
    assert new in message
    assert publish(CodeSha256=new) == "5"


def test_latest_is_not_deleted_alone(account: Account, plain: bytes) -> None:
    name, f = account.create(plain), account.functions
    for asked in (
        {"FunctionName": name, "Qualifier": "$LATEST"},
        {"FunctionName": f"{name}:$LATEST"},
    ):
        refused("InvalidParameterValueException", f.delete_function, **asked)
    assert f.publish_version(FunctionName=name)["Version"] == "1"


DENIED = json.loads(trust())["Statement"] + json.loads(trust())["Statement"]
DENIED[1] = DENIED[1] | {"Effect": "Deny"}


@pytest.mark.parametrize(
    "document", [trust("ec2.amazonaws.com"), json.dumps({"Statement": DENIED}), None]
)
def test_role_lambda_may_not_assume_is_refused(
    account: Account, function: str, plain: bytes, document: str | None
) -> None:
    role = f"arn:aws:iam::{ACCOUNT}:role/nobody"
    if document:
        role = account.role(AssumeRolePolicyDocument=document)
    expected = "The role defined for the function cannot be assumed by Lambda."
    with pytest.raises(ClientError, match=expected):
        account.create(plain, role)
    update = account.functions.update_function_configuration
    message = refused("InvalidParameterValueException", update, FunctionName=function, Role=role)
    assert message == expected


def test_other_regions_and_accounts_are_refused(
    server: LocalAws, account: Account, function: str, plain: bytes, code: bytes
) -> None:
    here = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function}"
    execution = account.start(function, {"id": "here", **ASK})
    f, callback = account.functions, account.callback(execution)
    for place in ("us-west-2:123456789012", f"{REGION}:210987654321"):
        arn, foreign = (a.replace(f"{REGION}:{ACCOUNT}", place) for a in (here, execution))
        asked: list[tuple[Callable[..., Any], dict[str, Any]]] = [
            (f.invoke, {"FunctionName": f"{arn}:1", "Payload": "{}"}),
            (f.get_function, {"FunctionName": arn}),
            (f.list_durable_executions_by_function, {"FunctionName": arn}),
            (f.delete_function, {"FunctionName": arn}),
            (f.get_durable_execution, {"DurableExecutionArn": foreign}),
            (f.stop_durable_execution, {"DurableExecutionArn": foreign}),
        ]
        for call, parameters in asked:
            refused("AccessDeniedException", call, **parameters)
    with pytest.raises(ClientError, match="Cross-account pass role is not allowed"):
        account.create(plain, account.role().replace(ACCOUNT, "210987654321"))

    west = Account(server.endpoint, server.access_key, "us-west-2")
    refused("ResourceNotFoundException", west.functions.get_function, FunctionName=function)
    refused("AccessDeniedException", west.describe, arn=execution)
    for call in answers(west):
        refused("AccessDeniedException", call, CallbackId=callback)
    name = west.create(code)
    arn = west.start(name, {"id": "west"})
    assert arn.startswith("arn:aws:lambda:us-west-2:")
    assert west.result(arn)["id"] == "west"
    assert west.messages(name)


# 呼び出し


def test_synchronous_invoke_is_refused_where_it_could_take_too_long(
    account: Account, code: bytes
) -> None:
    name = account.create(code, DurableConfig={"ExecutionTimeout": 901})
    message = refused(
        "InvalidParameterValueException", account.functions.invoke, FunctionName=f"{name}:1"
    )
    assert message.startswith("You cannot synchronously invoke a durable function")
    assert account.result(account.start(name, {"id": "event"}))["id"] == "event"


def test_invoke_refuses_what_aws_refuses(account: Account, function: str) -> None:
    invoke = account.functions.invoke
    message = refused("InvalidParameterValueException", invoke, FunctionName=function, Payload="{}")
    assert message == "You cannot invoke a durable function using an unqualified ARN"
    one: dict[str, Any] = {"FunctionName": function, "Qualifier": "1", "InvocationType": "Event"}
    for broken in ("{", "NaN", "[" * 100_000, b"\xff"):
        refused("InvalidRequestContentException", invoke, **one, Payload=broken)
    refused("ValidationException", invoke, **one, DurableExecutionName="a b")
    refused("ValidationException", invoke, **one, DurableExecutionName="a" * 65)
    refused("ResourceNotFoundException", invoke, FunctionName=function, Qualifier="9")
    refused("ResourceNotFoundException", invoke, FunctionName="nothing", Qualifier="1")


def test_same_name_and_payload_is_the_same_execution(account: Account, function: str) -> None:
    def send(_: int) -> str:
        return account.start(function, {"id": "same"}, DurableExecutionName="same")

    with ThreadPoolExecutor(20) as pool:
        [arn] = set(pool.map(send, range(20)))
    assert "/durable-execution/same/" in arn


@pytest.mark.parametrize("reverse", [True, False])
def test_paging_neither_skips_nor_repeats_while_orders_stop_and_start(
    account: Account, code: bytes, reverse: bool
) -> None:
    name = account.create(code)
    arns = [account.start(name, {"id": str(number), **ASK}) for number in range(6)]
    listing = account.functions.list_durable_executions_by_function
    seen: list[str] = []
    marker: dict[str, str] = {}
    while True:
        page = listing(
            FunctionName=name, Statuses=["RUNNING"], MaxItems=2, ReverseOrder=reverse, **marker
        )
        found = [execution["DurableExecutionArn"] for execution in page["DurableExecutions"]]
        seen += found
        if "NextMarker" not in page:
            break
        marker = {"Marker": page["NextMarker"]}
        for arn in found:
            account.functions.stop_durable_execution(DurableExecutionArn=arn)
        if not reverse:
            account.start(name, {"id": "later", **ASK})
    assert seen == (arns if reverse else arns[::-1])


def test_deleted_function_is_gone_and_its_names_are_free(account: Account, code: bytes) -> None:
    name = account.create(code)
    waiting = account.start(name, {"id": "1", **ASK}, DurableExecutionName="same")
    callback = account.callback(waiting)
    account.functions.delete_function(FunctionName=name)
    for call in (account.functions.get_function, account.functions.list_versions_by_function):
        refused("ResourceNotFoundException", call, FunctionName=name)
    account.create(code, FunctionName=name)
    listing = account.functions.list_durable_executions_by_function
    assert listing(FunctionName=name)["DurableExecutions"] == []
    again = account.start(name, {"id": "2"}, DurableExecutionName="same")
    assert account.result(again)["id"] == "2"
    account.send(callback, "yes")
    assert account.result(waiting)["answer"] == "yes"


# コールバックと停止


def answers(account: Account) -> list[Callable[..., Any]]:
    kinds = ("success", "failure", "heartbeat")
    return [getattr(account.functions, f"send_durable_execution_callback_{k}") for k in kinds]


def test_second_answer_is_refused_and_changes_nothing(account: Account, function: str) -> None:
    arn = account.start(function, {"id": "s", **ASK})
    callback = account.callback(arn)

    def answer(number: int) -> bool:
        try:
            account.send(callback, str(number))
        except account.functions.exceptions.CallbackTimeoutException:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        accepted = [number for number, ok in enumerate(pool.map(answer, range(8))) if ok]
    assert [account.result(arn)["answer"]] == [str(number) for number in accepted]
    for call in answers(account):
        refused("CallbackTimeoutException", call, CallbackId=callback)


def test_answer_that_is_no_utf8_leaves_the_callback_open(account: Account, function: str) -> None:
    arn = account.start(function, {"id": "bytes", **ASK})
    callback = account.callback(arn)
    send = account.functions.send_durable_execution_callback_success
    message = refused("InvalidParameterValueException", send, CallbackId=callback, Result=b"\xff")
    assert "utf-8" in message
    account.functions.send_durable_execution_callback_heartbeat(CallbackId=callback)
    account.send(callback, "はい")
    assert account.result(arn)["answer"] == "はい"


def test_unknown_executions_and_callbacks_are_404(account: Account, function: str) -> None:
    f = account.functions
    unknown = f"{account.start(function, {'id': 'v'}).rpartition('/')[0]}/{uuid.uuid4()}"
    for call in (
        f.get_durable_execution,
        f.get_durable_execution_history,
        f.stop_durable_execution,
    ):
        refused("ResourceNotFoundException", call, DurableExecutionArn=unknown)
    for call in answers(account):
        refused("ResourceNotFoundException", call, CallbackId="bm90aGluZw==")


# 履歴


def details(events: list[Any], kind: str, name: str | None = None) -> list[Any]:
    found = [e for e in events if e["EventType"] == kind and name in (None, e.get("Name"))]
    return [event[f"{kind}Details"] for event in found]


def test_history_has_all_that_the_model_requires(account: Account, function: str) -> None:
    arn = account.start(function, {"id": "w", **ASK})
    account.send(account.callback(arn), "yes")
    account.result(arn)
    events = account.history(arn)
    model = botocore.session.get_session().get_service_model("lambda")
    for event in events:
        validate_parameters(event, model.shape_for("Event"))
    assert json.loads(events[0]["ExecutionStartedDetails"]["Input"]["Payload"])["id"] == "w"
    assert [event["EventId"] for event in events] == list(range(1, len(events) + 1))

    (asked,) = details(events, "CallbackStarted")
    assert (asked["Timeout"], asked["HeartbeatTimeout"]) == (8 * 86_400, 9 * 86_400)
    (failed,), (paid,) = (details(events, kind, "pay") for kind in ("StepFailed", "StepSucceeded"))
    assert failed["RetryDetails"]["CurrentAttempt"] == 1
    assert failed["RetryDetails"]["NextAttemptDelaySeconds"] >= 1
    assert paid["RetryDetails"] == {"CurrentAttempt": 2}

    invocations = details(events, "InvocationCompleted")
    assert len({invocation["RequestId"] for invocation in invocations}) == len(invocations) > 2
    moments = [i[key] for i in invocations for key in ("StartTimestamp", "EndTimestamp")]
    assert moments == sorted(moments)
    assert not [invocation for invocation in invocations if "Error" in invocation]


@pytest.mark.parametrize("killed", [True, False])
def test_invocation_that_died_is_in_the_history_in_its_place(
    account: Account, code: bytes, tmp_path: Path, killed: bool
) -> None:
    name, scratch = account.create(code, Timeout=30 if killed else 6), tmp_path / "pid"
    arn = account.start(name, {"id": "dies", "scratch": str(scratch)})
    if killed:
        eventually(lambda: details(account.history(arn), "StepStarted", "dawdle"))
        os.kill(int(scratch.read_text()), signal.SIGKILL)
    assert account.result(arn)["pid"] != int(scratch.read_text())
    events = account.history(arn)
    at = [event.get("Name") for event in events].index("dawdle")
    kinds = [event["EventType"] for event in events[at : at + 3]]
    assert kinds == ["StepStarted", "InvocationCompleted", "StepSucceeded"]
    died, *others = details(events, "InvocationCompleted")
    error = died["Error"]["Payload"]
    what = "Runtime exited with error: signal: killed" if killed else "timed out after 6.00 seconds"
    assert error["ErrorType"] == ("Runtime.ExitError" if killed else "Sandbox.Timedout")
    assert error["ErrorMessage"].startswith(f"RequestId: {died['RequestId']} Error: ")
    assert error["ErrorMessage"].endswith(what)
    assert died["StartTimestamp"] <= events[at]["EventTimestamp"] <= died["EndTimestamp"]
    assert not [invocation for invocation in others if "Error" in invocation]


# IAM


def refusal_of(account: Account, code: bytes, role: str, name: str | None = None) -> str:
    function = account.create(code, role, **({"FunctionName": name} if name else {}))
    execution = account.ended(account.start(function, {"id": "z"}))
    assert execution["Status"] == "FAILED"
    return str(execution["Error"]["ErrorMessage"])


@pytest.mark.parametrize("resource", [None, "{other}:*", "{name}", "{name}:2/*"])
def test_role_without_permission_on_the_execution_is_refused(
    account: Account, code: bytes, resource: str | None
) -> None:
    name = f"f-{uuid.uuid4().hex[:8]}"
    on = resource and resource.format(name=name, other=f"not-{name}")
    role = account.role(on and f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{on}")
    message = refusal_of(account, code, role, name)
    assert "AccessDeniedException" in message
    assert "not authorized to perform: lambda:CheckpointDurableExecution on resource" in message


def test_permissions_boundary_counts(account: Account, code: bytes) -> None:
    role = account.role(PermissionsBoundary=BASIC)
    assert "because no permissions boundary allows" in refusal_of(account, code, role)
    name = role.rpartition("/")[2]
    wide = "arn:aws:iam::aws:policy/AdministratorAccess"
    account.iam.put_role_permissions_boundary(RoleName=name, PermissionsBoundary=wide)
    assert account.result(account.start(account.create(code, role), {"id": "in"}))
    account.iam.delete_role_permissions_boundary(RoleName=name)
    assert account.result(account.start(account.create(code, role), {"id": "in"}))


# ワーカーとログ


def test_worker_sees_the_zip_and_boto3_and_nothing_else(
    account: Account, code: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_SECRET", "1")
    mine = {"Variables": {"MINE": "yes", "AWS_REGION": "x"}}
    name = account.create(code, Environment=mine)
    modules = ["app", "boto3", "urllib3", "tests", "moto", "pytest", "werkzeug", "pip"]
    seen = account.result(account.start(name, {"id": "seen", "modules": modules}))
    assert seen["modules"] == modules[:3]
    assert not any(str(ROOT) in entry for entry in seen["path"])
    assert "LOCAL_SECRET" not in seen["environ"]
    assert seen["environ"]["AWS_ACCESS_KEY_ID"] != account.access_key
    assert (seen["environ"]["MINE"], seen["environ"]["AWS_REGION"]) == ("yes", REGION)


def test_full_disk_while_unpacking_is_over_when_there_is_room(
    account: Account, code: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(archive: zipfile.ZipFile, path: Path) -> None:
        monkeypatch.undo()
        archive.extract(archive.namelist()[-1], path)
        raise OSError(errno.ENOSPC, "No space left on device")

    name = account.create(code + b" ")  # まだ展開していない zip
    monkeypatch.setattr(zipfile.ZipFile, "extractall", run_out)
    assert account.result(account.start(name, {"id": "full"}))["id"] == "full"


def test_import_error_of_the_handler_fails_the_execution(account: Account) -> None:
    name = account.create(zipped("import nowhere", with_sdk=False))
    execution = account.ended(account.start(name, {}))
    assert execution["Status"] == "FAILED"
    assert execution["Error"]["ErrorType"] == "Runtime.ImportModuleError"
    assert any("No module named 'nowhere'" in message for message in account.messages(name))


# 時計とコマンド


def test_speed_scales_every_durable_wait(code: bytes) -> None:
    with LocalAws(speed=1000) as server:
        account = Account(server.endpoint, server.access_key)
        roomy, tight = (
            account.create(code),
            account.create(code, DurableConfig={"ExecutionTimeout": 7200}),
        )
        waits = account.start(roomy, {"id": "wait", "wait": 3600})
        asks = account.start(roomy, {"id": "ask", "ask": 3600})
        lasts = account.start(tight, {"id": "last", **ASK})
        assert account.result(waits)["attempts"] == 2
        assert "CallbackTimeout" in account.ended(asks)["Error"]["ErrorType"]
        assert account.ended(lasts)["Status"] == "TIMED_OUT"
        for arn, seconds in ((waits, 3600), (asks, 3600), (lasts, 7200)):
            execution = account.describe(arn)
            took = execution["EndTimestamp"] - execution["StartTimestamp"]
            assert took.total_seconds() >= seconds
        moments = [event["EventTimestamp"] for event in account.history(waits)]
        assert moments == sorted(moments)


class Command:
    """`python -m tests.local_aws` を子プロセスで動かし、表示された export を読む。"""

    def __init__(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.local_aws", "--port", "0", "--speed", "20"],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert self.process.stdout
        self.printed = ""
        for line in self.process.stdout:
            self.printed += line
            if line.startswith("unset"):
                break
        endpoint, key = re.findall(r"(?:URL|KEY_ID)=(\S+)", self.printed)
        self.account = Account(endpoint, key)

    def end(self, number: signal.Signals) -> tuple[str, str]:
        self.process.send_signal(number)
        return self.process.communicate(timeout=10)


def test_ctrl_c_ends_every_process(tmp_path: Path, code: bytes) -> None:
    command, scratch = Command(), tmp_path / "busy"
    assert "停止するとすべて失われ" in command.printed
    account = command.account
    name = account.create(code)
    arn = account.start(name, {"id": "1", **ASK}, DurableExecutionName="order-1")
    account.send(account.callback(arn), "yes")
    account.result(arn)
    # もう 1 件の注文がステップの途中にいるまま、Ctrl-C で終える。
    account.start(name, {"id": "busy", "scratch": str(scratch)})
    busy = eventually(lambda: scratch.exists() and scratch.read_text())
    stdout, stderr = command.end(signal.SIGINT)
    assert (command.process.returncode, stderr) == (0, "")
    assert stdout.endswith("\n\nローカル AWS を停止しました。\n")
    lines = re.findall(r"order-1  (\S+)", stdout)
    assert set(lines[:-2]) == {"呼び出し終了（待機）"}
    assert lines[-2:] == ["呼び出し終了（完了）", "実行終了（SUCCEEDED）"]
    for pid in {busy, *re.findall(r"pid=(\d+)", stdout)}:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_closed_output_does_not_decide_about_an_order(code: bytes) -> None:
    command = Command()
    assert command.process.stdout
    command.process.stdout.close()
    name = command.account.create(code)
    for number in range(2):
        arn = command.account.start(name, {"id": str(number)})
        assert command.account.result(arn)["attempts"] == 2
    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(timeout=10) == 0
    assert command.process.stderr
    with command.process.stderr as stderr:
        assert stderr.read() == ""


def test_output_without_japanese_does_not_decide_about_an_order(code: bytes) -> None:
    command = Command(PYTHONIOENCODING="ascii")
    account = command.account
    assert account.result(account.start(account.create(code), {"id": "?"}))["attempts"] == 2
    stdout, stderr = command.end(signal.SIGTERM)
    assert (command.process.returncode, stderr) == (0, "")
    assert "SUCCEEDED" in stdout


def test_server_killed_hard_leaves_no_worker(
    code: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # 強制終了されれば、フォルダーは残る
    command = Command()
    assert command.process.stdout

    def state() -> bytes:
        return subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True).stdout

    try:
        command.account.start(command.account.create(code), {"id": "orphan", **ASK})
        line = next(line for line in command.process.stdout if "pid=" in line)
        pid = line.strip().rpartition("=")[2]
        assert state() != b""
    finally:
        command.process.kill()
        command.process.communicate()
    assert eventually(lambda: state()[:1] in (b"", b"Z"))


@pytest.mark.parametrize("port", ["taken", "99999", "-1", "80"])
def test_port_that_cannot_be_used_is_one_sentence(
    port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if port == "taken":
            port = str(taken.getsockname()[1])
        if port == "80":  # root なら使えてしまう
            refuse = OSError(errno.EACCES, "Permission denied")
            monkeypatch.setattr(socket, "create_server", mock.Mock(side_effect=refuse))
        assert re.fullmatch(rf"ポート {port} は[^。]+。--port [^。]+。", said("--port", port))


@pytest.mark.parametrize("option", ["--speed=0", "--speed=-1", "--speed=nan", "--port=x"])
def test_senseless_option_is_one_sentence(option: str) -> None:
    assert re.fullmatch(r"オプションが正しくありません（[^。]+）。--help [^。]+。", said(option))


def said(*arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        command_line.main(arguments)
    return str(caught.value.code)


def test_missing_moto_is_one_sentence() -> None:
    program = "import runpy, sys; sys.modules['moto'] = None; runpy.run_module('tests.local_aws')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"パッケージ moto\S* がありません。.*pip install[^。]+。\n", done.stderr)
