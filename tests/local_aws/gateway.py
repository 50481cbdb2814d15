"""1 つのポートで受けたリクエストを、moto と公式ランナーに振り分ける。"""

import hmac
import io
import json
import logging
import re
import secrets
import socket
import threading
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Self

from moto.core.parse import PROTOCOL_PARSERS
from moto.core.request import Request
from moto.core.routing import get_service_router
from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.exceptions import NotFound
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

from tests.local_run.runner import OrderClock

from . import iam
from .errors import AwsError, beyond, response
from .executions import OPERATIONS, Executions, Params
from .functions import LAMBDA, Function, check_arn, check_for_moto, find_function, named
from .workers import Workers

SERVICES: list[Any] = ["iam", "sts", "logs", "lambda"]
LAMBDA_OPERATIONS = {
    *("CreateFunction", "GetFunction", "GetFunctionConfiguration", "ListFunctions"),
    *("UpdateFunctionCode", "UpdateFunctionConfiguration", "PublishVersion"),
    *("ListVersionsByFunction", "DeleteFunction", "Invoke", *OPERATIONS),
}
SYNC_SECONDS = 900  # 同期呼び出しは、README では使わないが、SDK の適合性テストが使う
BEYOND = {"LogType", "ClientContext", "TenantId", "DryRun"}
CREDENTIAL = re.compile(r"(?a)AWS4-HMAC-SHA256 Credential=(\w+)/\d+/([\w-]+)/(\w+)/aws4_request,")


class LocalAws:
    """`with LocalAws() as aws:` の間、aws.endpoint が AWS の代わりをする。

    speed 倍で進むのは、実行の待機、再試行、タイムアウトの時計だけ。関数の Timeout は実時間で計る。
    """

    def __init__(
        self, port: int = 0, speed: float = 1, report: Callable[[str], None] = lambda _: None
    ) -> None:
        for name in ("moto", "werkzeug", "aws_durable_execution_sdk_python_testing"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # ターミナルには注文の経過だけを示す
        self.socket = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self.socket.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.access_key = "AKIA" + secrets.token_hex(8).upper()
        self.hosts = {f"127.0.0.1:{self.port}", f"localhost:{self.port}"}
        self.workers = Workers(self.endpoint, report)
        self.executions = Executions(self.workers, OrderClock(speed), report)
        self.lock = threading.Lock()  # moto の関数はスレッドセーフでない
        self.moto = {service: create_backend_app(service) for service in SERVICES}
        self.server = make_server("127.0.0.1", self.port, self, True, fd=self.socket.fileno())
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.socket.close()
        self.executions.close()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        try:
            answer = self.respond(request)
        except Exception as error:  # noqa: BLE001
            # 本文を読まずに見分ける。フォームを送るのは IAM と STS だけ。
            form = "x-www-form-urlencoded" in request.headers.get("Content-Type", "")
            answer = response(error, as_xml=form)
        return answer(environ, start_response)

    def respond(self, request: Request) -> Response:
        """Web ページとキーを知らない人からのリクエストは、本文を読まずに拒否する。

        Web ページのリクエストには Origin が付く。DNS リバインディングなら付かないが、Host が違う。
        """
        if request.headers.get("Host") not in self.hosts or "Origin" in request.headers:
            message = "ローカル AWS は、AWS CLI と boto3 からのリクエストだけを受け付けます。"
            raise AwsError(403, "AccessDeniedException", message)
        service, region, caller = self.identify(request)
        if "Transfer-Encoding" in request.headers:  # werkzeug は、終わりのない本文を読み続ける
            raise AwsError(411, "MissingContentLength", "Content-Length が必要です。")
        if service != "lambda":
            return Response.from_app(self.moto[service], request.environ)
        operation, params = read_call(region, request)
        if operation == "Invoke":
            return self.invoke(params)
        if operation in OPERATIONS:
            return self.durable(operation, params, caller)
        with self.lock:
            check_for_moto(operation, params)
            body = {"wsgi.input": io.BytesIO(request.get_data())}
            return Response.from_app(self.moto[service], request.environ | body)

    def identify(self, request: Request) -> tuple[str, str, Function | None]:
        """サービス、リージョン、実行ロールで呼び出した関数（参加者なら None）。"""
        signed = CREDENTIAL.match(request.headers.get("Authorization", ""))
        if not signed:
            raise AwsError(403, "IncompleteSignature", "リクエストに署名がありません。")
        key, region, service = signed.groups()
        caller = self.workers.holder_of(key)
        if caller is None and not hmac.compare_digest(key, self.access_key):
            for_iam = service in ("iam", "sts")
            code = "InvalidClientTokenId" if for_iam else "UnrecognizedClientException"
            message = "The security token included in the request is invalid."
            cure = "ローカル AWS が起動時に表示した export の行を貼り付けてください。"
            raise AwsError(403, code, f"{message} {cure}")
        if service not in SERVICES:
            raise beyond(service)
        if region not in LAMBDA.regions:
            raise beyond(f"リージョン {region} ")
        return service, region, caller

    def invoke(self, params: Params) -> Response:
        function, (_, qualifier) = find_function(params), named(params)
        kind = params.get("InvocationType", "RequestResponse")
        if unknown := (params.keys() | {kind}) & BEYOND:
            raise beyond(", ".join(unknown))
        if not function.durable_config:
            raise beyond("DurableConfig のない関数")
        if qualifier is None:
            raise ValueError("You cannot invoke a durable function using an unqualified ARN")
        if kind != "Event" and function.durable_config["ExecutionTimeout"] > SYNC_SECONDS:
            message = "You cannot synchronously invoke a durable function with an executionTimeout"
            raise ValueError(f"{message} greater than 15 minutes.")
        execution_name = params.get("DurableExecutionName", str(uuid.uuid4()))
        payload = params.get("Payload", b"{}")
        try:
            json.loads(payload, parse_constant=int)  # NaN を拒否する
        except (ValueError, RecursionError) as error:
            message = f"Could not parse request body into json: {error}"
            raise AwsError(400, "InvalidRequestContentException", message) from error
        execution = self.executions.start(function, execution_name, payload.decode())
        headers = {"X-Amz-Durable-Execution-Arn": execution.durable_execution_arn}
        if kind == "Event":
            return Response(status=202, headers=headers)
        self.executions.executor.wait_until_complete(execution.durable_execution_arn)
        assert execution.result
        answer = execution.result.result or "null"
        if failure := execution.result.error:
            headers["X-Amz-Function-Error"] = "Unhandled"
            answer = json.dumps({"errorType": failure.type, "errorMessage": failure.message})
        return Response(answer, headers=headers, content_type="application/json")

    def durable(self, operation: str, params: Params, caller: Function | None) -> Response:
        """公式ランナーを、HTTP を介さずに使う。権限は、実行ロールで呼び出した関数だけ検証する。"""
        if arn := params.get("DurableExecutionArn"):
            check_arn(params, "DurableExecutionArn")
            if caller:
                iam.authorise(caller.role, caller.function_name, f"lambda:{operation}", arn)
        answer = OPERATIONS[operation](self.executions, params)
        text = json.dumps(answer, default=lambda moment: moment.timestamp())
        return Response(text, content_type="application/json")


def read_call(region: str, request: Request) -> tuple[str, Params]:
    body = request.get_data()  # moto も読むので、残しておく
    try:
        operation, in_url = get_service_router("lambda").match(request)
    except NotFound as error:
        raise beyond(f"{request.method} {request.path}") from error
    if operation.name not in LAMBDA_OPERATIONS:
        raise beyond(operation.name)
    parts: Any = {"headers": request.headers, "values": request.args}
    parser = PROTOCOL_PARSERS["rest-json"](operation)
    params = parser.parse(parts | {"url_params": in_url, "body": body})
    for name in [name for name in params if isinstance(params[name], str)]:
        # aws CLI も boto3 も、これらの制約は検証しない。
        limits, value = operation.input_shape.members[name].metadata, params[name]
        most, known = limits.get("max", len(value)), limits.get("enum", [value])
        fits = re.fullmatch(limits.get("pattern", ".*"), value, re.DOTALL)
        if not fits or len(value) > most or value not in known:
            message = f"Value '{value}' at '{name}' failed to satisfy constraint: {limits}"
            raise AwsError(400, "ValidationException", f"1 validation error detected: {message}")
    return operation.name, params | {"Region": region}
