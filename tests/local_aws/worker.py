"""一つの実行環境: デプロイされた zip のハンドラーを、呼び出しごとに一度走らせる子プロセス。

標準ライブラリだけで書く。チェックアウトも親の site-packages も、ここからは見えない。
親との会話は標準出力とは別のソケットで、1 行が一つの JSON。
"""

import importlib
import io
import json
import logging
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

STANDARD_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime"}
LEVELS = {"TRACE": 5, "FATAL": logging.CRITICAL}


class Channel:
    """親へ送る行と、親から来る仕事。親がいなくなれば、仕事の途中でもこのプロセスは終わる。"""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.lock = threading.Lock()
        self.jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        for line in self.connection.makefile("rb"):
            self.jobs.put(json.loads(line))
        os._exit(0)

    def send(self, **message: Any) -> None:
        with self.lock:
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def log(self, text: str) -> None:
        self.send(log={"timestamp": int(time.time() * 1000), "message": text})


class PrintedLines(io.TextIOBase):
    """print されたものを、1 行ずつログにする。"""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in filter(None, lines):
            self.channel.log(line)
        return len(text)

    def end_line(self) -> None:
        if self.rest:
            self.write("\n")


class LambdaLog(logging.Handler):
    """root ロガーの記録を、関数の LoggingConfig が選ぶ形 (JSON か Text) で親へ送る。"""

    def __init__(self, channel: Channel, as_json: bool) -> None:
        super().__init__()
        self.channel, self.as_json, self.request_id = channel, as_json, ""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.channel.log(self._json(record) if self.as_json else self._text(record))
        except Exception:  # noqa: BLE001 ログのために注文を落とさない
            self.handleError(record)

    def _json(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname,
            "message": record.getMessage(),
            "logger": record.name,
            "requestId": self.request_id,
        }
        line |= {key: vars(record)[key] for key in vars(record).keys() - STANDARD_FIELDS}
        if record.exc_info and record.exc_info[1]:
            line |= described(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)

    def _text(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        stamp = f"{moment}.{int(record.msecs):03d}Z"
        return f"[{record.levelname}]\t{stamp}\t{self.request_id}\t{self.format(record)}"

    def failure(self, error: dict[str, Any]) -> None:
        if self.as_json:
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            line = {"timestamp": moment, "log_level": "ERROR", **error}
            self.channel.log(json.dumps(line, ensure_ascii=False))
        else:
            trace = "".join(error["stackTrace"])
            text = f"[ERROR] {error['errorType']}: {error['errorMessage']}"
            self.channel.log(f"{text}\nTraceback (most recent call last):\n{trace}".rstrip())


class RuntimeFailure(Exception):
    """ハンドラーの外で起きた誤り。名前は Lambda のランタイムのものに合わせる。"""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def described(error: BaseException) -> dict[str, Any]:
    return {
        "errorType": getattr(error, "kind", type(error).__name__),
        "errorMessage": str(error),
        # 先頭はこのファイルの行。利用者のコードから見せる。
        "stackTrace": traceback.format_tb(error.__traceback__)[1:],
    }


def load_handler(name: str) -> Callable[[Any, Any], Any]:
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name.replace("/", "."))
    except ImportError as error:
        message = f"Unable to import module '{module_name}': {error}"
        raise RuntimeFailure("Runtime.ImportModuleError", message) from error
    if not hasattr(module, attribute):
        message = f"Handler '{attribute}' missing on module '{module_name}'"
        raise RuntimeFailure("Runtime.HandlerNotFound", message)
    handler: Callable[[Any, Any], Any] = getattr(module, attribute)
    return handler


def marshal(result: Any) -> str:
    try:
        return json.dumps(result, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        message = f"Unable to marshal response: {error}"
        raise RuntimeFailure("Runtime.MarshalError", message) from error


def lambda_context(job: dict[str, Any]) -> SimpleNamespace:
    deadline = time.monotonic() + job["timeout"]
    return SimpleNamespace(
        aws_request_id=job["request_id"],
        function_name=os.environ["AWS_LAMBDA_FUNCTION_NAME"],
        function_version=os.environ["AWS_LAMBDA_FUNCTION_VERSION"],
        invoked_function_arn=job["arn"],
        log_group_name=os.environ["AWS_LAMBDA_LOG_GROUP_NAME"],
        log_stream_name=os.environ["AWS_LAMBDA_LOG_STREAM_NAME"],
        memory_limit_in_mb=os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"],
        get_remaining_time_in_millis=lambda: max(0, int((deadline - time.monotonic()) * 1000)),
        tenant_id=None,
        client_context=None,
        identity=None,
    )


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    channel = Channel(connection)
    code, packages, log_format, level = sys.argv[2:6]
    sys.path[:0] = [code, packages]
    sys.argv[:] = [code]
    log = LambdaLog(channel, log_format == "JSON")
    logging.getLogger().addHandler(log)
    if log.as_json:
        logging.getLogger().setLevel(LEVELS.get(level, level))
    # AWS_ENDPOINT_URL を見つけたという行は、AWS では出ない。
    logging.getLogger("botocore.configprovider").setLevel(logging.WARNING)
    printed = PrintedLines(channel)
    sys.stdout = sys.stderr = printed
    try:
        handler = load_handler(os.environ["_HANDLER"])
    except Exception as error:  # noqa: BLE001 利用者のコードは何でも投げる
        failure = described(error)
        log.failure(failure)
        return channel.send(init_error=failure)
    channel.send(ready=True)
    while True:
        job = channel.jobs.get()
        log.request_id = job["request_id"]
        answer: dict[str, Any]
        try:
            answer = {"result": marshal(handler(json.loads(job["event"]), lambda_context(job)))}
        except Exception as error:  # noqa: BLE001 利用者のコードは何でも投げる
            failure = {"requestId": job["request_id"], **described(error)}
            log.failure(failure)
            answer = {"error": failure}
        printed.end_line()
        channel.send(**answer)


if __name__ == "__main__":
    main()
