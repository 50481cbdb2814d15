"""要求から、誰が、どの操作を、どの引数で頼んだかを読む。botocore のモデルに合わないものは断る。"""

import json
import re
from typing import Any, NamedTuple
from urllib.parse import unquote

import botocore.session
from botocore.exceptions import ParamValidationError
from botocore.model import Shape
from botocore.utils import parse_to_aware_datetime
from botocore.validate import validate_parameters
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Request

from .errors import AwsError, BeyondError
from .executions import OPERATIONS, Params

SERVED: dict[Any, set[str]] = {
    "iam": {"CreateRole", "GetRole", "ListRoles", "DeleteRole", "AttachRolePolicy"}
    | {"DetachRolePolicy", "PutRolePolicy", "DeleteRolePolicy", "UpdateAssumeRolePolicy"},
    "logs": {"DescribeLogGroups", "FilterLogEvents", "DeleteLogGroup"},
    "lambda": {"CreateFunction", "GetFunction", "GetFunctionConfiguration", "ListFunctions"}
    | {"UpdateFunctionCode", "UpdateFunctionConfiguration", "PublishVersion"}
    | {"ListVersionsByFunction", "DeleteFunction", "Invoke", *OPERATIONS},
}
SESSION = botocore.session.get_session()
MODELS = {service: SESSION.get_service_model(service) for service in SERVED}
REGIONS = set(SESSION.get_available_regions("lambda"))
CREDENTIAL = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/\s,]+)/\d{8}/([\w-]+)/([\w-]+)/aws4_request,.*"
)
ROUTES = [
    (http["method"], re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", http["requestUri"]).rstrip("/"), name)
    for name in MODELS["lambda"].operation_names
    for http in [MODELS["lambda"].operation_model(name).http]
]
READ = {
    "integer": int,
    "boolean": {"true": True, "false": False}.__getitem__,
    "timestamp": parse_to_aware_datetime,
}


class Call(NamedTuple):
    access_key: str
    region: str
    service: str
    operation: str
    params: Params


def read_call(request: Request, path: str) -> Call:
    """呼び出し元は署名から読む。署名そのものは確かめない。"""
    signed = CREDENTIAL.fullmatch(request.headers.get("Authorization", ""))
    if not signed or signed[2] not in REGIONS:
        raise AwsError(403, "IncompleteSignature", "要求に、リージョンの正しい署名がありません。")
    access_key, region, service = signed.groups()
    if service not in SERVED:
        raise BeyondError(service)
    try:
        request.get_data()  # moto も読むので、残しておく
        name, uri = _operation(service, request, path)
        if name not in SERVED[service]:
            raise BeyondError(f"{service} の {name}")
        model = MODELS[service].operation_model(name)
        params = _params(model.input_shape, uri, request, "form" if service == "iam" else "body")
        validate_parameters(params, model.input_shape)
        _check(model.input_shape, params, name)
    except ParamValidationError as error:
        raise AwsError(400, "ValidationException", " ".join(str(error).split())) from error
    except (KeyError, ValueError, RecursionError, OSError, HTTPException) as error:
        message = f"Could not parse the request: {error!r}"
        raise AwsError(400, "SerializationException", message) from error
    return Call(access_key, region, service, name, params)


def _operation(service: str, request: Request, path: str) -> tuple[str, dict[str, str]]:
    """操作の名前と、URL に埋め込まれた引数。"""
    if service == "iam":
        return request.form["Action"], {}
    if service == "logs":
        return request.headers["X-Amz-Target"].rpartition(".")[2], {}
    for method, pattern, name in ROUTES:
        found = re.fullmatch(pattern, path.rstrip("/"))
        if found and method == request.method:
            return name, {key: unquote(value) for key, value in found.groupdict().items()}
    return f"{request.method} {path}", {}


def _params(shape: Shape, uri: dict[str, str], request: Request, elsewhere: str) -> Params:
    params: Params = dict(uri)
    sources = {"header": request.headers, "querystring": request.args, "form": request.form}
    for name, member in shape.members.items():
        source: Any = sources.get(member.serialization.get("location", elsewhere), {})
        key = member.serialization.get("name", name)
        if key in source:
            values, kind = source.getlist(key), member.type_name
            params[name] = values if kind == "list" else READ.get(kind, str)(values[0])
    payload, body = shape.serialization.get("payload"), request.get_data()
    if payload and shape.members[payload].type_name == "blob":
        return params | {payload: body}
    if elsewhere == "form" or not body:
        return params
    content = json.loads(body)
    if payload:
        content = {payload: content}
    elif not isinstance(content, dict):
        raise ValueError("not an object")
    return params | content


def _check(shape: Shape, value: Any, name: str) -> None:
    """botocore が確かめない、形と上限と選択肢。"""
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
