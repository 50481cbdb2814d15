"""手元の AWS が AWS と同じにふるまうこと。boto3 と本物の aws CLI から確かめる。"""

import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aws_durable_execution_sdk_python as sdk
import boto3
import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from .local_aws.gateway import LocalAws
from .local_aws.logs import Log

ROOT = Path(__file__).parents[1]
AWS = str(Path(sys.executable).with_name("aws"))
REGION = "ap-northeast-1"
BASIC = "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"
CHECKPOINT = ["lambda:CheckpointDurableExecution", "lambda:GetDurableExecutionState"]

DURABLE = """
import logging
import os
import pathlib
import time
from aws_durable_execution_sdk_python import durable_execution, durable_step
from aws_durable_execution_sdk_python.config import Duration, StepConfig
from aws_durable_execution_sdk_python.retries import RetryStrategyConfig, create_retry_strategy

VERSION = "one"
RETRY = create_retry_strategy(
    RetryStrategyConfig(max_attempts=3, initial_delay=Duration.from_seconds(1))
)


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
    if event.get("ask"):
        callback = context.create_callback(name="ask")
        result["answer"] = callback.result()
    context.wait(Duration.from_seconds(event.get("wait", 30)))
    result["attempts"] = context.step(pay(event), config=StepConfig(retry_strategy=RETRY))
    return result | {"version": VERSION}
"""

PLAIN = """
import importlib.util
import json
import logging
import os
import sys
import time


def handler(event, context):
    if event.get("sleep"):
        time.sleep(event["sleep"])
    if event.get("exit"):
        sys.exit(3)
    if event.get("log"):
        logging.getLogger().warning("text line")
        raise KeyError("missing")
    import boto3
    found = {name: bool(importlib.util.find_spec(name)) for name in event.get("modules", [])}
    return {
        "modules": found,
        "environ": dict(os.environ),
        "path": sys.path,
        "request_id": context.aws_request_id,
        "arn": context.invoked_function_arn,
        "remaining": context.get_remaining_time_in_millis(),
        "account": boto3.client("sts").get_caller_identity()["Account"],
    }
"""


def trust(service: str = "lambda.amazonaws.com") -> str:
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sts:AssumeRole",
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def policy(resource: str, actions: list[str] = CHECKPOINT, effect: str = "Allow") -> str:
    statement = {"Effect": effect, "Action": actions, "Resource": resource}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def zipped(code: str, with_sdk: bool = True) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr(zipfile.ZipInfo("app.py"), code)
        package = Path(sdk.__file__).parent
        for file in sorted(package.rglob("*.py")) if with_sdk else []:
            name = file.relative_to(package.parent).as_posix()
            target.writestr(zipfile.ZipInfo(name), file.read_bytes())
    return archive.getvalue()


def eventually(look: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{seconds} 秒待っても起きなかった"
        time.sleep(0.02)
    return found


class Account:
    """一つの手元の AWS への boto3 のクライアントと、よく使う手順。"""

    def __init__(self, endpoint: str, region: str = REGION, access_key: str = "test") -> None:
        def client(service: str) -> Any:
            return boto3.client(
                service,
                endpoint_url=endpoint,
                region_name=region,
                aws_access_key_id=access_key,
                aws_secret_access_key="test",
                config=Config(retries={"max_attempts": 0}, max_pool_connections=100),
            )

        self.endpoint = endpoint
        self.iam, self.functions, self.logs = client("iam"), client("lambda"), client("logs")

    def role(self, checkpoint_on: str | None = "arn:aws:lambda:*:*:function:*") -> str:
        name = f"role-{uuid.uuid4().hex[:8]}"
        created = self.iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust())
        self.iam.attach_role_policy(RoleName=name, PolicyArn=BASIC)
        if checkpoint_on:
            self.iam.put_role_policy(
                RoleName=name, PolicyName="durable", PolicyDocument=policy(checkpoint_on)
            )
        return str(created["Role"]["Arn"])

    def create(self, code: bytes, role: str | None = None, **changes: Any) -> str:
        name: str = changes.pop("FunctionName", f"f-{uuid.uuid4().hex[:8]}")
        parameters = {
            "Runtime": "python3.13",
            "Role": role or self.role(),
            "Handler": "app.handler",
            "Code": {"ZipFile": code},
            "Timeout": 30,
            "LoggingConfig": {"LogFormat": "JSON"},
            "DurableConfig": {"ExecutionTimeout": 3600, "RetentionPeriodInDays": 3},
            **changes,
        }
        kept = {key: value for key, value in parameters.items() if value is not None}
        self.functions.create_function(FunctionName=name, **kept)
        self.functions.publish_version(FunctionName=name)
        return name

    def start(self, function: str, payload: dict[str, Any], **changes: Any) -> str:
        parameters = {"Qualifier": "1", "InvocationType": "Event", **changes}
        answer = self.functions.invoke(
            FunctionName=function, Payload=json.dumps(payload), **parameters
        )
        assert answer["StatusCode"] == 202
        return str(answer["DurableExecutionArn"])

    def call(self, function: str, payload: Any = None, **changes: Any) -> tuple[Any, Any]:
        answer = self.functions.invoke(
            FunctionName=function, Payload=json.dumps(payload or {}), **changes
        )
        return json.loads(answer["Payload"].read()), answer

    def describe(self, arn: str) -> Any:
        return self.functions.get_durable_execution(DurableExecutionArn=arn)

    def ended(self, arn: str) -> Any:
        return eventually(lambda: (e := self.describe(arn))["Status"] != "RUNNING" and e)

    def result(self, arn: str) -> Any:
        execution = self.ended(arn)
        assert execution["Status"] == "SUCCEEDED", execution
        return json.loads(execution["Result"])

    def history(self, arn: str) -> Any:
        get = self.functions.get_durable_execution_history
        return get(DurableExecutionArn=arn, IncludeExecutionData=True)["Events"]

    def callback(self, arn: str) -> str:
        def find() -> str | None:
            started = [e for e in self.history(arn) if e["EventType"] == "CallbackStarted"]
            return started[0]["CallbackStartedDetails"]["CallbackId"] if started else None

        return str(eventually(find))

    def messages(self, function: str) -> list[str]:
        found = self.logs.filter_log_events(logGroupName=f"/aws/lambda/{function}")
        return [event["message"] for event in found["events"]]


def refused(code: str, call: Callable[..., Any], **parameters: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    assert caught.value.response["Error"]["Code"] == code
    return str(caught.value.response["Error"]["Message"])


@pytest.fixture(scope="module")
def server() -> Iterator[LocalAws]:
    with LocalAws(skip_time=True) as running:
        yield running


@pytest.fixture(scope="module")
def account(server: LocalAws) -> Account:
    return Account(server.endpoint)


@pytest.fixture(scope="module")
def code() -> bytes:
    return zipped(DURABLE)


@pytest.fixture(scope="module")
def shop(account: Account, code: bytes) -> str:
    return account.create(code)


@pytest.fixture(scope="module")
def plain(account: Account) -> str:
    return account.create(zipped(PLAIN, with_sdk=False), DurableConfig=None)


# 関数の設定と版


def test_durable_and_logging_config_are_in_every_response(account: Account, code: bytes) -> None:
    name, role = f"f-{uuid.uuid4().hex[:8]}", account.role()
    durable = {"ExecutionTimeout": 60, "RetentionPeriodInDays": 3}
    logging = {"LogFormat": "JSON", "ApplicationLogLevel": "DEBUG"}
    f = account.functions
    answers = [
        f.create_function(
            FunctionName=name,
            Runtime="python3.13",
            Role=role,
            Handler="app.handler",
            Code={"ZipFile": code},
            DurableConfig=durable,
            LoggingConfig=logging,
        ),
        f.publish_version(FunctionName=name),
        f.get_function(FunctionName=name)["Configuration"],
        f.get_function_configuration(FunctionName=name, Qualifier="1"),
        f.update_function_configuration(FunctionName=name, Timeout=9),
        f.update_function_code(FunctionName=name, ZipFile=code),
        *f.list_versions_by_function(FunctionName=name)["Versions"],
    ]
    for answer in answers:
        assert answer["DurableConfig"] == durable
        assert logging.items() <= answer["LoggingConfig"].items()


def test_durable_config_changes_only_on_a_durable_function(
    account: Account, code: bytes, plain: str
) -> None:
    name = account.create(code)
    change: dict[str, Any] = {"FunctionName": name, "DurableConfig": {"ExecutionTimeout": 5}}
    updated = account.functions.update_function_configuration(**change)
    assert updated["DurableConfig"] == {"ExecutionTimeout": 5, "RetentionPeriodInDays": 3}
    version = account.functions.get_function_configuration(FunctionName=name, Qualifier="1")
    assert version["DurableConfig"]["ExecutionTimeout"] == 3600
    change["FunctionName"] = plain
    update = account.functions.update_function_configuration
    refused("InvalidParameterValueException", update, **change)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ExecutionTimeout": 31_622_401},
        {"ExecutionTimeout": 60, "RetentionPeriodInDays": 91},
        {"RetentionPeriodInDays": 1},
    ],
)
def test_durable_config_out_of_range_is_refused(account: Account, wrong: dict[str, int]) -> None:
    with pytest.raises(ClientError, match=r"ValidationException|InvalidParameterValue"):
        account.create(zipped(PLAIN, with_sdk=False), DurableConfig=wrong)


def test_publish_mints_a_version_only_when_something_changed(account: Account) -> None:
    code = zipped(PLAIN, with_sdk=False)
    name = account.create(code)
    f = account.functions

    def publish() -> str:
        return str(f.publish_version(FunctionName=name)["Version"])

    assert publish() == "1"
    f.update_function_code(FunctionName=name, ZipFile=code)
    f.update_function_configuration(FunctionName=name, Timeout=30)
    assert publish() == "1"
    f.update_function_configuration(FunctionName=name, Timeout=31)
    assert publish() == "2"
    f.update_function_code(FunctionName=name, ZipFile=zipped("handler = print", with_sdk=False))
    assert publish() == "3"


@pytest.mark.parametrize("service", ["ec2.amazonaws.com", None])
def test_role_lambda_may_not_assume_is_refused(
    account: Account, shop: str, service: str | None
) -> None:
    role = "arn:aws:iam::123456789012:role/nobody"
    if service:
        name = f"role-{uuid.uuid4().hex[:8]}"
        made = account.iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust(service))
        role = made["Role"]["Arn"]
    expected = "The role defined for the function cannot be assumed by Lambda."
    with pytest.raises(ClientError, match=expected):
        account.create(zipped(PLAIN, with_sdk=False), role)
    update = account.functions.update_function_configuration
    message = refused("InvalidParameterValueException", update, FunctionName=shop, Role=role)
    assert message == expected


# 呼び出し


def test_invoke_fills_every_documented_field(account: Account, shop: str) -> None:
    result, answer = account.call(shop, {"id": "a"}, Qualifier="1")
    assert result == {"id": "a", "started": "one", "version": "one", "attempts": 2}
    assert answer["StatusCode"] == 200
    assert answer["ExecutedVersion"] == "1"
    model = botocore.session.get_session().get_service_model("lambda")
    pattern = model.shape_for("DurableExecutionArn").metadata["pattern"]
    arn = answer["DurableExecutionArn"]
    assert re.fullmatch(pattern, arn)
    assert arn.startswith(f"arn:aws:lambda:{REGION}:123456789012:function:{shop}:1/durable-exec")
    execution = account.describe(arn)
    assert json.loads(execution["InputPayload"]) == {"id": "a"}
    assert execution["FunctionArn"].endswith(f":function:{shop}:1")
    assert execution["Version"] == "1"
    assert execution["DurableConfig"] == {"ExecutionTimeout": 3600, "RetentionPeriodInDays": 3}
    assert execution["EndTimestamp"] > execution["StartTimestamp"]


@pytest.mark.parametrize(
    ("form", "qualifier", "version"),
    [
        ("{name}:1", None, "1"),
        ("{arn}:1", None, "1"),
        ("123456789012:function:{name}", "1", "1"),
        ("{name}", "$LATEST", "$LATEST"),
    ],
)
def test_each_way_to_name_a_version(
    account: Account, shop: str, form: str, qualifier: str | None, version: str
) -> None:
    arn = f"arn:aws:lambda:{REGION}:123456789012:function:{shop}"
    extra = {"Qualifier": qualifier} if qualifier else {}
    _, answer = account.call(form.format(name=shop, arn=arn), {"id": "b"}, **extra)
    assert answer["ExecutedVersion"] == version
    assert f":{version}/durable-execution/" in answer["DurableExecutionArn"]


def test_invoke_refuses_what_aws_refuses(account: Account, shop: str) -> None:
    invoke = account.functions.invoke
    message = refused("InvalidParameterValueException", invoke, FunctionName=shop, Payload="{}")
    assert message == "You cannot invoke a durable function using an unqualified ARN"
    one: dict[str, Any] = {"FunctionName": shop, "Qualifier": "1"}
    for broken in ("{", "NaN", "[" * 100_000, b"\xff"):
        refused("InvalidRequestContentException", invoke, **one, Payload=broken)
    large = json.dumps("x" * 1024 * 1024)
    too_large = {"Payload": large, "InvocationType": "Event"}
    refused("RequestTooLargeException", invoke, **one, **too_large)
    refused("RequestTooLargeException", invoke, **one, Payload=large * 6)
    refused("ValidationException", invoke, **one, DurableExecutionName="a b")
    refused("ValidationException", invoke, **one, DurableExecutionName="a" * 65)
    refused("InvalidParameterValueException", invoke, FunctionName=f"{shop}:2", Qualifier="1")
    refused("ResourceNotFoundException", invoke, FunctionName=shop, Qualifier="9")
    refused("ResourceNotFoundException", invoke, FunctionName="nothing", Qualifier="1")


def test_failure_of_the_handler_is_a_function_error(account: Account, shop: str) -> None:
    error, answer = account.call(shop, {"id": "c", "fail": True}, Qualifier="1")
    assert answer["FunctionError"] == "Unhandled"
    assert error["errorMessage"] == "だめ"
    execution = account.describe(answer["DurableExecutionArn"])
    assert execution["Status"] == "FAILED"
    assert execution["Error"]["ErrorMessage"] == "だめ"


def test_same_name_and_payload_is_the_same_execution(account: Account, shop: str) -> None:
    name = f"order-{uuid.uuid4().hex[:8]}"

    def send(_: int) -> str:
        return account.start(shop, {"id": name}, DurableExecutionName=name)

    with ThreadPoolExecutor(20) as pool:
        arns = set(pool.map(send, range(20)))
    assert len(arns) == 1
    assert f"/durable-execution/{name}/" in arns.pop()
    refused(
        "DurableExecutionAlreadyStartedException",
        account.functions.invoke,
        FunctionName=shop,
        Qualifier="1",
        DurableExecutionName=name,
        Payload=json.dumps({"id": "other"}),
    )


def test_hundred_orders_at_once_each_end_once(account: Account, shop: str) -> None:
    before = len(all_executions(account, shop))

    def send(number: int) -> str:
        return account.start(shop, {"id": f"hundred-{number}"})

    with ThreadPoolExecutor(100) as pool:
        arns = list(pool.map(send, range(100)))
    assert len(set(arns)) == 100
    results = [account.result(arn) for arn in arns]
    assert [result["id"] for result in results] == [f"hundred-{n}" for n in range(100)]
    assert {result["attempts"] for result in results} == {2}
    assert len(all_executions(account, shop)) == before + 100


def all_executions(account: Account, function: str, **filters: Any) -> list[Any]:
    listing = account.functions.get_paginator("list_durable_executions_by_function")
    pages = listing.paginate(FunctionName=function, PaginationConfig={"PageSize": 7}, **filters)
    return [execution for page in pages for execution in page["DurableExecutions"]]


def test_listing_filters_and_orders(account: Account, code: bytes) -> None:
    name = account.create(code)
    names = [f"n{number}" for number in range(8)]
    failing = {"id": "x", "fail": True}
    started = [account.start(name, {"id": n}, DurableExecutionName=n) for n in names]
    started += [account.start(name, failing, DurableExecutionName="bad")]
    for arn in started:
        account.ended(arn)
    account.start(name, {"id": "y"}, DurableExecutionName="latest", Qualifier="$LATEST")

    def listed(**filters: Any) -> list[str]:
        found = all_executions(account, name, **filters)
        return [execution["DurableExecutionName"] for execution in found]

    assert listed(Qualifier="1") == ["bad", *reversed(names)]
    assert listed(Qualifier="1", ReverseOrder=True) == [*names, "bad"]
    assert listed(Qualifier="$LATEST") == ["latest"]
    assert listed(DurableExecutionName="n3") == ["n3"]
    assert listed(Qualifier="1", Statuses=["FAILED"]) == ["bad"]
    assert listed(Qualifier="1", Statuses=["FAILED", "RUNNING"]) == ["bad"]
    assert len(listed()) == 10
    third = all_executions(account, name, DurableExecutionName="n2")[0]["StartTimestamp"]
    assert listed(Qualifier="1", StartedBefore=third) == ["n2", "n1", "n0"]
    assert "n1" not in listed(StartedAfter=third)
    refused(
        "ResourceNotFoundException",
        account.functions.list_durable_executions_by_function,
        FunctionName="nothing",
    )


def test_waiting_order_goes_on_with_the_version_it_started_on(
    account: Account, code: bytes
) -> None:
    name = account.create(code)
    old = account.start(name, {"id": "old", "ask": True})
    callback = account.callback(old)
    changed = zipped(DURABLE.replace('"one"', '"two"'))
    account.functions.update_function_code(FunctionName=name, ZipFile=changed)
    assert account.functions.publish_version(FunctionName=name)["Version"] == "2"
    new, _ = account.call(name, {"id": "new"}, Qualifier="2")
    assert new["version"] == "two"
    send(account, callback, "yes")
    assert account.result(old)["version"] == "one"


def test_deleted_function_is_gone_and_its_names_are_free(account: Account, code: bytes) -> None:
    name = account.create(code)
    waiting = account.start(name, {"id": "1", "ask": True}, DurableExecutionName="same")
    callback = account.callback(waiting)
    account.functions.delete_function(FunctionName=name)
    refused("ResourceNotFoundException", account.functions.get_function, FunctionName=name)
    account.create(code, FunctionName=name)
    assert all_executions(account, name) == []
    again = account.start(name, {"id": "2"}, DurableExecutionName="same")
    assert account.result(again)["id"] == "2"
    send(account, callback, "yes")
    assert account.ended(waiting)["Status"] == "FAILED"


# コールバックと停止


def send(account: Account, callback: str, answer: str) -> None:
    account.functions.send_durable_execution_callback_success(CallbackId=callback, Result=answer)


def test_two_waiting_orders_each_get_their_own_answer(account: Account, shop: str) -> None:
    arns = {order: account.start(shop, {"id": order, "ask": True}) for order in ("p", "q", "r")}
    callbacks = {order: account.callback(arn) for order, arn in arns.items()}
    assert len(set(callbacks.values())) == 3
    order = list(arns)
    random.Random(7).shuffle(order)
    for name in order:
        account.functions.send_durable_execution_callback_heartbeat(CallbackId=callbacks[name])
        send(account, callbacks[name], f"answer for {name}")
    for name, arn in arns.items():
        assert account.result(arn)["answer"] == f"answer for {name}"


def test_second_answer_is_refused_and_changes_nothing(account: Account, shop: str) -> None:
    arn = account.start(shop, {"id": "s", "ask": True})
    callback = account.callback(arn)

    def answer(number: int) -> bool:
        try:
            send(account, callback, str(number))
        except account.functions.exceptions.CallbackTimeoutException:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        accepted = [number for number, ok in enumerate(pool.map(answer, range(8))) if ok]
    assert [account.result(arn)["answer"]] == [str(number) for number in accepted]
    f = account.functions
    for call in (
        f.send_durable_execution_callback_success,
        f.send_durable_execution_callback_failure,
        f.send_durable_execution_callback_heartbeat,
    ):
        refused("CallbackTimeoutException", call, CallbackId=callback)


def test_failure_answer_fails_the_callback(account: Account, shop: str) -> None:
    arn = account.start(shop, {"id": "t", "ask": True})
    account.functions.send_durable_execution_callback_failure(
        CallbackId=account.callback(arn), Error={"ErrorMessage": "却下", "ErrorType": "No"}
    )
    execution = account.ended(arn)
    assert execution["Status"] == "FAILED"
    assert "却下" in execution["Error"]["ErrorMessage"]


def test_stop_ends_a_waiting_order(account: Account, shop: str) -> None:
    arn = account.start(shop, {"id": "u", "ask": True})
    callback = account.callback(arn)
    running = account.describe(arn)
    assert running["ExpectedExecutionTimeoutTimestamp"] > running["StartTimestamp"]
    stopped = account.functions.stop_durable_execution(
        DurableExecutionArn=arn, Error={"ErrorType": "Cleanup", "ErrorMessage": "片付け"}
    )
    assert stopped["StopTimestamp"]
    execution = account.describe(arn)
    assert execution["Status"] == "STOPPED"
    assert execution["Error"]["ErrorMessage"] == "片付け"
    refused(
        "CallbackTimeoutException",
        account.functions.send_durable_execution_callback_success,
        CallbackId=callback,
    )


def test_unknown_executions_and_callbacks_are_404(account: Account, shop: str) -> None:
    f = account.functions
    known = account.start(shop, {"id": "v"})
    unknown = f"{known.rpartition('/')[0]}/{uuid.uuid4()}"
    for call in (
        f.get_durable_execution,
        f.get_durable_execution_history,
        f.stop_durable_execution,
    ):
        refused("ResourceNotFoundException", call, DurableExecutionArn=unknown)
    for call in (
        f.send_durable_execution_callback_success,
        f.send_durable_execution_callback_failure,
        f.send_durable_execution_callback_heartbeat,
    ):
        refused("ResourceNotFoundException", call, CallbackId="bm90aGluZw==")


def test_history_has_typed_events_with_their_data(account: Account, shop: str) -> None:
    arn = account.start(shop, {"id": "w"})
    account.result(arn)
    events = account.history(arn)
    kinds = [event["EventType"] for event in events]
    assert kinds[0] == "ExecutionStarted"
    assert kinds[-1] == "ExecutionSucceeded"
    for kind in ("StepSucceeded", "StepFailed", "WaitSucceeded", "InvocationCompleted"):
        assert kind in kinds
    assert json.loads(events[0]["ExecutionStartedDetails"]["Input"]["Payload"]) == {"id": "w"}
    assert events[-1]["EventTimestamp"] >= events[0]["EventTimestamp"]


def test_chained_invoke_reaches_plain_and_durable_functions(
    account: Account, shop: str, plain: str
) -> None:
    child = account.result(account.start(shop, {"id": "x", "target": f"{shop}:1"}))["target"]
    assert child["id"] == "child"
    called = account.result(account.start(shop, {"id": "x", "target": plain}))["target"]
    assert called["account"] == "123456789012"
    missing = account.ended(account.start(shop, {"id": "x", "target": "nothing"}))
    assert "not found" in missing["Error"]["ErrorMessage"]


# IAM


def refusal_of(account: Account, code: bytes, role: str, name: str | None = None) -> str:
    function = account.create(code, role, **({"FunctionName": name} if name else {}))
    execution = account.ended(account.start(function, {"id": "z"}))
    assert execution["Status"] == "FAILED"
    return str(execution["Error"]["ErrorMessage"])


def test_role_without_checkpoint_permission_is_refused(account: Account, code: bytes) -> None:
    message = refusal_of(account, code, account.role(checkpoint_on=None))
    assert "AccessDeniedException" in message
    assert "not authorized to perform: lambda:CheckpointDurableExecution on resource" in message


@pytest.mark.parametrize("resource", ["{other}:*", "{name}", "{name}:2/*", "{name}:$LATEST/*"])
def test_permission_on_anything_else_is_refused(
    account: Account, code: bytes, resource: str
) -> None:
    name = f"f-{uuid.uuid4().hex[:8]}"
    on = resource.format(name=name, other=f"not-{name}")
    role = account.role(f"arn:aws:lambda:{REGION}:123456789012:function:{on}")
    assert "AccessDeniedException" in refusal_of(account, code, role, name)


def test_policy_change_takes_effect_at_once(account: Account, code: bytes) -> None:
    role = account.role()
    function = account.create(code, role)
    arn = account.start(function, {"id": "z", "ask": True})
    callback = account.callback(arn)
    account.iam.put_role_policy(
        RoleName=role.rpartition("/")[2],
        PolicyName="deny",
        PolicyDocument=policy("*", ["lambda:Checkpoint*"], effect="Deny"),
    )
    send(account, callback, "yes")
    assert "explicit deny" in account.ended(arn)["Error"]["ErrorMessage"]


def test_each_durable_action_is_checked_for_the_role(
    server: LocalAws, account: Account, code: bytes
) -> None:
    role = account.role(checkpoint_on=None)
    arn = account.start(account.create(code, role), {"id": "z"})
    account.ended(arn)
    key = next(key for key, (who, _) in server.workers.principals.items() if who == role)
    worker = Account(server.endpoint, access_key=key).functions
    asked: dict[str, Any] = {"DurableExecutionArn": arn, "CheckpointToken": "aaaa"}
    for call in (worker.checkpoint_durable_execution, worker.get_durable_execution_state):
        refused("AccessDeniedException", call, **asked)
    account.iam.put_role_policy(
        RoleName=role.rpartition("/")[2], PolicyName="p", PolicyDocument=policy("*")
    )
    for call in (worker.checkpoint_durable_execution, worker.get_durable_execution_state):
        refused("InvalidParameterValueException", call, **asked)


# ワーカープロセスとログ


def test_worker_sees_the_zip_and_boto3_and_nothing_else(
    account: Account, plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_SECRET", "1")
    account.functions.update_function_configuration(
        FunctionName=plain, Environment={"Variables": {"MINE": "yes", "AWS_REGION": "x"}}
    )
    modules = ["app", "boto3", "urllib3", "tests", "moto", "pytest", "werkzeug", "pip"]
    seen, answer = account.call(plain, {"modules": modules})
    assert answer["ExecutedVersion"] == "$LATEST"
    assert [name for name, found in seen["modules"].items() if found] == modules[:3]
    assert not any(str(ROOT) in entry for entry in seen["path"])
    environment = seen["environ"]
    assert "LOCAL_SECRET" not in environment
    assert environment["MINE"] == "yes"
    assert environment["AWS_REGION"] == REGION
    assert environment["AWS_LAMBDA_FUNCTION_NAME"] == plain
    assert environment["AWS_ENDPOINT_URL"] == account.endpoint
    assert 0 < seen["remaining"] <= 30_000


def test_plain_function_reports_errors_exits_and_timeouts(account: Account) -> None:
    name = account.create(
        zipped(PLAIN, with_sdk=False), DurableConfig=None, LoggingConfig=None, Timeout=1
    )
    error, answer = account.call(name, {"log": True})
    assert answer["FunctionError"] == "Unhandled"
    assert error["errorType"] == "KeyError"
    assert [re.findall(r"(\w+\.py)", frame) for frame in error["stackTrace"]] == [["app.py"]]
    error, _ = account.call(name, {"exit": True})
    assert error["errorType"] == "Runtime.ExitError"
    assert "exit status 3" in error["errorMessage"]
    error, _ = account.call(name, {"sleep": 60})
    assert "Task timed out after 1.00 seconds" in error["errorMessage"]
    text = "\n".join(account.messages(name))
    assert re.search(r"START RequestId: [0-9a-f-]{36} Version: \$LATEST", text)
    assert re.search(r"\[WARNING\]\t\S+Z\t[0-9a-f-]{36}\ttext line", text)
    assert "[ERROR] KeyError: 'missing'\nTraceback" in text
    assert "Task timed out" in text


def test_kill_in_the_middle_of_a_step_and_the_order_ends_right(
    account: Account, shop: str, tmp_path: Path
) -> None:
    scratch = tmp_path / "pid"
    arn = account.start(shop, {"id": "killed", "scratch": str(scratch)})
    pid = int(eventually(lambda: scratch.exists() and scratch.read_text()))
    os.kill(pid, signal.SIGKILL)
    result = account.result(arn)
    assert result["id"] == "killed"
    assert result["pid"] != pid
    assert any("signal: killed" in message for message in account.messages(shop))


def test_worker_left_midway_is_never_used_again(
    account: Account, plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Log.add

    def broken(log: Log, event: dict[str, Any]) -> None:
        assert "text line" not in event["message"]
        write(log, event)

    with monkeypatch.context() as patched:
        patched.setattr(Log, "add", broken)
        with pytest.raises(ClientError):
            account.call(plain, {"log": True})
    result, _ = account.call(plain)
    assert "environ" in result


def test_import_error_of_the_handler_fails_the_execution(account: Account) -> None:
    name = account.create(zipped("import nowhere", with_sdk=False))
    execution = account.ended(account.start(name, {}))
    assert execution["Status"] == "FAILED"
    assert execution["Error"]["ErrorType"] == "Runtime.ImportModuleError"
    assert any("No module named 'nowhere'" in message for message in account.messages(name))


def test_logs_are_json_lines_in_order_and_can_be_deleted(account: Account, code: bytes) -> None:
    name = account.create(code)
    arn = account.start(name, {"id": "logged"})
    account.result(arn)
    messages = account.messages(name)
    # print はそのまま、呼び出しのたびに。ステップのログは JSON で、一度だけ。
    assert messages.count("呼び出し logged") == 3
    lines = [json.loads(message) for message in messages if message.startswith("{")]
    (accepted,) = [line for line in lines if line.get("message") == "受け付け logged"]
    assert accepted["level"] == "INFO"
    assert accepted["executionArn"] == arn
    assert accepted["order"] == "logged"
    assert re.fullmatch(r"[0-9a-f-]{36}", accepted["requestId"])
    assert lines[0]["type"] == "platform.start"
    group = f"/aws/lambda/{name}"
    stream = account.logs.describe_log_streams(logGroupName=group)["logStreams"][0]
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/\[1\][0-9a-f]{32}", stream["logStreamName"])
    account.logs.delete_log_group(logGroupName=group)
    refused("ResourceNotFoundException", account.logs.filter_log_events, logGroupName=group)


@pytest.mark.parametrize("allowed", ["logs:CreateLogGroup", "logs:PutLogEvents"])
def test_role_without_every_log_permission_leaves_no_log(account: Account, allowed: str) -> None:
    role = account.role()
    role_name = role.rpartition("/")[2]
    account.iam.detach_role_policy(RoleName=role_name, PolicyArn=BASIC)
    account.iam.put_role_policy(
        RoleName=role_name, PolicyName="logs", PolicyDocument=policy("*", [allowed])
    )
    name = account.create(zipped(PLAIN, with_sdk=False), role, DurableConfig=None)
    account.call(name)
    groups = account.logs.describe_log_groups(logGroupNamePrefix=f"/aws/lambda/{name}")
    assert len(groups["logGroups"]) == (allowed == "logs:CreateLogGroup")
    assert not groups["logGroups"] or account.messages(name) == []


def test_other_region_is_another_place(server: LocalAws, account: Account, code: bytes) -> None:
    other = Account(server.endpoint, region="us-west-2")
    name = other.create(code)
    refused("ResourceNotFoundException", account.functions.get_function, FunctionName=name)
    arn = other.start(name, {"id": "west"})
    assert arn.startswith("arn:aws:lambda:us-west-2:")
    assert other.result(arn)["id"] == "west"
    refused("ResourceNotFoundException", account.describe, arn=arn)


# コマンドとして


class Command:
    """`python -m tests.local_aws` を子プロセスで動かし、示された export を読む。"""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.local_aws", "--port", "0", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.exports = ""
        for line in self.process.stdout:
            if line.startswith(("export ", "unset ")):
                self.exports += line
            elif self.exports:
                break

    def shell(self, command: str, shell: str = "bash") -> str:
        done = subprocess.run(
            [shell, "-euc", f"{self.exports}\n{command}"],
            env={"PATH": f"{Path(AWS).parent}:{os.environ['PATH']}", "AWS_PROFILE": "nobody"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def account(self) -> Account:
        return Account(re.findall(r"http://[\d.:]+", self.exports)[0])

    def end(self, number: signal.Signals) -> tuple[str, str]:
        self.process.send_signal(number)
        return self.process.communicate(timeout=10)


def test_aws_cli_runs_an_order_and_ctrl_c_ends_every_process(tmp_path: Path, code: bytes) -> None:
    (tmp_path / "app.zip").write_bytes(code)
    (tmp_path / "trust.json").write_text(trust())
    (tmp_path / "policy.json").write_text(policy("arn:aws:lambda:*:*:function:shop:*"))
    command = Command("--skip-time")
    began = time.monotonic()
    output = command.shell(
        f"""
        cd {tmp_path}
        aws iam create-role --role-name r --assume-role-policy-document file://trust.json \\
            --query Role.Arn --output text > role
        aws iam put-role-policy --role-name r --policy-name p --policy-document file://policy.json
        aws lambda create-function --function-name shop --runtime python3.13 \\
            --handler app.handler --role "$(cat role)" --zip-file fileb://app.zip --publish \\
            --durable-config ExecutionTimeout=60,RetentionPeriodInDays=1 \\
            --query DurableConfig --output json > config
        aws lambda invoke --function-name shop --qualifier 1 --invocation-type Event \\
            --durable-execution-name order-1 --payload '{{"id": "cli", "ask": true}}' out \\
            --query DurableExecutionArn --output text > arn
        until aws lambda get-durable-execution-history --durable-execution-arn "$(cat arn)" \\
            --include-execution-data --output text --query \\
            'Events[].CallbackStartedDetails.CallbackId' > callback && [ -s callback ]; do :; done
        aws lambda send-durable-execution-callback-success \\
            --callback-id "$(cat callback)" --result '"yes"'
        until aws lambda list-durable-executions-by-function --function-name shop --qualifier 1 \\
            --statuses SUCCEEDED --query 'DurableExecutions[].DurableExecutionName' \\
            --output text | grep order-1; do :; done
        """
    )
    assert time.monotonic() - began < 60
    assert json.loads((tmp_path / "config").read_text())["ExecutionTimeout"] == 60
    assert output.strip() == "order-1"
    # もう一つの注文がステップの途中にいるまま、Ctrl-C で終える。
    scratch = tmp_path / "busy"
    command.account().start("shop", {"id": "busy", "scratch": str(scratch)})
    busy = eventually(lambda: scratch.exists() and scratch.read_text())
    stdout, stderr = command.end(signal.SIGINT)
    assert command.process.returncode == 0
    assert stderr == ""
    lines = [line for line in stdout.splitlines() if "order-1" in line]
    pids = {found for line in lines for found in re.findall(r"pid=(\d+)", line)}
    assert sum("中断" in line for line in lines) >= 2
    assert sum("完了" in line for line in lines) == 1
    assert "実行終了 SUCCEEDED" in lines[-1]
    assert pids
    for pid in {*pids, busy}:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_server_killed_hard_leaves_no_worker(code: bytes) -> None:
    command = Command("--skip-time")
    try:
        account = command.account()
        arn = account.start(account.create(code), {"id": "orphan", "ask": True})
        account.callback(arn)
        assert command.process.stdout
        line = command.process.stdout.readline()
        found = re.search(r"pid=(\d+)", line)
        assert found
        pid = int(found.group(1))
        os.kill(pid, 0)
    finally:
        command.process.kill()
        command.process.communicate()

    def gone() -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True)
        return state.stdout.startswith(b"Z")

    assert eventually(gone)


def test_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "tests.local_aws", "--port", str(port)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(rf"ポート {port} は[^\n]+--port[^\n]+\n", done.stderr)
