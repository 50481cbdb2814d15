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

import botocore.session
import pytest
from botocore.exceptions import ClientError
from botocore.validate import validate_parameters

import deploy
from tests.local_aws import ACCOUNT, iam
from tests.local_aws import __main__ as command_line
from tests.local_aws.gateway import LocalAws
from tests.support.account import DURABLE, REGION, TRUST, Account, eventually, refused
from tests.support.flows import APPROVE, OUT_OF_STOCK, TO_APPROVE, order_of
from tests.support.terminal import read_to

BARE = """
import importlib.util
import json
import os
import pathlib
import sys
import time

NAMES = ["app", "boto3", "urllib3", "tests", "moto", "pytest", "werkzeug", "pip"]


def handler(event, context):
    [start] = event["InitialExecutionState"]["Operations"]
    scratch = pathlib.Path(json.loads(start["ExecutionDetails"]["InputPayload"]))
    print("呼び出し", scratch)
    if not scratch.exists():
        scratch.write_text(str(os.getpid()))
        time.sleep(600)
    seen = {"pid": os.getpid(), "path": sys.path, "environ": dict(os.environ)}
    seen["modules"] = [name for name in NAMES if importlib.util.find_spec(name)]
    return {"Status": "SUCCEEDED", "Result": json.dumps(seen)}
"""


def zipped(code: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr(zipfile.ZipInfo("app.py"), code)
    return archive.getvalue()


CODE, PLAIN = deploy.build_zip(), zipped(BARE)
lines: list[str] = []  # 注文の経過


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with LocalAws(speed=5, report=lines.append) as server:
        yield Account(server.endpoint, server.access_key)


@pytest.fixture(scope="module")
def function(account: Account) -> str:
    return account.create(CODE)


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


HERE = "Host: 127.0.0.1:PORT"


@pytest.mark.parametrize("line", ["POST / HTTP/1.1", "OPTIONS / HTTP/1.1"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (f"{HERE}\r\nOrigin: null", 403),
        (f"{HERE}\r\nOrigin: http://127.0.0.1:PORT\r\nTransfer-Encoding: chunked", 403),
        ("Host: rebound.example.com:PORT", 403),
        ("Host: example.com\r\nHost: 127.0.0.1:PORT", 403),
        ("X: no host", 403),
        (f"{HERE}\r\nTransfer-Encoding: chunked", 411),
    ],
)
def test_web_pages_and_bodies_without_end_are_refused(
    account: Account, headers: str, status: int, line: str
) -> None:
    answered, text = exchange(account, headers, line)
    assert answered == status
    assert "access-control" not in text.lower()


def test_another_key_is_refused_before_the_body_is_read(account: Account) -> None:
    local = Account(account.endpoint.replace("127.0.0.1", "localhost"), account.access_key)
    assert local.sts.get_caller_identity()["Account"] == ACCOUNT
    with LocalAws() as other:
        keys = ["local", account.access_key[:-1], other.access_key]
    for stranger in (Account(account.endpoint, key) for key in keys):
        message = refused("UnrecognizedClientException", stranger.functions.list_functions)
        assert message.endswith("export の行を貼り付けてください。")
        refused("UnrecognizedClientException", stranger.logs.describe_log_groups)
        refused("InvalidClientTokenId", stranger.iam.list_roles)
        refused("InvalidClientTokenId", stranger.sts.get_caller_identity)
        assert exchange(stranger, f"{HERE}\r\nContent-Length: 1000000")[0] == 403
    assert exchange(Account(account.endpoint, "/"), HERE)[0] == 403  # 署名がない


def test_what_the_demo_does_not_use_is_refused_in_a_sentence(
    account: Account, function: str
) -> None:
    f, one = account.functions, {"FunctionName": f"{function}:1"}
    nothing_durable = account.create(PLAIN, DurableConfig=None)
    elsewhere = Account(account.endpoint, account.access_key, "xx-west-1").functions
    asked: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (f.invoke, {**one, "InvocationType": "DryRun"}),
        (f.invoke, {**one, "LogType": "Tail"}),
        (f.invoke, {"FunctionName": nothing_durable}),
        (f.create_alias, {"FunctionName": function, "FunctionVersion": "1", "Name": "live"}),
        (elsewhere.list_functions, {}),
    ]
    for call, parameters in asked:
        message = refused("NotImplementedException", call, **parameters)
        assert re.fullmatch(r"ローカル AWS は [^。]+ に対応していません。", message)


# 関数の設定とバージョン


def test_each_update_makes_the_next_publish_mint_a_version(account: Account) -> None:
    name, f = account.create(PLAIN), account.functions

    def publish(**parameters: str) -> str:
        return str(f.publish_version(FunctionName=name, **parameters)["Version"])

    assert publish() == "1"
    f.delete_function(FunctionName=name, Qualifier="1")
    assert [publish(), publish()] == ["2", "2"]
    f.update_function_configuration(FunctionName=name, Timeout=30)
    f.update_function_configuration(FunctionName=name, Timeout=30)
    assert [publish(), publish()] == ["3", "3"]
    f.delete_function(FunctionName=f"{name}:2")
    assert publish() == "3"
    latest = {"FunctionName": name, "Qualifier": "$LATEST"}
    refused("InvalidParameterValueException", f.delete_function, **latest)
    f.update_function_code(FunctionName=name, ZipFile=PLAIN)  # 同じ内容でも更新
    assert [publish(), publish()] == ["4", "4"]

    f.update_function_code(FunctionName=name, ZipFile=PLAIN + b" ")
    old, new = (
        f.get_function_configuration(FunctionName=name, Qualifier=version)["CodeSha256"]
        for version in ("4", "$LATEST")
    )
    message = refused(
        "InvalidParameterValueException", f.publish_version, FunctionName=name, CodeSha256=old
    )
    assert new in message
    assert publish(CodeSha256=new) == "5"


TRUSTED = json.loads(TRUST)["Statement"][0]
DENYING = json.dumps({"Statement": [TRUSTED, TRUSTED | {"Effect": "Deny"}]})


@pytest.mark.parametrize("document", [TRUST.replace("lambda.", "ec2."), DENYING, None])
def test_role_lambda_may_not_assume_is_refused(
    account: Account, function: str, document: str | None
) -> None:
    role = account.role(document) if document else f"arn:aws:iam::{ACCOUNT}:role/nobody"
    expected = "The role defined for the function cannot be assumed by Lambda."
    with pytest.raises(ClientError, match=expected):
        account.create(PLAIN, role)
    update = account.functions.update_function_configuration
    message = refused("InvalidParameterValueException", update, FunctionName=function, Role=role)
    assert message == expected


def test_other_regions_and_accounts_are_refused(account: Account, function: str) -> None:
    here = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function}"
    execution = account.start(function, TO_APPROVE)
    f, callback = account.functions, account.callback(execution)
    for place in ("us-west-2:123456789012", f"{REGION}:210987654321"):
        arn, foreign = (a.replace(f"{REGION}:{ACCOUNT}", place) for a in (here, execution))
        asked: list[tuple[Callable[..., Any], dict[str, Any]]] = [
            (f.invoke, {"FunctionName": f"{arn}:1"}),
            (f.delete_function, {"FunctionName": arn}),
            (f.stop_durable_execution, {"DurableExecutionArn": foreign}),
        ]
        for call, parameters in asked:
            refused("AccessDeniedException", call, **parameters)

    west = Account(account.endpoint, account.access_key, "us-west-2")
    refused("ResourceNotFoundException", west.functions.get_function, FunctionName=function)
    for call in answers(west):
        refused("AccessDeniedException", call, CallbackId=callback)
    name = west.create(CODE)
    arn = west.start(name, OUT_OF_STOCK)
    assert arn.startswith("arn:aws:lambda:us-west-2:")
    assert west.result(arn)["status"] == "OUT_OF_STOCK"
    assert west.logs.describe_log_groups(logGroupNamePrefix=f"/aws/lambda/{name}")["logGroups"]


# 呼び出し


def test_invoke_refuses_what_aws_refuses(account: Account, function: str) -> None:
    event: dict[str, Any] = {"FunctionName": function, "InvocationType": "Event"}
    one = event | {"Qualifier": "1"}
    long = account.create(PLAIN, DurableConfig={"ExecutionTimeout": 901})
    for code, asked, words in (
        ("InvalidParameterValueException", event, "using an unqualified ARN"),
        ("InvalidParameterValueException", {"FunctionName": f"{long}:1"}, "synchronously"),
        *(
            ("InvalidRequestContentException", one | {"Payload": broken}, "json")
            for broken in ("NaN", "[" * 100_000, b"\xff")
        ),
        ("ValidationException", one | {"InvocationType": "event"}, "enum"),
        ("ValidationException", one | {"DurableExecutionName": "a b"}, "pattern"),
        ("ValidationException", one | {"DurableExecutionName": "a" * 65}, "max"),
        ("ResourceNotFoundException", event | {"Qualifier": "9"}, "not found"),
        ("ResourceNotFoundException", one | {"FunctionName": "nothing"}, "not found"),
    ):
        assert words in refused(code, account.functions.invoke, **asked)


def test_same_name_and_payload_is_the_same_execution(account: Account, function: str) -> None:
    def send(_: int) -> str:
        return account.start(function, OUT_OF_STOCK, DurableExecutionName="same")

    with ThreadPoolExecutor(20) as pool:
        [arn] = set(pool.map(send, range(20)))
    assert "/durable-execution/same/" in arn
    other: Any = {"FunctionName": f"{function}:1", "DurableExecutionName": "same"}
    other |= {"Payload": json.dumps(OUT_OF_STOCK) + " ", "InvocationType": "Event"}
    refused("DurableExecutionAlreadyStartedException", account.functions.invoke, **other)


def test_paging_neither_skips_nor_repeats_while_orders_stop_and_start(account: Account) -> None:
    name, f = account.create(CODE), account.functions
    for reverse in (True, False):
        arns = [account.start(name, TO_APPROVE) for _ in range(4)]
        for arn in arns:
            account.callback(arn)
        asked: dict[str, Any] = {"FunctionName": name, "Statuses": ["RUNNING"], "MaxItems": 2}
        seen: list[str] = []
        later: list[str] = []
        while True:
            page = f.list_durable_executions_by_function(**asked, ReverseOrder=reverse)
            found = [execution["DurableExecutionArn"] for execution in page["DurableExecutions"]]
            seen += found
            if "NextMarker" not in page:
                break
            asked["Marker"] = page["NextMarker"]
            for arn in found:
                f.stop_durable_execution(DurableExecutionArn=arn)
            if not reverse:
                later.append(account.start(name, TO_APPROVE))
        assert seen == (arns if reverse else arns[::-1])
        for arn in [*arns, *later]:
            f.stop_durable_execution(DurableExecutionArn=arn)
    latest = f.list_durable_executions_by_function(FunctionName=name, Qualifier="$LATEST")
    assert latest["DurableExecutions"] == []


def test_deleted_function_is_gone_and_its_names_are_free(account: Account) -> None:
    name = account.create(CODE)
    waiting = account.start(name, TO_APPROVE, DurableExecutionName="same")
    callback = account.callback(waiting)
    account.functions.delete_function(FunctionName=name)
    for call in (account.functions.get_function, account.functions.list_versions_by_function):
        refused("ResourceNotFoundException", call, FunctionName=name)
    account.create(PLAIN, FunctionName=name)
    listing = account.functions.list_durable_executions_by_function
    assert listing(FunctionName=name)["DurableExecutions"] == []
    assert account.result(account.start(name, "/", DurableExecutionName="same"))
    account.send(callback, APPROVE)
    assert account.result(waiting)["status"] == "COMPLETED"


# コールバックと停止


def answers(account: Account) -> list[Callable[..., Any]]:
    kinds = ("success", "failure", "heartbeat")
    return [getattr(account.functions, f"send_durable_execution_callback_{k}") for k in kinds]


def test_second_answer_is_refused_and_changes_nothing(account: Account, function: str) -> None:
    arn = account.start(function, TO_APPROVE)
    callback = account.callback(arn)
    success = account.functions.send_durable_execution_callback_success
    asked: dict[str, Any] = {"CallbackId": callback, "Result": b"\xff"}
    assert "utf-8" in refused("InvalidParameterValueException", success, **asked)
    account.functions.send_durable_execution_callback_heartbeat(CallbackId=callback)

    def answer(number: int) -> bool:
        try:
            account.send(callback, json.dumps({"approved": True, "approver": str(number)}))
        except account.functions.exceptions.CallbackTimeoutException:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        accepted = [number for number, ok in enumerate(pool.map(answer, range(8))) if ok]
    assert [account.result(arn)["approver"]] == [str(number) for number in accepted]
    for call in answers(account):
        refused("CallbackTimeoutException", call, CallbackId=callback)


def test_stopped_order_takes_no_answer_and_unknown_ones_are_404(
    account: Account, function: str
) -> None:
    f, arn = account.functions, account.start(function, TO_APPROVE)
    callback = account.callback(arn)
    f.stop_durable_execution(DurableExecutionArn=arn)
    unknown = f"{arn.rpartition('/')[0]}/{uuid.uuid4()}"
    for call in (f.get_durable_execution_history, f.stop_durable_execution):
        refused("ResourceNotFoundException", call, DurableExecutionArn=unknown)
    for call in answers(account):
        refused("CallbackTimeoutException", call, CallbackId=callback)
        refused("ResourceNotFoundException", call, CallbackId="bm90aGluZw==")


# 履歴


def details(events: list[Any], kind: str, name: str | None = None) -> list[Any]:
    found = [e for e in events if e["EventType"] == kind and name in (None, e.get("Name"))]
    return [event[f"{kind}Details"] for event in found]


def test_history_has_all_that_the_model_requires(account: Account, function: str) -> None:
    arn = account.start(function, TO_APPROVE)
    callback = account.callback(arn)
    account.send(callback, APPROVE)
    account.result(arn)
    logged = account.logs.filter_log_events(logGroupName=f"/aws/lambda/{function}")
    assert callback in str(logged)
    assert "DEBUG" not in str(logged)
    name = arn.split("/")[-2]
    eventually(lambda: any(name in line and "実行終了" in line for line in lines))
    shown = [line.split("  ")[2] for line in lines if name in line]
    assert set(shown[:-2]) == {"呼び出し終了（待機）"}
    assert shown[-2:] == ["呼び出し終了（完了）", "実行終了（SUCCEEDED）"]
    events = account.history(arn)
    model = botocore.session.get_session().get_service_model("lambda")
    for event in events:
        validate_parameters(event, model.shape_for("Event"))
    assert json.loads(events[0]["ExecutionStartedDetails"]["Input"]["Payload"]) == TO_APPROVE
    assert [event["EventId"] for event in events] == list(range(1, len(events) + 1))
    pages = account.functions.get_paginator("get_durable_execution_history").paginate
    one_each = pages(DurableExecutionArn=arn, PaginationConfig={"PageSize": 1})
    assert [page["Events"] for page in one_each] == [[event] for event in events]

    (asked,) = details(events, "CallbackStarted")
    assert asked["Timeout"] == 600
    (failed,), (paid,) = (details(events, kind, "pay") for kind in ("StepFailed", "StepSucceeded"))
    assert failed["RetryDetails"]["CurrentAttempt"] == 1
    assert failed["RetryDetails"]["NextAttemptDelaySeconds"] >= 1
    assert paid["RetryDetails"] == {"CurrentAttempt": 2}

    invocations = details(events, "InvocationCompleted")
    assert len({invocation["RequestId"] for invocation in invocations}) == len(invocations) > 2
    moments = [i[key] for i in invocations for key in ("StartTimestamp", "EndTimestamp")]
    assert moments == sorted(moments)
    assert not [i for i in invocations if "Error" in i or i["RequestId"] not in str(logged)]


@pytest.mark.parametrize("killed", [True, False])
def test_invocation_that_died_says_how_and_is_tried_again(
    account: Account, tmp_path: Path, killed: bool
) -> None:
    name, scratch = account.create(PLAIN, Timeout=30 if killed else 1), tmp_path / "pid"
    arn = account.start(name, str(scratch))
    if killed:
        os.kill(int(eventually(lambda: scratch.exists() and scratch.read_text())), signal.SIGKILL)
    assert account.result(arn)["pid"] != int(scratch.read_text())
    died, *others = details(account.history(arn), "InvocationCompleted")
    what = (
        "Runtime exited with error: signal: killed"
        if killed
        else "Task timed out after 1.00 seconds"
    )
    assert died["Error"]["Payload"] == {
        "ErrorType": "Runtime.ExitError" if killed else "Sandbox.Timedout",
        "ErrorMessage": f"RequestId: {died['RequestId']} Error: {what}",
    }
    assert not [invocation for invocation in others if "Error" in invocation]


# IAM

ARN = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:order-processing-durable:1/x"


def test_managed_policies_and_denials_count(account: Account) -> None:
    role, wide = account.role(), "arn:aws:iam::aws:policy/AdministratorAccess"
    assert iam.refusal(role, "lambda:StopDurableExecution", ARN)
    account.iam.attach_role_policy(RoleName=role.rpartition("/")[2], PolicyArn=wide)
    assert iam.refusal(role, "lambda:StopDurableExecution", ARN) is None
    account.permit(role, DURABLE.replace("Allow", "Deny"))
    assert iam.refusal(role, "lambda:CheckpointDurableExecution", ARN)


# ワーカーとログ


def test_worker_sees_the_zip_and_boto3_and_nothing_else(account: Account) -> None:
    mine = {"Variables": {"MINE": "yes", "AWS_REGION": "x"}}
    seen = account.result(account.start(account.create(PLAIN, Environment=mine), "/"))
    assert seen["modules"] == ["app", "boto3", "urllib3"]
    assert not any(str(deploy.ROOT) in entry for entry in seen["path"])
    assert {"MINE": "yes", "AWS_REGION": REGION}.items() <= seen["environ"].items()
    assert "PYTEST_CURRENT_TEST" not in seen["environ"]
    other = account.result(account.start(account.create(PLAIN), "/"))
    keys = {found["environ"]["AWS_ACCESS_KEY_ID"] for found in (seen, other)}
    assert len(keys | {account.access_key}) == 3


def test_full_disk_while_unpacking_is_over_when_there_is_room(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(_: zipfile.ZipFile, path: Path) -> None:
        monkeypatch.undo()
        os.makedirs(path, exist_ok=True)
        Path(path, "app.py").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    name = account.create(zipped(f"{BARE}#"))  # まだ展開していない
    monkeypatch.setattr(zipfile.ZipFile, "extractall", run_out)
    assert account.result(account.start(name, "/"))


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("import nowhere", "Runtime.ImportModuleError", "No module named 'nowhere'"),
        ("def handler(*_):\n    1 / 0", "ZeroDivisionError", "division by zero"),
    ],
)
def test_error_of_the_handler_fails_the_execution_and_is_logged(
    account: Account, code: str, kind: str, message: str
) -> None:
    name = account.create(zipped(code))
    execution = account.ended(account.start(name, {}))
    assert execution["Status"] == "FAILED"
    assert (execution["Error"]["ErrorType"], execution["Error"]["ErrorMessage"]) == (kind, message)
    events = account.logs.filter_log_events(logGroupName=f"/aws/lambda/{name}")["events"]
    assert json.loads(events[0]["message"])["errorType"] == kind


# 時計とコマンド


def test_speed_scales_every_durable_wait() -> None:
    with LocalAws(speed=200) as server:
        account = Account(server.endpoint, server.access_key)
        roomy, tight = (
            account.create(CODE, DurableConfig={"ExecutionTimeout": t}) for t in (9000, 300)
        )
        asks, lasts = (account.start(name, TO_APPROVE) for name in (roomy, tight))
        waits = account.start(roomy, order_of())
        assert account.result(waits)["status"] == "COMPLETED"
        assert account.result(asks)["status"] == "APPROVAL_TIMED_OUT"
        assert account.ended(lasts)["Status"] == "TIMED_OUT"
        for arn, seconds in ((waits, 10), (asks, 600), (lasts, 300)):
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
            cwd=deploy.ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.printed = read_to("AWS_SESSION_TOKEN\n", self.process)
        endpoint, key = re.findall(r"(?:URL|KEY_ID)=(\S+)", self.printed)
        self.account = Account(endpoint, key)


def test_signal_ends_every_process(tmp_path: Path) -> None:
    command, scratch = Command(), tmp_path / "busy"
    assert "停止するとすべて失われ" in command.printed
    account = command.account
    name = account.create(PLAIN)
    # 1 つのプロセスが処理の途中に、もう 1 つが待機中にあるとき、終える。
    account.start(name, str(scratch))
    busy = eventually(lambda: scratch.exists() and scratch.read_text())
    idle = account.result(account.start(name, "/", DurableExecutionName="order-1"))["pid"]
    os.killpg(command.process.pid, signal.SIGTERM)  # ターミナルからと同じく、グループに届く
    stdout, stderr = command.process.communicate(timeout=10)
    assert (command.process.returncode, stderr) == (0, "")
    assert "異常終了" not in stdout
    assert stdout.endswith("\n\nローカル AWS を停止しました。\n")
    shown = re.findall(r"order-1  (\S+)", stdout)
    assert shown == ["呼び出し終了（完了）", "実行終了（SUCCEEDED）"]
    for pid in (busy, idle):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_server_without_readable_output_goes_on_and_killed_hard_leaves_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # 強制終了されれば、フォルダーは残る
    command = Command(PYTHONIOENCODING="ascii")
    account, stdout = command.account, command.process.stdout
    assert stdout
    try:
        name = account.create(PLAIN)
        assert account.result(account.start(name, "/"))
        assert eventually(lambda: "SUCCEEDED" in stdout.readline())
        stdout.close()
        pids = [str(account.result(account.start(name, "/"))["pid"]) for _ in range(2)]
        os.kill(int(pids[1]), 0)
    finally:
        command.process.kill()
        _, stderr = command.process.communicate()
    assert stderr == ""
    state = ["ps", "-o", "stat=", "-p", pids[1]]
    eventually(lambda: subprocess.run(state, capture_output=True).stdout[:1] in (b"", b"Z"))


@pytest.mark.parametrize("port", ["taken", "99999", "-1", "80"])
def test_port_that_cannot_be_used_is_one_sentence(
    port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "LocalAws", start := mock.Mock(wraps=LocalAws))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if port == "taken":
            port = str(taken.getsockname()[1])
        if port == "80":  # root なら使えてしまう
            start.side_effect = OSError(errno.EACCES, "Permission denied")
        text = said("--port", port, "--speed", "3")
    assert re.fullmatch(rf"ポート {port} は[^。]+。--port [^。]+。", text)
    assert start.call_args.args[:2] == (int(port), 3)


@pytest.mark.parametrize("option", ["--speed=0", "--speed=-1", "--speed=nan", "--port=x"])
def test_senseless_option_is_one_sentence(option: str) -> None:
    assert re.fullmatch(r"オプションが正しくありません（[^。]+）。--help [^。]+。", said(option))


def said(*arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        command_line.main(arguments)
    return str(caught.value.code)


def test_missing_moto_is_one_sentence() -> None:
    program = "import runpy, sys; sys.modules['moto'] = None; runpy.run_module('tests.local_aws')"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=deploy.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"パッケージ moto\S* がありません。.*pip install[^。]+。\n", done.stderr)
