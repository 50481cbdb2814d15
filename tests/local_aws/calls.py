"""リクエストから、操作とパラメーターを読み取る。botocore のモデルに合わなければ拒否する。"""

import re
from typing import Any

from botocore.model import Shape
from moto.core.parse import PROTOCOL_PARSERS
from moto.core.request import Request
from moto.core.routing import get_service_router
from werkzeug.exceptions import NotFound

from .errors import AwsError, BeyondError
from .executions import OPERATIONS, Params

SERVED: dict[Any, set[str]] = {
    "iam": {"CreateRole", "GetRole", "ListRoles", "DeleteRole", "AttachRolePolicy"}
    | {"DetachRolePolicy", "PutRolePolicy", "DeleteRolePolicy", "UpdateAssumeRolePolicy"}
    | {"PutRolePermissionsBoundary", "DeleteRolePermissionsBoundary"},
    "sts": {"GetCallerIdentity"},
    "logs": {"DescribeLogGroups", "FilterLogEvents", "DeleteLogGroup"},
    "lambda": {"CreateFunction", "GetFunction", "GetFunctionConfiguration", "ListFunctions"}
    | {"UpdateFunctionCode", "UpdateFunctionConfiguration", "PublishVersion"}
    | {"ListVersionsByFunction", "DeleteFunction", "Invoke", *OPERATIONS},
}


def read_call(service: str, region: str, request: Request) -> tuple[str, Params]:
    """操作の名前と、Lambda ならパラメーター。ほかのサービスのパラメーターは moto だけが読む。"""
    body = request.get_data()  # moto も読むので、残しておく
    try:
        operation, in_url = get_service_router(service).match(request)
    except NotFound as error:
        raise BeyondError(f"{service} の {request.method} {request.path}") from error
    if operation.name not in SERVED[service]:
        raise BeyondError(f"{service} の {operation.name}")
    if service != "lambda":
        return operation.name, {}
    parts: Any = {"headers": request.headers, "values": request.args}
    parser = PROTOCOL_PARSERS["rest-json"](operation)
    params = parser.parse(parts | {"url_params": in_url, "body": body})
    _check(operation.input_shape, params, operation.name)
    return operation.name, params | {"Region": region}


def _check(shape: Shape, value: Any, name: str) -> None:
    """aws CLI と boto3 が検証しない制約（pattern、max、enum）を検証する。"""
    if shape.type_name == "structure":
        for key, part in value.items():
            _check(shape.members[key], part, key)
    elif shape.type_name == "list":
        for part in value:
            _check(shape.member, part, name)
    elif isinstance(value, str | int):
        limits, size = shape.metadata, len(value) if isinstance(value, str) else value
        fits = re.fullmatch(limits.get("pattern", ".*"), str(value), re.DOTALL)
        if not fits or size > limits.get("max", size) or value not in limits.get("enum", [value]):
            message = f"Value '{value}' at '{name}' failed to satisfy constraint: {limits}"
            raise AwsError(400, "ValidationException", f"1 validation error detected: {message}")
