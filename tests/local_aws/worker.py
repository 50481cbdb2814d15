"""1 つの実行環境: デプロイされた zip のハンドラーを、呼び出しごとに 1 回実行する子プロセス。

標準ライブラリだけで書く。このリポジトリも親プロセスの site-packages も、ここからは参照できない。
親プロセスとは標準出力ではなくパイプで通信し、1 つのメッセージが 1 つの JSON になる。
"""

import importlib
import io
import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

STANDARD_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime"}


class Channel(io.RawIOBase):
    """親プロセスとの送受信。親プロセスが終了すると、処理の途中でもこのプロセスは終了する。"""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.lock = connection, threading.Lock()
        self.jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        try:
            while True:
                self.jobs.put(json.loads(self.connection.recv_bytes()))
        finally:  # 親が読み残したデータがあれば、EOF ではなく ConnectionResetError になる
            os._exit(0)

    def send(self, **message: Any) -> None:
        with self.lock:
            self.connection.send_bytes(json.dumps(message).encode())

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


def main() -> None:
    channel = Channel(Connection(int(sys.argv[1])))
    sys.path[:0] = [os.environ["LAMBDA_TASK_ROOT"], sys.argv[2]]
    sys.stdout = sys.stderr = io.TextIOWrapper(channel, "utf-8", line_buffering=True)
    root, log = logging.getLogger(), JsonLog()
    root.addHandler(logging.StreamHandler(sys.stdout))
    root.handlers[0].setFormatter(log)
    root.setLevel(logging.INFO)
    try:
        module, _, attribute = os.environ["_HANDLER"].rpartition(".")
        handler = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # noqa: BLE001 利用者のコードはどんな例外も送出しうる
        root.exception(error)
        return channel.send(error=described(error))
    channel.send(ready=True)
    while True:
        job = channel.jobs.get()
        log.request_id = job["request_id"]
        context = SimpleNamespace(aws_request_id=job["request_id"])
        try:
            channel.send(result=json.dumps(handler(job["event"], context)))
        except Exception as error:  # noqa: BLE001 利用者のコードはどんな例外も送出しうる
            root.exception(error)
            channel.send(error=described(error))


if __name__ == "__main__":
    main()
