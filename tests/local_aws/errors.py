"""呼び出し元に返す、AWS と同じ名前と形式のエラー。"""

import json
from xml.sax.saxutils import escape

from werkzeug.wrappers import Response


class AwsError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message

    def response(self, as_xml: bool) -> Response:
        """IAM と STS には XML、Lambda と CloudWatch Logs には JSON。"""
        if as_xml:
            error = f"<Code>{self.code}</Code><Message>{escape(self.message)}</Message>"
            xml = f"<ErrorResponse><Error>{error}</Error></ErrorResponse>"
            return Response(xml, self.status, content_type="text/xml")
        body = {"__type": self.code, "message": self.message, "Message": self.message}
        headers = {"x-amzn-ErrorType": self.code}
        return Response(json.dumps(body), self.status, headers, content_type="application/json")


class InvalidError(AwsError):
    def __init__(self, message: str) -> None:
        super().__init__(400, "InvalidParameterValueException", message)


class BeyondError(AwsError):
    """この演習では対応していない操作。"""

    def __init__(self, what: str) -> None:
        message = f"ローカル AWS は {what} に対応していません。"
        super().__init__(501, "NotImplementedException", message)
