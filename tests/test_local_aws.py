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
from xml.etree import ElementTree

import aws_durable_execution_sdk_python as sdk
import boto3
import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.validate import validate_parameters

from .local_aws import workers
from .local_aws.gateway import LocalAws

ROOT = Path(__file__).parents[1]
AWS = str(Path(sys.executable).with_name("aws"))
REGION = "ap-northeast-1"
BASIC = "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"
CHECKPOINT = ["lambda:CheckpointDurableExecution", "lambda:GetDurableExecutionState"]

DURABLE = """
import importlib.util
import os
import pathlib
import sys
import time
from aws_durable_execution_sdk_python import durable_execution, durable_step
from aws_durable_execution_sdk_python.config import CallbackConfig, Duration, StepConfig
from aws_durable_execution_sdk_python.retries import RetryStrategyConfig, create_retry_strategy
from aws_durable_execution_sdk_python.waits import WaitForConditionConfig as PollConfig
from aws_durable_execution_sdk_python.waits import WaitForConditionDecision as Decision

VERSION = "one"
SECOND = Duration.from_seconds(1)
RETRY = create_retry_strategy(RetryStrategyConfig(max_attempts=3, initial_delay=SECOND))
MINUTE = Duration.from_seconds(60)
ASK = CallbackConfig(timeout=Duration.from_seconds(500), heartbeat_timeout=MINUTE)
POLL = PollConfig(lambda state, attempt: Decision(state < 3, SECOND), initial_state=0)


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
    for number in range(event.get("steps", 0)):
        context.step(lambda _: number, name="one of many")
    if event.get("fail"):
        raise ValueError("だめ")
    if event.get("target"):
        result["target"] = context.invoke(event["target"], {"id": "child"})
    if event.get("scratch"):
        result["pid"] = context.step(dawdle(event))
    if event.get("modules"):
        spec = {name: importlib.util.find_spec(name) for name in event["modules"]}
        result |= {"modules": [name for name in spec if spec[name]], "path": sys.path}
        remaining = context.lambda_context.get_remaining_time_in_millis()
        result |= {"environ": dict(os.environ), "remaining": remaining}
    if event.get("ask"):
        callback = context.create_callback(name="ask", config=ASK)
        result["answer"] = callback.result()
    if event.get("poll"):
        result["polled"] = context.wait_for_condition(lambda state, _: state + 1, POLL, "poll")
    context.wait(Duration.from_seconds(event.get("wait", 30)))
    result["attempts"] = context.step(pay(event), config=StepConfig(retry_strategy=RETRY))
    return result | {"version": VERSION}
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


# ほかのページと、読めない要求


def exchange(account: Account, request: bytes) -> tuple[int, bytes, bytes]:
    """ソケットに request を書き、答えの状態と、ヘッダーと、本文を返す。"""
    port = int(account.endpoint.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request.replace(b"PORT", str(port).encode()))
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert b"html" not in answer.lower(), answer
    return int(head.split()[1]), head.lower(), body


def signed(service: str) -> bytes:
    scope = f"test/20250101/{REGION}/{service}/aws4_request"
    return f"Authorization: AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host\r\n".encode()


FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"
LIST_ROLES = b"Action=ListRoles&Version=2010-05-08"
HERE = b"Host: 127.0.0.1:PORT\r\n"


def post(
    body: bytes,
    service: str = "lambda",
    headers: bytes = b"",
    path: bytes = b"/2015-03-31/functions",
) -> bytes:
    length = b"Content-Length: %d\r\n" % len(body) if b"Content-Length" not in headers else b""
    return (
        b"POST %b HTTP/1.1\r\n" % path + HERE + signed(service) + headers + length + b"\r\n" + body
    )


def iam_call(headers: bytes, line: bytes = b"POST / HTTP/1.1") -> bytes:
    call = post(LIST_ROLES, "iam", FORM, b"/").replace(b"POST / HTTP/1.1", line)
    return call.replace(HERE, headers)


@pytest.mark.parametrize("host", [b"127.0.0.1:PORT", b"localhost:PORT"])
def test_own_names_are_answered(account: Account, host: bytes) -> None:
    status, head, body = exchange(account, iam_call(b"Host: " + host + b"\r\n"))
    assert status == 200
    assert b"<ListRolesResponse" in body
    assert exchange(account, post(b"").replace(b"POST", b"GET"))[0] == 200
    assert b"access-control" not in head


@pytest.mark.parametrize(
    "headers",
    [
        HERE + b"Origin: https://example.com\r\n",
        HERE + b"Origin: null\r\n",
        HERE + b"Origin: http://127.0.0.1:PORT\r\n",
        HERE + b"Origin:\r\n",
        HERE + b"Transfer-Encoding: chunked\r\nOrigin: null\r\n",
        b"Host: rebound.example.com:PORT\r\n",
        b"Host: 127.0.0.1\r\n",
        b"Host: 127.0.0.1:1\r\n",
        b"Host: 127.0.0.1:PORT, example.com\r\n",
        b"Host: example.com\r\n" + HERE,
        b"",
    ],
)
@pytest.mark.parametrize("line", [b"POST / HTTP/1.1", b"OPTIONS / HTTP/1.1", b"GET /x HTTP/1.1"])
def test_web_pages_are_refused(account: Account, headers: bytes, line: bytes) -> None:
    status, head, body = exchange(account, iam_call(headers, line))
    assert status == 403
    assert b"<Code>AccessDeniedException</Code>" in body
    assert b"access-control" not in head


def test_host_is_not_taken_from_the_request_line(account: Account) -> None:
    line = b"POST http://127.0.0.1:PORT/ HTTP/1.1"
    status, _, body = exchange(account, iam_call(b"Host: example.com\r\n", line))
    assert (status, b"AccessDenied" in body) == (403, True)


def test_body_of_a_refused_request_is_not_the_next_request(account: Account) -> None:
    create = post(b"Action=CreateRole&RoleName=smuggled", "iam", FORM, b"/")
    refused_call = post(create, "iam", b"Origin: null\r\n", b"/")
    assert exchange(account, refused_call)[0] == 403
    roles = account.iam.list_roles()["Roles"]
    assert "smuggled" not in [role["RoleName"] for role in roles]


PATHS = [b"/%ff%zz%00", b"/2015-03-31/functions/a%2Fb", b"/moto-api/", b"//[", b"/?"]
CHUNKED = b"Transfer-Encoding: chunked\r\n"
MALFORMED = [
    b"\x16\x03\x01\x02\x00\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /%b HTTP/1.1\r\n\r\n" % (b"a" * 70_000),
    b"GET / HTTP/1.1\r\n%b\r\n" % (b"X: x\r\n" * 200),
    b"GET http://[ HTTP/1.1\r\n" + HERE + b"\r\n",
    b"GET / HTTP/1.1\r\n" + HERE + b"Authorization: \xff//%zz\r\n\r\n",
    post(b"").replace(b"POST", b"GET").replace(REGION.encode(), b"xx-nowhere-1"),
    post(b"").replace(b"POST", b"<x>"),
    post(b"").replace(b"POST /2015-03-31/functions", b"GET /2015-03-31/functions?MaxItems=x"),
    *(post(b"", path=path) for path in PATHS),
    *map(post, [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000]),
    post(b'{"FunctionName": 1, "Role": [], "Code": "x"}'),
    *(post(b"{}", headers=b"Content-Length: %b\r\n" % length) for length in [b"x", b"-1", b"9"]),
    *(post(size + b"\r\nabc", headers=CHUNKED) for size in [b"zz", b"3", b"f" * 16]),
    *(
        post(b"", headers=hidden + b": https://example.com\r\n").replace(b"POST", b"GET")
        for hidden in [b"foo bar\r\nOrigin", b"\0\r\nOrigin", b"Origin ", b"X: x\r\n Origin"]
    ),
    post(b"[]", path=b"/2025-12-01/durable-executions/x/checkpoint"),
    post(b"", path=b"/2025-12-01/durable-execution-callbacks/bnVsbA==/succeed"),
    post(b"", path=b"/2015-03-31/functions/%20/invocations"),
    *(post(body, "iam", FORM, b"/") for body in [b"", b"Action", b"Action=%ff&x=\xff"]),
    post(b"Action=DeleteRole&RoleName=%00%3C", "iam", FORM, b"/"),
    post(LIST_ROLES + b"&Marker=x", "iam", FORM, b"/"),
    post(LIST_ROLES, "iam", FORM, b"/elsewhere"),
    post(b"{}", "logs", path=b"/"),
    post(b"{", "logs", b"X-Amz-Target: Logs_20140328.FilterLogEvents\r\n", b"/"),
    post(b'{"logGroupName": 1}', "logs", b"X-Amz-Target: x.FilterLogEvents\r\n", b"/"),
    post(b"Action=GetCallerIdentity", "sts", FORM, b"/"),
]


@pytest.mark.parametrize("number", range(len(MALFORMED)))
def test_malformed_request_gets_an_aws_error(
    account: Account, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    status, head, body = exchange(account, MALFORMED[number])
    assert 400 <= status < 600
    assert status != 500
    if FORM in MALFORMED[number]:
        error = ElementTree.fromstring(body).find("Error")
        assert error is not None
        assert error.findtext("Code")
        assert error.findtext("Message")
    else:
        assert json.loads(body)["__type"].lower().encode() in head
        assert "message" in json.loads(body)
    assert capfd.readouterr().err == ""


def test_crash_of_moto_is_an_aws_error(
    account: Account, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = "moto.awslambda.responses.LambdaResponse.list_functions"
    monkeypatch.setattr(broken, lambda _: 1 / 0)
    message = refused("ServiceException", account.functions.list_functions)
    assert "ZeroDivisionError" in message
    assert capfd.readouterr().err == ""


def test_what_the_demo_does_not_use_is_refused_in_a_sentence(account: Account, code: bytes) -> None:
    f, name = account.functions, account.create(code)
    arn = account.start(name, {"id": "beyond"})
    one: dict[str, Any] = {"FunctionName": name, "Qualifier": "1"}
    plain = account.create(code, DurableConfig=None)
    text = account.create(code, LoggingConfig={"LogFormat": "Text"})
    asked: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (f.pause_durable_execution, {"DurableExecutionArn": arn}),
        (f.resume_durable_execution, {"DurableExecutionArn": arn}),
        (f.delete_durable_execution, {"DurableExecutionArn": arn}),
        (f.invoke, {**one, "InvocationType": "DryRun"}),
        (f.invoke, {**one, "LogType": "Tail"}),
        (f.invoke, {"FunctionName": plain}),
        (f.invoke, {"FunctionName": text, "Qualifier": "1"}),
        (f.create_alias, {"FunctionName": name, "FunctionVersion": "1", "Name": "live"}),
        (account.iam.list_users, {}),
        (account.logs.create_log_group, {"logGroupName": "x"}),
    ]
    for call, parameters in asked:
        message = refused("NotImplementedException", call, **parameters)
        assert re.fullmatch(r"手元の AWS では [^。]+ を使えません。", message)
    ended = account.ended(account.start(name, {"id": "x", "target": f"{name}:1"}))
    assert "no chained-invoke dispatcher" in ended["Error"]["ErrorMessage"]


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


def test_durable_config_changes_only_on_a_durable_function(account: Account, code: bytes) -> None:
    name = account.create(code)
    plain = account.create(code, DurableConfig=None)
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
        account.create(zipped("handler = print", with_sdk=False), DurableConfig=wrong)


def test_publish_mints_a_version_only_when_something_changed(account: Account) -> None:
    code = zipped("handler = print", with_sdk=False)
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
    f.update_function_code(FunctionName=name, ZipFile=zipped("handler = repr", with_sdk=False))
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
        account.create(zipped("handler = print", with_sdk=False), role)
    update = account.functions.update_function_configuration
    message = refused("InvalidParameterValueException", update, FunctionName=shop, Role=role)
    assert message == expected


@pytest.mark.parametrize("wrong", [{"ZipFile": b"no zip"}, {"S3Bucket": "bucket", "S3Key": "key"}])
def test_code_that_is_no_zip_is_refused(account: Account, shop: str, wrong: dict[str, Any]) -> None:
    role, update = account.role(), account.functions.update_function_code
    made: dict[str, Any] = {"FunctionName": "no-zip", "Role": role, "Runtime": "python3.13"}
    for call, asked in (
        (account.functions.create_function, {**made, "Handler": "app.handler", "Code": wrong}),
        (update, {"FunctionName": shop, **wrong}),
    ):
        assert "unzip" in refused("InvalidParameterValueException", call, **asked)
    account.functions.list_functions()


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
    for call in (account.functions.get_function, account.functions.list_versions_by_function):
        refused("ResourceNotFoundException", call, FunctionName=name)
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


# 履歴


def details(events: list[Any], kind: str, name: str | None = None) -> list[Any]:
    found = [e for e in events if e["EventType"] == kind and name in (None, e.get("Name"))]
    return [event[f"{kind}Details"] for event in found]


def test_history_has_all_that_the_model_requires(account: Account, shop: str) -> None:
    arn = account.start(shop, {"id": "w", "ask": True, "poll": True})
    send(account, account.callback(arn), "yes")
    account.result(arn)
    events = account.history(arn)
    model = botocore.session.get_session().get_service_model("lambda")
    for event in events:
        validate_parameters(event, model.shape_for("Event"))
    assert json.loads(events[0]["ExecutionStartedDetails"]["Input"]["Payload"])["id"] == "w"
    assert [event["EventId"] for event in events] == list(range(1, len(events) + 1))

    (asked,) = details(events, "CallbackStarted")
    assert (asked["Timeout"], asked["HeartbeatTimeout"]) == (500, 60)
    polls = details(events, "StepSucceeded", "poll")
    assert [poll["Result"]["Payload"] for poll in polls] == ["1", "2", "3"]
    assert [poll["RetryDetails"]["CurrentAttempt"] for poll in polls] == [1, 2, 3]
    (failed,), (paid,) = (details(events, kind, "pay") for kind in ("StepFailed", "StepSucceeded"))
    assert failed["RetryDetails"]["CurrentAttempt"] == 1
    assert failed["RetryDetails"]["NextAttemptDelaySeconds"] >= 1
    assert paid["RetryDetails"] == {"CurrentAttempt": 2}

    invocations = details(events, "InvocationCompleted")
    assert len({invocation["RequestId"] for invocation in invocations}) == len(invocations) > 3
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


def test_history_without_data_and_in_pages(account: Account, shop: str) -> None:
    arn = account.start(shop, {"id": "pages", "steps": 50})
    account.result(arn)
    get = account.functions.get_durable_execution_history
    pages = account.functions.get_paginator("get_durable_execution_history").paginate
    one: dict[str, Any] = {"DurableExecutionArn": arn}
    whole = [event for page in pages(**one) for event in page["Events"]]
    assert [event["EventId"] for event in whole] == list(range(1, len(whole) + 1))
    assert get(**one)["Events"] == get(**one, MaxItems=0)["Events"] == whole[:100] != whole
    assert len(details(whole, "StepSucceeded", "one of many")) == 50
    backwards = pages(**one, ReverseOrder=True, PaginationConfig={"PageSize": 30})
    assert [event for page in backwards for event in page["Events"]] == whole[::-1]
    bare = get(**one, IncludeExecutionData=False, MaxItems=1000)["Events"]
    assert [event["EventType"] for event in bare] == [event["EventType"] for event in whole]
    assert "Payload" in json.dumps(whole, default=str)
    assert "Payload" not in json.dumps(bare, default=str)


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


@pytest.mark.parametrize(
    "resource", ["{other}:*", "{name}", "{name}:2/*", "{name}:$LATEST/*", "F-*"]
)
def test_permission_on_anything_else_is_refused(
    account: Account, code: bytes, resource: str
) -> None:
    name = f"f-{uuid.uuid4().hex[:8]}"
    on = resource.format(name=name, other=f"not-{name}")
    role = account.role(f"arn:aws:lambda:{REGION}:123456789012:function:{on}")
    assert "AccessDeniedException" in refusal_of(account, code, role, name)


@pytest.mark.parametrize(
    ("effect", "element"),
    [("Allow", {"Action": "*", "Condition": {}}), ("Deny", {"NotAction": "s3:*"})],
)
def test_statement_with_more_than_actions_and_resources_is_read_strictly(
    account: Account, code: bytes, effect: str, element: dict[str, Any]
) -> None:
    role = account.role(checkpoint_on="*" if effect == "Deny" else None)
    statement = {"Effect": effect, "Resource": "*", **element}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    account.iam.put_role_policy(
        RoleName=role.rpartition("/")[2], PolicyName="more", PolicyDocument=document
    )
    assert "AccessDeniedException" in refusal_of(account, code, role)


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
    account: Account, code: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_SECRET", "1")
    mine = {"Variables": {"MINE": "yes", "AWS_REGION": "x"}}
    name = account.create(code, Environment=mine)
    modules = ["app", "boto3", "urllib3", "tests", "moto", "pytest", "werkzeug", "pip"]
    seen, _ = account.call(name, {"id": "seen", "modules": modules}, Qualifier="1")
    assert seen["modules"] == modules[:3]
    assert not any(str(ROOT) in entry for entry in seen["path"])
    environment = seen["environ"]
    assert "LOCAL_SECRET" not in environment
    assert environment["MINE"] == "yes"
    assert environment["AWS_REGION"] == REGION
    assert environment["AWS_LAMBDA_FUNCTION_NAME"] == name
    assert environment["AWS_ENDPOINT_URL"] == account.endpoint
    assert 0 < seen["remaining"] <= 30_000


def test_worker_left_midway_is_never_used_again(
    account: Account, code: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = account.create(code)
    left = []

    def leave(*_: Any) -> None:
        left.append(account)
        monkeypatch.undo()
        raise RuntimeError("left midway")

    monkeypatch.setattr(workers, "write_log", leave)
    result, _ = account.call(name, {"id": "midway"}, Qualifier="1")
    assert left
    assert result["attempts"] == 2


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
    group = f"/aws/lambda/{name}"
    (*_, event) = account.logs.filter_log_events(logGroupName=group)["events"]
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/\[1\][0-9a-f]{32}", event["logStreamName"])
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
    name = account.create(zipped("print('loaded')\n1 / 0", with_sdk=False), role)
    account.call(name, Qualifier="1")
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

    def account(self) -> Account:
        return Account(re.findall(r"http://[\d.:]+", self.exports)[0])

    def end(self, number: signal.Signals) -> tuple[str, str]:
        self.process.send_signal(number)
        return self.process.communicate(timeout=10)


def test_ctrl_c_ends_every_process(tmp_path: Path, code: bytes) -> None:
    command, scratch = Command("--skip-time"), tmp_path / "busy"
    account = command.account()
    name = account.create(code)
    arn = account.start(name, {"id": "1", "ask": True}, DurableExecutionName="order-1")
    send(account, account.callback(arn), "yes")
    account.result(arn)
    # もう一つの注文がステップの途中にいるまま、Ctrl-C で終える。
    exchange(account, MALFORMED[0])
    account.start(name, {"id": "busy", "scratch": str(scratch)})
    busy = eventually(lambda: scratch.exists() and scratch.read_text())
    stdout, stderr = command.end(signal.SIGINT)
    assert (command.process.returncode, stderr) == (0, "")
    lines = [line for line in stdout.splitlines() if "order-1" in line]
    assert sum("待ち" in line for line in lines) >= 2
    assert sum("完了" in line for line in lines) == 1
    assert "実行終了 SUCCEEDED" in lines[-1]
    for pid in {busy, *re.findall(r"pid=(\d+)", stdout)}:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_server_killed_hard_leaves_no_worker(
    code: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # 殺されれば、フォルダーは残る
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
