"""1 つの実行環境: デプロイされた zip のハンドラーを、呼び出しごとに 1 回実行する子プロセス。

標準ライブラリだけで書く。このリポジトリも親プロセスの site-packages も、ここからは参照できない。
親プロセスとは標準出力ではなくソケットで通信し、1 行が 1 つの JSON になる。
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
from types import SimpleNamespace
from typing import Any

STANDARD_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime"}


class Channel(io.RawIOBase):
    """親プロセスとの送受信。親プロセスが終了すると、処理の途中でもこのプロセスは終了する。"""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.lock = threading.Lock()
        self.jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        try:
            for line in self.connection.makefile("rb"):
                self.jobs.put(json.loads(line))
        finally:  # 親が読み残したデータがあれば、EOF ではなく ConnectionResetError になる
            os._exit(0)

    def send(self, **message: Any) -> None:
        with self.lock:
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def writable(self) -> bool:
        return True

    def write(self, printed: Any) -> int:
        text = bytes(printed).decode(errors="replace").removesuffix("\n")
        self.send(log={"timestamp": int(time.time() * 1000), "message": text})
        return len(printed)


class JsonLog(logging.Formatter):
    """Lambda の JSON 形式のログ。"""

    request_id = ""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname,
            "message": record.getMessage(),
            "logger": record.name,
            "requestId": self.request_id,
        }
        line |= {key: vars(record)[key] for key in vars(record).keys() - STANDARD_FIELDS}
        if record.exc_info and (error := record.exc_info[1]):
            line |= described(error) | {"stackTrace": traceback.format_tb(error.__traceback__)}
        return json.dumps(line, ensure_ascii=False, default=str)


def described(error: BaseException) -> dict[str, Any]:
    kind = "Runtime.ImportModuleError" if isinstance(error, ImportError) else type(error).__name__
    return {"errorType": kind, "errorMessage": str(error)}


def lambda_context(job: dict[str, Any]) -> SimpleNamespace:
    deadline = time.monotonic() + job["timeout"]
    return SimpleNamespace(
        aws_request_id=job["request_id"],
        function_name=os.environ["AWS_LAMBDA_FUNCTION_NAME"],
        function_version=os.environ["AWS_LAMBDA_FUNCTION_VERSION"],
        invoked_function_arn=os.environ["FUNCTION_ARN"],
        get_remaining_time_in_millis=lambda: max(0, int((deadline - time.monotonic()) * 1000)),
    )


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    channel = Channel(connection)
    sys.path[:0] = [os.environ["LAMBDA_TASK_ROOT"], sys.argv[2]]
    sys.stdout = sys.stderr = io.TextIOWrapper(channel, "utf-8", line_buffering=True)
    root, log = logging.getLogger(), JsonLog()
    root.addHandler(logging.StreamHandler(sys.stdout))
    root.handlers[0].setFormatter(log)
    root.setLevel(logging.INFO)
    # AWS_ENDPOINT_URL を見つけたという行は、AWS では出ない。
    logging.getLogger("botocore.configprovider").setLevel(logging.WARNING)
    try:
        module, _, attribute = os.environ["_HANDLER"].rpartition(".")
        handler = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # noqa: BLE001 利用者のコードはどんな例外も送出しうる
        root.exception(error)
        return channel.send(init_error=described(error))
    channel.send(ready=True)
    while True:
        job = channel.jobs.get()
        log.request_id = job["request_id"]
        answer: dict[str, Any]
        try:
            answer = {"result": json.dumps(handler(json.loads(job["event"]), lambda_context(job)))}
        except Exception as error:  # noqa: BLE001 利用者のコードはどんな例外も送出しうる
            root.exception(error)
            answer = {"error": described(error)}
        channel.send(**answer)


if __name__ == "__main__":
    main()
