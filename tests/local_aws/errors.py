"""呼び出し元へ返す、AWS の名前を持った誤り。"""


class AwsError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class FunctionError(Exception):
    """関数の一度の呼び出しが失敗した。payload は Lambda が返す形の誤り。"""

    def __init__(self, payload: dict[str, str]) -> None:
        super().__init__(payload["errorMessage"])
        self.payload = payload
