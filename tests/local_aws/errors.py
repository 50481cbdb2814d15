"""呼び出し元に返す、AWS と同じ名前と形式のエラー。"""

import json
from xml.sax.saxutils import escape

from aws_durable_execution_sdk_python_testing.exceptions import AwsApiException
from moto.core.exceptions import JsonRESTError
from werkzeug.wrappers import Response


class AwsError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class BeyondError(AwsError):
    """この演習では対応していない操作。"""

    def __init__(self, what: str) -> None:
        message = f"ローカル AWS は {what} に対応していません。"
        super().__init__(501, "NotImplementedException", message)


def as_aws_error(error: Exception) -> AwsError:
    """HTML のページや traceback を返さない。"""
    match error:
        case AwsError():
            return error
        case AwsApiException():  # 公式ランナー
            code = str(error.to_dict().get("Type"))
            return AwsError(error.http_status_code, code, str(error))
        case JsonRESTError():  # moto
            return AwsError(error.code, error.error_type, error.message)
        case ValueError():
            return AwsError(400, "InvalidParameterValueException", str(error))
    return AwsError(500, "ServiceException", repr(error))


def response(error: AwsError, as_xml: bool) -> Response:
    """IAM と STS には XML、Lambda と CloudWatch Logs には JSON。"""
    if as_xml:
        text = f"<Code>{error.code}</Code><Message>{escape(error.message)}</Message>"
        xml = f"<ErrorResponse><Error>{text}</Error></ErrorResponse>"
        return Response(xml, error.status, content_type="text/xml")
    body = json.dumps({"__type": error.code, "message": error.message, "Message": error.message})
    headers = {"x-amzn-ErrorType": error.code}
    return Response(body, error.status, headers, content_type="application/json")
