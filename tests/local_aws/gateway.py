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
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

from tests.local_run.runner import OrderClock

from . import iam
from .errors import AwsError, beyond, response
from .executions import OPERATIONS, Executions, Params
from .functions import Function, check_for_moto, find_function, qualifier_in
from .workers import Workers

SERVICES: list[Any] = ["iam", "sts", "logs", "lambda"]
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
        """キーを知らない人からのリクエストは、本文を読まずに拒否する。"""
        service, region, caller = self.identify(request)
        if "Transfer-Encoding" in request.headers:  # werkzeug は、終わりのない本文を読み続ける
            raise AwsError(411, "MissingContentLength", "Content-Length が必要です。")
        if service != "lambda":
            return Response.from_app(self.moto[service], request.environ)
        body = request.get_data()  # moto も読むので、残しておく
        model, in_url = get_service_router("lambda").match(request)
        parts: Any = {"headers": request.headers, "values": request.args, "url_params": in_url}
        params = PROTOCOL_PARSERS["rest-json"](model).parse(parts | {"body": body})
        operation, params = model.name, params | {"Region": region}
        if operation == "Invoke":
            return self.invoke(params)
        if operation in OPERATIONS:
            # 公式ランナーを、HTTP を介さずに使う。権限は、実行ロールで呼び出した関数だけ検証する
            if caller and (arn := params.get("DurableExecutionArn")):
                iam.authorise(caller.role, caller.function_name, f"lambda:{operation}", arn)
            answer = OPERATIONS[operation](self.executions, params)
            text = json.dumps(answer, default=lambda moment: moment.timestamp())
            return Response(text, content_type="application/json")
        if "DurableExecution" in operation:
            raise beyond(f"{operation} ")
        with self.lock:
            check_for_moto(operation, params)
            environ = request.environ | {"wsgi.input": io.BytesIO(body)}
            return Response.from_app(self.moto[service], environ)

    def identify(self, request: Request) -> tuple[str, str, Function | None]:
        """サービス、リージョン、実行ロールで呼び出した関数（参加者なら None）。"""
        signed = CREDENTIAL.match(request.headers.get("Authorization", ""))
        key, region, service = signed.groups() if signed else ("", "", "")
        caller = self.workers.holder_of(key)
        if caller is None and not hmac.compare_digest(key, self.access_key):
            in_query = service in ("iam", "sts")
            code = "InvalidClientTokenId" if in_query else "UnrecognizedClientException"
            message = "The security token included in the request is invalid."
            cure = "ローカル AWS が起動時に表示した export の行を貼り付けてください。"
            raise AwsError(403, code, f"{message} {cure}")
        if service not in SERVICES:
            raise beyond(f"{service} ")
        return service, region, caller

    def invoke(self, params: Params) -> Response:
        function = find_function(params)
        kind = params.get("InvocationType", "RequestResponse")
        if not function.durable_config:
            raise beyond("DurableConfig のない関数")
        if qualifier_in(params) is None:
            raise ValueError("You cannot invoke a durable function using an unqualified ARN")
        if kind == "RequestResponse" and function.durable_config["ExecutionTimeout"] > 900:
            message = "You cannot synchronously invoke a durable function with an executionTimeout"
            raise ValueError(f"{message} greater than 15 minutes.")
        if kind != "Event":
            raise beyond(f"InvocationType が {kind} の呼び出し")
        name = params.get("DurableExecutionName", str(uuid.uuid4()))
        if not re.fullmatch(r"(?a)[\w-]{1,64}", name):  # AWS CLI も boto3 も検証しない
            message = f"Value '{name}' at 'durableExecutionName' failed to satisfy constraint"
            raise AwsError(400, "ValidationException", f"{message}: [a-zA-Z0-9-_]{{1,64}}")
        try:
            payload = params.get("Payload", b"{}").decode()
            json.loads(payload)
        except ValueError as error:
            message = f"Could not parse request body into json: {error}"
            raise AwsError(400, "InvalidRequestContentException", message) from error
        arn = self.executions.start(function, name, payload).durable_execution_arn
        return Response(status=202, headers={"X-Amz-Durable-Execution-Arn": arn})
