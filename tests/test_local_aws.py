"""ローカル AWS が AWS と同じようにふるまうこと。"""

import io
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from botocore.validate import validate_parameters

import deploy
from tests.local_aws import workers
from tests.local_aws.executions import Store
from tests.local_aws.gateway import LocalAws
from tests.support.account import REGION, Account, eventually, refused
from tests.support.flows import APPROVE, TO_APPROVE
from tests.support.terminal import read_to

BARE = """import importlib.util, json, os, pathlib, sys, time
def handler(event, context):
    [start] = event["InitialExecutionState"]["Operations"]
    scratch = pathlib.Path(json.loads(start["ExecutionDetails"]["InputPayload"]))
    if not scratch.exists():
        scratch.write_text(str(os.getpid()))
        time.sleep(600)
    print(context)
    seen = {"pid": os.getpid(), "path": sys.path, "environ": dict(os.environ), **vars(context)}
    seen["left"] = context.get_remaining_time_in_millis(), context.identity, context.client_context
    names = "app", "boto3", "urllib3", "tests", "moto", "pytest", "werkzeug", "pip"
    seen["modules"] = [name for name in names if importlib.util.find_spec(name)]
    return {"Status": "SUCCEEDED", "Result": json.dumps(seen)}
"""
STEP = """import aws_durable_execution_sdk_python as sdk
@sdk.durable_step
def leave(ctx): raise KeyboardInterrupt
@sdk.durable_execution
def handler(event, context): return context.step(leave())
"""
EXIT = "RequestId: .* Error: Runtime exited with error: exit status"
CODE = deploy.build_zip()


def zipped(code: str, name: str = "mine.py", others: bytes = CODE) -> bytes:
    archive = io.BytesIO(others)
    with zipfile.ZipFile(archive, "a") as target:
        target.writestr(zipfile.ZipInfo(name), code)
    return archive.getvalue()


PLAIN = zipped(BARE, "app.py", b"")


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with LocalAws(speed=5) as server:
        yield Account(server.endpoint, server.access_key)


def test_another_key_is_refused_before_the_body_is_read(account: Account) -> None:
    stranger = Account(account.endpoint, account.access_key[:-1])
    message = refused("UnrecognizedClientException", stranger.functions.list_functions)
    assert message.endswith("export の行を貼り付けてください。")
    refused("InvalidClientTokenId", stranger.sts.get_caller_identity)
    length, endless = {"Content-Length": "1000000"}, {"Transfer-Encoding": "chunked"}
    for key, body, status in (("/", length, 403), (account.access_key, endless, 411)):
        scope = f"{key}/20250101/{REGION}/sts/aws4_request"
        signed = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host"
        connection = HTTPConnection(account.endpoint.removeprefix("http://"), timeout=20)
        connection.request("POST", "/", headers={"Authorization": signed} | body)
        assert connection.getresponse().status == status


def test_slips_are_refused_as_aws_refuses_them(account: Account) -> None:
    f, function = account.functions, account.create(CODE)
    plain = account.create(PLAIN, DurableConfig=None)
    one: Any = {"FunctionName": f"{function}:1", "InvocationType": "Event"}
    beyond, invalid = "ローカル AWS は、.+に対応していません。", "InvalidParameterValueException"
    slips: list[tuple[str, str, dict[str, Any]]] = [
        (invalid, ".* unqualified ARN", {"FunctionName": function}),
        (invalid, ".* synchronously .* 15 minutes.", {"InvocationType": "RequestResponse"}),
        ("NotImplementedException", beyond, {"InvocationType": "DryRun"}),
        ("NotImplementedException", beyond, {"FunctionName": plain}),
        ("InvalidRequestContentException", ".* json.*", {"Payload": "{'order_id': 'order-123'}"}),
        ("ValidationException", ".*'a b'.*", {"DurableExecutionName": "a b"}),
        ("ValidationException", ".*aaa.*", {"DurableExecutionName": "a" * 65}),
        ("ResourceNotFoundException", ".* not found.*", {"FunctionName": f"{function}:9"}),
        ("ResourceNotFoundException", ".* not found.*", {"FunctionName": ":1"}),
    ]
    for code, words, slip in slips:
        assert re.fullmatch(words, refused(code, f.invoke, **one | slip))
    for call in (f.list_durable_executions_by_function, f.list_versions_by_function):
        refused("ResourceNotFoundException", call, FunctionName="nothing")
    for call in (f.get_durable_execution, f.stop_durable_execution):
        refused("ResourceNotFoundException", call, DurableExecutionArn="None")
    for call in (f.pause_durable_execution, f.resume_durable_execution, f.delete_durable_execution):
        refused("NotImplementedException", call, DurableExecutionArn="None")


def test_same_name_is_one_execution_until_its_function_is_deleted(account: Account) -> None:
    name, look, same = account.create(CODE), Store.list_all, {"DurableExecutionName": "same"}
    with ThreadPoolExecutor(3) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "list_all", lambda self: [look(self), Event().wait(0.3)][0])
        [arn] = set(pool.map(lambda _: account.start(name, TO_APPROVE, **same), range(3)))
    account.functions.delete_function(FunctionName=name)
    account.create(PLAIN, FunctionName=name)
    assert [account.start(name, "/", **same)] == arns(account, FunctionName=name)
    account.send(account.callback(arn), APPROVE)
    assert account.result(arn)["status"] == "COMPLETED"


def test_one_answer_is_taken_and_none_after_the_end(account: Account) -> None:
    f, name = account.functions, account.create(CODE)
    arn, stopped = (account.start(name, TO_APPROVE) for _ in range(2))
    asked: Any = {"FunctionName": name, "Qualifier": "1", "Statuses": ["RUNNING"]}
    newest_first, oldest_first = (arns(account, **asked, ReverseOrder=b) for b in (False, True))
    assert newest_first == oldest_first[::-1] == [stopped, arn]
    callback, late = account.callback(arn), account.callback(stopped)
    invalid = "InvalidParameterValueException"
    assert "utf-8" in refused(invalid, account.send, callback=callback, result=b"\xff")
    f.send_durable_execution_callback_heartbeat(CallbackId=callback)
    account.send(callback, APPROVE)
    refused("CallbackTimeoutException", account.send, callback=callback, result=APPROVE)
    assert account.result(arn)["approver"] == "sato"
    f.stop_durable_execution(DurableExecutionArn=stopped)
    for kind in ("success", "failure", "heartbeat"):
        call = getattr(f, f"send_durable_execution_callback_{kind}")
        for closed in (callback, late):
            refused("CallbackTimeoutException", call, CallbackId=closed)
        for unknown in ("None", "bm90aGluZw=="):
            refused("ResourceNotFoundException", call, CallbackId=unknown)


def arns(account: Account, **asked: Any) -> list[str]:
    found = account.functions.list_durable_executions_by_function(**asked)["DurableExecutions"]
    return [execution["DurableExecutionArn"] for execution in found]


def details(events: list[Any], kind: str, name: str | None = None) -> list[Any]:
    found = [e for e in events if e["EventType"] == kind and name in (None, e.get("Name"))]
    return [event[f"{kind}Details"] for event in found]


def test_history_has_all_that_the_model_requires(account: Account) -> None:
    arn = account.start(function := account.create(CODE), TO_APPROVE)
    account.send(account.callback(arn), APPROVE)
    account.result(arn)
    logged = str(account.logs.filter_log_events(logGroupName=f"/aws/lambda/{function}"))
    events = account.history(arn)
    shape = account.functions.meta.service_model.shape_for("Event")
    for event in events:
        validate_parameters(event, shape)
    read = account.functions.get_durable_execution_history
    assert read(DurableExecutionArn=arn, ReverseOrder=True)["Events"] == events[::-1]
    assert [asked["Timeout"] for asked in details(events, "CallbackStarted")] == [600]
    (failed,), (paid,) = (details(events, kind, "pay") for kind in ("StepFailed", "StepSucceeded"))
    assert failed["RetryDetails"].keys() == {"CurrentAttempt", "NextAttemptDelaySeconds"}
    assert paid["RetryDetails"] == {"CurrentAttempt": 2}
    invocations = details(events, "InvocationCompleted")
    assert len({invocation["RequestId"] for invocation in invocations}) == len(invocations) > 2
    assert not [i for i in invocations if "Error" in i or i["RequestId"] not in logged]


def test_timed_out_invocation_is_tried_again(account: Account, tmp_path: Path) -> None:
    scratch = tmp_path / "pid"
    arn = account.start(account.create(PLAIN, Timeout=1), str(scratch))
    assert account.result(arn)["pid"] != int(scratch.read_text())
    died, *others = details(account.history(arn), "InvocationCompleted")
    message = f"RequestId: {died['RequestId']} Error: Task timed out after 1.00 seconds"
    assert died["Error"]["Payload"] == {"ErrorType": "Sandbox.Timedout", "ErrorMessage": message}
    assert not [invocation for invocation in others if "Error" in invocation]


def test_worker_sees_the_zip_and_boto3_alone(account: Account, monkeypatch: Any) -> None:
    monkeypatch.setattr(workers, "WARM_LIMIT", 1)
    name = account.create(PLAIN)
    seen = account.result(account.start(name, "/"))
    assert seen["modules"] == ["app", "boto3", "urllib3"]
    assert not any(str(deploy.ROOT) in entry for entry in seen["path"])
    assert seen["environ"].keys().isdisjoint({"PYTEST_CURRENT_TEST", "VIRTUAL_ENV"})
    assert [seen["function_name"], seen["memory_limit_in_mb"]] == [name, "256"]
    assert seen["invoked_function_arn"].endswith(f":function:{name}:{seen['function_version']}")
    assert (0 < seen["left"][0] <= 30_000, seen["left"][1:]) == (True, [None, None])
    stream = {"logGroupName": seen["log_group_name"], "logStreamName": seen["log_stream_name"]}
    [printed] = account.logs.get_log_events(**stream)["events"]
    assert seen["aws_request_id"] in printed["message"]
    pids = []
    for code in (PLAIN, PLAIN, PLAIN + b" "):
        account.functions.update_function_code(FunctionName=name, ZipFile=code)
        pids += [account.result(account.start(name, "/", Qualifier="$LATEST"))["pid"]]
    assert pids[0] == pids[1] != pids[2]
    with pytest.raises(ProcessLookupError):  # ウォーム状態のプロセスは増え続けない
        os.kill(seen["pid"], 0)


def test_mistake_in_the_code_fails_the_execution_and_is_logged(account: Account) -> None:
    unable, syntax = "Runtime.ImportModuleError", "Runtime.UserCodeSyntaxError"
    mistakes = [
        ("import nowhere", unable, "Unable to import module 'mine': No module named 'nowhere'"),
        ("def handler(:", syntax, "Syntax error in module 'mine': invalid syntax .*"),
        ("def handler(*_):\n    1 / 0", "ZeroDivisionError", "division by zero"),
        ("def handler(*_):\n    import nowhere", "ModuleNotFoundError", "No module .*"),
        ("def handler(*_):\n    raise SystemExit(3)", "SystemExit", f"{EXIT} 3"),
        (STEP, "KeyboardInterrupt", f"{EXIT} 1"),
    ]
    names = [account.create(zipped(code), Handler="mine.handler") for code, *_ in mistakes]
    arns = [account.start(name, {}) for name in names]
    for name, arn, (_, kind, message) in zip(names, arns, mistakes, strict=True):
        error = account.ended(arn)["Error"]
        assert error["ErrorType"] == ("Runtime.ExitError" if EXIT in message else kind)
        assert re.fullmatch(message, error["ErrorMessage"])
        assert len(details(account.history(arn), "InvocationCompleted")) == 5
        log = account.logs.filter_log_events(logGroupName=f"/aws/lambda/{name}")["events"]
        named = rf'{kind}|{{.*"errorType": "{kind}"'
        assert any(re.match(named, event["message"]) for event in log)


def test_speed_scales_every_durable_wait() -> None:
    with LocalAws(speed=200) as server:
        account = Account(server.endpoint, server.access_key)
        for timeout, status, seconds in ((9000, "SUCCEEDED", 600), (300, "TIMED_OUT", 300)):
            name = account.create(CODE, DurableConfig={"ExecutionTimeout": timeout})
            execution = account.ended(account.start(name, TO_APPROVE))
            took = execution["EndTimestamp"] - execution["StartTimestamp"]
            assert (execution["Status"], took.total_seconds() >= seconds) == (status, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_end_of_the_command_is_the_end_of_every_process(tmp_path: Path, number: int) -> None:
    """日本語を表示できなくても、出力先がなくなっても、注文は処理される。"""
    # 強制終了されれば、TMPDIR のフォルダーは残る
    env = os.environ | {"TMPDIR": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    run = [sys.executable, "-m", "tests.local_aws", "--port", "0", "--speed", "20"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": env}
    process = subprocess.Popen(run, cwd=deploy.ROOT, start_new_session=True, text=True, **pipes)
    printed = read_to("AWS_SESSION_TOKEN\n", process)
    account = Account(*re.findall(r"(?:URL|KEY_ID)=(\S+)", printed))
    if number == signal.SIGKILL:
        process.stdout = process.stdout and process.stdout.close()
    # 1 つのプロセスが処理の途中に、もう 1 つが待機中にあるとき、終える。
    name, scratch = account.create(PLAIN), tmp_path / "busy"
    account.start(name, str(scratch))
    busy = int(eventually(lambda: scratch.exists() and scratch.read_text()))
    idle = account.result(account.start(name, "/"))["pid"]
    os.killpg(process.pid, number)  # ターミナルからと同じく、グループに届く
    stdout, stderr = process.communicate(timeout=10)
    if number == signal.SIGTERM:
        assert (process.returncode, stderr, stdout.count("pid=")) == (0, "", 1)
    state = ["ps", "-o", "stat=", "-p", f"{busy},{idle}"]
    eventually(lambda: not re.sub(rb"Z\S*|\s", b"", subprocess.run(state, stdout=-1).stdout))


def test_what_keeps_it_from_starting_is_one_sentence() -> None:
    missing = "import runpy, sys; sys.modules['moto'] = None; runpy.run_module('tests.local_aws')"
    with LocalAws() as server:
        taken = ["-m", "tests.local_aws", "--port", str(server.port)]
        for arguments, sentence in (
            (["-c", missing], r"パッケージ moto\S* がありません。.*pip install[^。]+"),
            (["tests/local_aws"], "[^。]+`python -m tests.local_aws` を[^。]+"),
            (taken, r"ポート \d+ は[^。]+（Address already in use）。[^。]+か、--port [^。]+"),
            ([*taken[:-1], "99999"], r"ポート 99999 は[^。]+（Invalid argument）。[^。]+"),
            ([*taken[:2], "--speed", "0"], "--speed は 0 より大きく[^。]+"),
        ):
            run = [sys.executable, *arguments]
            done = subprocess.run(run, cwd=deploy.ROOT, capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (1, "")
            assert re.fullmatch(f"{sentence}。\n", done.stderr)
