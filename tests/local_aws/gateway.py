"""一つのポートで受けた要求を、moto と公式ランナーに振り分ける。ほかのページには答えない。"""

import io
import json
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from aws_durable_execution_sdk_python_testing.exceptions import AwsApiException
from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from . import ACCOUNT, iam
from .calls import SERVED, Call, read_call
from .errors import AwsError, BeyondError
from .executions import OPERATIONS, Executions, Params, status
from .functions import find_function, named
from .workers import Workers

SYNC_SECONDS = 900
INVOKE = {"FunctionName", "Qualifier", "InvocationType", "DurableExecutionName", "Payload"}
PLAIN = re.compile(r"[!-9;-~]+:[\t -~\x80-\xff]*")  # 名前にも値にも、改行や制御文字はない
FOR_ROLES = {"CheckpointDurableExecution", "GetDurableExecutionState"}


class Handler(WSGIRequestHandler):
    """HTTP として読めないものにも AWS の形で答え、端末には何も出さない。"""

    # 版のない要求にも、状態とヘッダーのある答えを返す。
    default_request_version = "HTTP/1.1"

    def parse_request(self) -> bool:
        """読み方が一通りに決まらないヘッダーは、その先に Origin を隠せるので断る。"""
        if not super().parse_request():
            return False
        plain = all(PLAIN.fullmatch(f"{name}:{value}") for name, value in self.headers.items())
        if self.headers.defects or not plain:
            self.send_error(400, "Bad headers")
            return False
        return True

    def run_wsgi(self) -> None:
        try:
            super().run_wsgi()
        except ValueError:  # URL として読めない
            self.send_error(400, "Bad request target")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        answer = AwsError(code, "BadRequestException", message or "").response()
        self.send_response(code)
        for name, value in [*answer.headers.items(), ("Connection", "close")]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.get_data())

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass  # URL として読めないと、ここでも失敗する


class LocalAws:
    """`with LocalAws() as aws:` の間、aws.endpoint が AWS の代わりをする。"""

    def __init__(
        self, port: int = 0, skip_time: bool = False, report: Callable[[str], None] = lambda _: None
    ) -> None:
        self.socket = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self.socket.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.access_key = "local"
        self.hosts = {f"127.0.0.1:{self.port}", f"localhost:{self.port}"}
        self.skip_time, self.report = skip_time, report
        self.workers = Workers(self.endpoint, report)
        self.regions: dict[str, Executions] = {}
        self.lock = threading.Lock()
        self.moto = {service: create_backend_app(service) for service in SERVED}
        fd = self.socket.fileno()
        self.server = make_server("127.0.0.1", self.port, self, True, 1, Handler, fd=fd)
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
        request = Request(environ)
        try:
            response = self.respond(request)
        except AwsError as error:
            # 本文は読まずに見分ける。フォームを送るのは IAM だけ。
            form = "x-www-form-urlencoded" in request.headers.get("Content-Type", "")
            response = error.response(as_xml=form)
        response.headers["x-amzn-RequestId"] = str(uuid.uuid4())
        return response(environ, start_response)

    def respond(self, request: Request) -> Response:
        """ブラウザーのページから来た要求は、何も読まずに断る。

        ページは Origin を付けて送る。127.0.0.1 に向け直した名前なら付けないが、Host が違う。
        """
        path: str = request.environ["REQUEST_URI"].partition("?")[0]
        # URL が / で始まらないと、werkzeug はその中の名前を Host にする。
        local = request.headers.get("Host") in self.hosts and path.startswith("/")
        if not local or "Origin" in request.headers:
            message = "手元の AWS は、このコンピューターの aws コマンドと boto3 にだけ答えます。"
            raise AwsError(403, "AccessDeniedException", message)
        if "Transfer-Encoding" in request.headers:  # werkzeug は、終わりのない本文を読み続ける
            raise AwsError(411, "MissingContentLength", "Content-Length のない要求は読めません。")
        try:
            call = read_call(request, path)
            if call.operation == "Invoke":
                return self.invoke(call.region, call.params)
            if call.operation in OPERATIONS:
                return self.durable(call)
            if call.operation == "ListVersionsByFunction":  # moto は、ない関数にも空の一覧を返す
                find_function(call.region, named(call.params["FunctionName"], None)[0])
            return self.ask_moto(call.service, request)
        except AwsError:
            raise
        except AwsApiException as error:
            code = str(error.to_dict().get("Type"))
            raise AwsError(error.http_status_code, code, str(error)) from error
        except ValueError as error:
            raise AwsError(400, "InvalidParameterValueException", str(error)) from error
        except Exception as error:  # HTML のページや traceback を返さない
            raise AwsError(500, "ServiceException", repr(error)) from error

    def executions(self, region: str) -> Executions:
        with self.lock:
            if region not in self.regions:
                self.regions[region] = Executions(region, self.workers, self.report, self.skip_time)
            return self.regions[region]

    def ask_moto(self, service: str, request: Request) -> Response:
        body = request.get_data()
        read = {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        response = Response.from_app(self.moto[service], request.environ | read)
        if response.get_data().startswith(b"<!doctype html>"):
            raise AwsError(response.status_code, "ServiceException", "moto が読めない要求です。")
        response.content_type = "text/xml" if service == "iam" else "application/json"
        return response

    def invoke(self, region: str, params: Params) -> Response:
        name, qualifier = named(params["FunctionName"], params.get("Qualifier"))
        function = find_function(region, name, qualifier)
        kind = params.get("InvocationType", "RequestResponse")
        if beyond := [*params.keys() - INVOKE, *{kind} - {"RequestResponse", "Event"}]:
            raise BeyondError(", ".join(beyond))
        if not function.durable_config:
            raise BeyondError("DurableConfig のない関数")
        if function.logging_config["LogFormat"] != "JSON":
            raise BeyondError("JSON でないログ")
        if qualifier is None:
            message = "You cannot invoke a durable function using an unqualified ARN"
            raise AwsError(400, "InvalidParameterValueException", message)
        payload = parse_payload(params["Payload"])
        executions = self.executions(region)
        execution_name = params.get("DurableExecutionName", str(uuid.uuid4()))
        execution = executions.start(function, execution_name, payload)
        headers = {
            "X-Amz-Durable-Execution-Arn": execution.durable_execution_arn,
            # 名前が同じ実行を返すときは、その実行が始まった版を答える。
            "X-Amz-Executed-Version": str(execution.start_input.function_qualifier),
        }
        if kind == "Event":
            return Response(status=202, headers=headers)
        executions.executor.wait_until_complete(execution.durable_execution_arn, SYNC_SECONDS)
        if status(execution) == "SUCCEEDED" and execution.result:
            answer = execution.result.result or "null"
        else:
            headers["X-Amz-Function-Error"] = "Unhandled"
            error = execution.result and execution.result.error
            late = ("Sandbox.Timedout", f"Task timed out after {SYNC_SECONDS}.00 seconds")
            failure = (error.type, error.message) if error else late
            answer = json.dumps(dict(zip(("errorType", "errorMessage"), failure, strict=True)))
        return Response(answer, headers=headers, content_type="application/json")

    def durable(self, call: Call) -> Response:
        """公式ランナーを、HTTP をはさまずに使う。"""
        executions = self.executions(call.region)
        if arn := call.params.get("DurableExecutionArn"):
            executions.executor.get_execution(arn)  # なければ誤り
            self.authorise(call, arn)
        answer = OPERATIONS[call.operation](executions, call.params)
        text = json.dumps(answer, default=lambda moment: moment.timestamp())
        return Response(text, content_type="application/json")

    def authorise(self, call: Call, arn: str) -> None:
        """関数のロールを名乗る要求だけを確かめる。参加者は何でもできる。"""
        if call.operation not in FOR_ROLES or call.access_key not in self.workers.principals:
            return
        action = f"lambda:{call.operation}"
        role, function = self.workers.principals[call.access_key]
        if reason := iam.refusal(role, action, arn):
            user = f"arn:aws:sts::{ACCOUNT}:assumed-role/{role.rpartition('/')[2]}/{function}"
            message = f"User: {user} is not authorized to perform: {action} on resource: {arn}"
            raise AwsError(403, "AccessDeniedException", f"{message} {reason}")


def parse_payload(body: bytes) -> str:
    try:
        payload = body.decode() or "{}"
        json.loads(payload, parse_constant=int)  # NaN を断る
    except (ValueError, RecursionError) as error:
        message = f"Could not parse request body into json: {error}"
        raise AwsError(400, "InvalidRequestContentException", message) from error
    return payload
