"""呼び出し元に返す、AWS と同じ名前と形式のエラー。"""

import json
from xml.sax.saxutils import escape

from aws_durable_execution_sdk_python_testing.exceptions import AwsApiException
from moto.core.exceptions import JsonRESTError
from werkzeug.wrappers import Response


class AwsError(Exception):
    """ステータス、エラーの名前、メッセージ。"""


def beyond(what: str) -> AwsError:
    """この演習では対応していない操作のエラー。"""
    return AwsError(501, "NotImplementedException", f"ローカル AWS は、{what}に対応していません。")


def response(error: Exception, as_xml: bool) -> Response:
    """IAM と STS には XML、Lambda と CloudWatch Logs には JSON。"""
    status, code, message = 500, "ServiceException", repr(error)
    match error:
        case AwsError():
            status, code, message = error.args
        case AwsApiException():  # 公式ランナー
            status, message = error.http_status_code, str(error)
            code = str(error.to_dict().get("Type"))
        case JsonRESTError():  # moto
            status, code, message = error.code, error.error_type, error.message
        case ValueError():
            status, code, message = 400, "InvalidParameterValueException", str(error)
    if as_xml:
        text = f"<Code>{code}</Code><Message>{escape(message)}</Message>"
        xml = f"<ErrorResponse><Error>{text}</Error></ErrorResponse>"
        return Response(xml, status, content_type="text/xml")
    body = json.dumps({"__type": code, "message": message, "Message": message})
    headers = {"x-amzn-ErrorType": code}
    return Response(body, status, headers, content_type="application/json")
