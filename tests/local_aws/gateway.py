"""一つのポートで受けた要求を、moto と公式ランナーとワーカーに振り分ける。"""

import json
import logging
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

from aws_durable_execution_sdk_python_testing.exceptions import AwsApiException, UnknownRouteError
from aws_durable_execution_sdk_python_testing.web import handlers, routes
from aws_durable_execution_sdk_python_testing.web.models import HTTPRequest, HTTPResponse
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from . import ACCOUNT, iam
from .errors import AwsError, FunctionError
from .executions import UNQUALIFIED, Executions, Query, status
from .functions import Function, find_function
from .workers import Workers

SYNC_SECONDS = 900
LIMITS = {"RequestResponse": 6 * 1024 * 1024, "Event": 1024 * 1024}
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
FUNCTION = re.compile(
    r"(?:arn:aws[\w-]*:lambda:[\w-]+:\d{12}:function:|\d{12}:function:)?"
    r"([\w-]+)(?::([\w$-]+))?"
)
INVOKE = re.compile(r"/2015-03-31/functions/([^/]+)/invocations/?")
LIST = re.compile(r"/2025-12-01/functions/([^/]+)/durable-executions/?")
HANDLERS: dict[type[routes.Route], type[handlers.EndpointHandler]] = {
    routes.GetDurableExecutionRoute: handlers.GetDurableExecutionHandler,
    routes.GetDurableExecutionHistoryRoute: handlers.GetDurableExecutionHistoryHandler,
    routes.StopDurableExecutionRoute: handlers.StopDurableExecutionHandler,
    routes.CheckpointDurableExecutionRoute: handlers.CheckpointDurableExecutionHandler,
    routes.GetDurableExecutionStateRoute: handlers.GetDurableExecutionStateHandler,
    routes.CallbackSuccessRoute: handlers.SendDurableExecutionCallbackSuccessHandler,
    routes.CallbackFailureRoute: handlers.SendDurableExecutionCallbackFailureHandler,
    routes.CallbackHeartbeatRoute: handlers.SendDurableExecutionCallbackHeartbeatHandler,
}
AUTHORISED = {
    routes.CheckpointDurableExecutionRoute: "lambda:CheckpointDurableExecution",
    routes.GetDurableExecutionStateRoute: "lambda:GetDurableExecutionState",
}


class LocalAws:
    """`with LocalAws() as aws:` の間、aws.endpoint が AWS の代わりをする。"""

    def __init__(
        self, port: int = 0, skip_time: bool = False, report: Callable[[str], None] = lambda _: None
    ) -> None:
        # 要求ごとの行は出さない。
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.socket = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self.socket.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.skip_time, self.report = skip_time, report
        self.workers = Workers(self.endpoint, report)
        self.regions: dict[str, Executions] = {}
        self.lock = threading.Lock()
        self.router = routes.Router(list(HANDLERS))
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.server = make_server(
            "127.0.0.1", self.port, self, threaded=True, fd=self.socket.fileno()
        )
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "LocalAws":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.socket.close()
        for executions in self.regions.values():
            executions.executor.shutdown()
        self.workers.close()
        for executions in self.regions.values():
            executions.close()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["REQUEST_URI"].partition("?")[0]
        try:
            if invoke := INVOKE.fullmatch(path):
                response = self.invoke(Request(environ), unquote(invoke.group(1)))
            elif path.startswith("/2025-12-01/"):
                response = self.durable(Request(environ), path)
            else:
                answer: Iterable[bytes] = self.moto(environ, start_response)
                return answer
        except AwsError as error:
            response = aws_error(error.status, error.code, error.message)
        except AwsApiException as error:
            response = from_runner(HTTPResponse.create_error_from_exception(error))
        except ValueError as error:
            response = aws_error(400, "InvalidParameterValueException", str(error))
        except UnknownRouteError as error:
            response = aws_error(404, "ResourceNotFoundException", str(error))
        response.headers["x-amzn-RequestId"] = str(uuid.uuid4())
        return response(environ, start_response)

    def executions(self, region: str) -> Executions:
        with self.lock:
            if region not in self.regions:
                self.regions[region] = Executions(region, self.workers, self.report, self.skip_time)
            return self.regions[region]

    def invoke(self, request: Request, name_or_arn: str) -> Response:
        region = caller(request)[1]
        name, qualifier = parse_function(name_or_arn, request.args.get("Qualifier"))
        function = find_function(region, name, qualifier)
        kind = request.headers.get("X-Amz-Invocation-Type", "RequestResponse")
        payload = parse_payload(request.get_data(), kind)
        headers = {"X-Amz-Executed-Version": str(function.version)}
        if function.durable_config and qualifier is None:
            raise AwsError(400, "InvalidParameterValueException", UNQUALIFIED)
        if kind == "DryRun":
            return Response(status=204)
        if not function.durable_config and kind == "RequestResponse":
            return self.invoke_plain(function, payload, headers)
        if not function.durable_config:
            once = (function, payload, headers)
            threading.Thread(target=self.invoke_plain, args=once, daemon=True).start()
            return Response(status=202, headers=headers)
        execution_name = request.headers.get("X-Amz-Durable-Execution-Name", str(uuid.uuid4()))
        if not NAME.fullmatch(execution_name):
            message = f"Value '{execution_name}' at 'durableExecutionName' failed to satisfy "
            raise AwsError(400, "ValidationException", f"{message}constraint: {NAME.pattern}")
        executions = self.executions(region)
        execution = executions.start(function, execution_name, payload)
        headers["X-Amz-Durable-Execution-Arn"] = execution.durable_execution_arn
        # 名前が同じ実行を返すときは、その実行が始まった版を答える。
        headers["X-Amz-Executed-Version"] = execution.start_input.function_qualifier
        if kind == "Event":
            return Response(status=202, headers=headers)
        executions.wait(execution, SYNC_SECONDS)
        if status(execution) == "SUCCEEDED" and execution.result:
            return handler_answer(headers, execution.result.result or "null")
        error = execution.result and execution.result.error
        failure = {
            "errorType": error.type if error else "Sandbox.Timedout",
            "errorMessage": error.message if error else f"Task timed out after {SYNC_SECONDS}.00 s",
        }
        return handler_answer(headers, json.dumps(failure), failed=True)

    def invoke_plain(self, function: Function, payload: str, headers: dict[str, str]) -> Response:
        """DurableConfig のない関数は、一度だけ走らせる。"""
        try:
            return handler_answer(headers, self.workers.invoke(function, payload, "-")[0])
        except FunctionError as error:
            return handler_answer(headers, json.dumps(error.payload), failed=True)

    def durable(self, request: Request, path: str) -> Response:
        """公式ランナーの経路とハンドラーを、HTTP をはさまずに使う。"""
        access_key, region = caller(request)
        executions = self.executions(region)
        query: Query = {key: request.args.getlist(key) for key in request.args}
        if listing := LIST.fullmatch(path):
            name, version = parse_function(unquote(listing.group(1)), request.args.get("Qualifier"))
            function = find_function(region, name, version)
            wanted = None if version is None else str(function.version)
            found = executions.list(function, wanted, query)
            return from_runner(HTTPResponse.create_json(200, found))
        route: Any = self.router.find_route(path, request.method)
        if hasattr(route, "callback_id"):
            # 同時に来た二つの答えも、一つだけが通る。
            with executions.lock:
                executions.require_open_callback(route.callback_id)
                return self.handle(executions, route, request, query)
        executions.executor.get_execution(route.arn)
        self.authorise(access_key, AUTHORISED.get(type(route)), route.arn)
        if isinstance(route, routes.GetDurableExecutionRoute):
            return from_runner(HTTPResponse.create_json(200, executions.describe(route.arn, query)))
        return self.handle(executions, route, request, query)

    @staticmethod
    def handle(
        executions: Executions, route: routes.Route, request: Request, query: Query
    ) -> Response:
        raw = isinstance(route, routes.BytesPayloadRoute)
        parse = HTTPRequest.from_raw_bytes if raw else HTTPRequest.from_bytes
        body = request.get_data()
        if isinstance(route, routes.StopDurableExecutionRoute) and body:
            # 本文は Error そのものだが、ランナーは {"Error": ...} を待っている。
            body = b'{"Error": ' + body + b"}"
        parsed = parse(body, method=request.method, path=route, query_params=query)
        return from_runner(HANDLERS[type(route)](executions.executor).handle(route, parsed))

    def authorise(self, access_key: str, action: str | None, arn: str) -> None:
        """関数のロールを名乗る要求だけを確かめる。参加者は何でもできる。"""
        if action is None or access_key not in self.workers.principals:
            return
        role, function = self.workers.principals[access_key]
        if reason := iam.refusal(role, action, arn):
            user = f"arn:aws:sts::{ACCOUNT}:assumed-role/{role.rpartition('/')[2]}/{function}"
            message = f"User: {user} is not authorized to perform: {action} on resource: {arn}"
            raise AwsError(403, "AccessDeniedException", f"{message} {reason}")


def caller(request: Request) -> tuple[str, str]:
    """署名から読むアクセスキーとリージョン。署名そのものは確かめない。"""
    scope = request.headers.get("Authorization", "").partition("Credential=")[2].split("/")
    return (scope[0], scope[2]) if len(scope) > 3 else ("", "us-east-1")


def parse_function(name_or_arn: str, qualifier: str | None) -> tuple[str, str | None]:
    match = FUNCTION.fullmatch(name_or_arn)
    if not match:
        message = f"Value '{name_or_arn}' at 'functionName' failed to satisfy constraint"
        raise AwsError(400, "ValidationException", message)
    name, written = match.groups()
    if written and qualifier and written != qualifier:
        message = "The derived qualifier from the function name does not match the specified one."
        raise AwsError(400, "InvalidParameterValueException", message)
    return name, written or qualifier


def parse_payload(body: bytes, kind: str) -> str:
    limit = LIMITS.get(kind, LIMITS["RequestResponse"])
    if len(body) > limit:
        message = f"{len(body)} byte payload is too large for the {kind} invocation type "
        raise AwsError(413, "RequestTooLargeException", f"{message}(limit {limit} bytes)")
    try:
        payload = body.decode() or "{}"
        json.loads(payload, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        message = f"Could not parse request body into json: {error}"
        raise AwsError(400, "InvalidRequestContentException", message) from error
    return payload


def refuse_constant(name: str) -> None:
    raise ValueError(f"Unrecognized token '{name}'")


def handler_answer(headers: dict[str, str], payload: str, failed: bool = False) -> Response:
    error = {"X-Amz-Function-Error": "Unhandled"} if failed else {}
    return Response(payload, headers=headers | error, content_type="application/json")


def from_runner(answer: HTTPResponse) -> Response:
    """ランナーは誤りの名前を本文に書くだけなので、boto3 が読むヘッダーにも入れる。"""
    response = Response(answer.body_to_bytes(), answer.status_code, answer.headers)
    if answer.status_code >= 400:
        response.headers["x-amzn-ErrorType"] = answer.body.get("Type", "ServiceException")
    return response


def aws_error(status: int, code: str, message: str) -> Response:
    body = {"Type": "User", "message": message, "Message": message}
    headers = {"Content-Type": "application/json", "x-amzn-ErrorType": code}
    return Response(json.dumps(body), status, headers)
