"""呼び出し元へ返す、AWS の名前と形を持った誤り。"""

import json
from xml.sax.saxutils import escape

from werkzeug.wrappers import Response


class AwsError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message

    def response(self, as_xml: bool = False) -> Response:
        """IAM には XML、Lambda と CloudWatch Logs には JSON。"""
        if as_xml:
            message = escape("".join(filter(str.isprintable, self.message)))
            error = f"<Code>{self.code}</Code><Message>{message}</Message>"
            xml = f"<ErrorResponse><Error>{error}</Error></ErrorResponse>"
            return Response(xml, self.status, content_type="text/xml")
        body = {"__type": self.code, "message": self.message, "Message": self.message}
        headers = {"x-amzn-ErrorType": self.code}
        return Response(json.dumps(body), self.status, headers, content_type="application/json")


class BeyondError(AwsError):
    """この演習の外のことを頼まれた。"""

    def __init__(self, what: str) -> None:
        super().__init__(501, "NotImplementedException", f"手元の AWS では {what} を使えません。")


class FunctionError(Exception):
    """関数の一度の呼び出しが、答えを返さずに終わった。"""

    def __init__(self, kind: str, message: str, request_id: str) -> None:
        super().__init__(message)
        self.kind, self.request_id = kind, request_id
