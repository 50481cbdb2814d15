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
FAULTS = {  # AWS では、初期化の間だけ、この名前とメッセージになる
    ImportError: ("Runtime.ImportModuleError", "Unable to import module '{}': {}"),
    SyntaxError: ("Runtime.UserCodeSyntaxError", "Syntax error in module '{}': {}"),
}


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

    module, request_id = "", ""

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
            line |= self.described(error) | {"stackTrace": traceback.format_tb(error.__traceback__)}
        return json.dumps(line, ensure_ascii=False, default=str)

    def described(self, error: BaseException) -> dict[str, Any]:
        for kind, (name, message) in FAULTS.items():
            if self.module and isinstance(error, kind):
                return {"errorType": name, "errorMessage": message.format(self.module, error)}
        return {"errorType": type(error).__name__, "errorMessage": str(error)}


class LambdaContext(SimpleNamespace):
    identity = client_context = None  # モバイルアプリからの呼び出しだけにある

    def get_remaining_time_in_millis(self) -> int:
        return max(int((self.deadline - time.time()) * 1000), 0)


def main() -> None:
    channel = Channel(Connection(int(sys.argv[1])))
    sys.path[:0] = [os.environ["LAMBDA_TASK_ROOT"], sys.argv[2]]
    sys.stdout = sys.stderr = io.TextIOWrapper(channel, "utf-8", line_buffering=True)
    root, log = logging.getLogger(), JsonLog()
    root.addHandler(logging.StreamHandler(sys.stdout))
    root.handlers[0].setFormatter(log)
    root.setLevel(logging.INFO)
    try:
        log.module, _, attribute = os.environ["_HANDLER"].rpartition(".")
        handler = getattr(importlib.import_module(log.module), attribute)
    except Exception as error:  # noqa: BLE001 利用者のコードはどんな例外も送出しうる
        root.exception(error)
        return channel.send(error=log.described(error))
    log.module = ""
    channel.send(ready=True)
    while True:
        job = channel.jobs.get()
        event, context = job.pop("event"), LambdaContext(**job)
        log.request_id = context.aws_request_id
        try:
            channel.send(result=json.dumps(handler(event, context)))
        except Exception as error:  # noqa: BLE001 利用者のコードはどんな例外も送出しうる
            root.exception(error)
            channel.send(error=log.described(error))


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:  # noqa: BLE001 sys.exit() でも、AWS と同じく終了する
        traceback.print_exc()
        code = error.code if isinstance(error, SystemExit) else 1
        os._exit(code if isinstance(code, int) else bool(code))
