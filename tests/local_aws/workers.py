"""デプロイされた zip を実行するプロセスを管理する。

1 つのプロセスは一度に 1 つの呼び出しを処理し、終われば次の呼び出しのためにウォーム状態で残る。
プロセスから見えるのは zip と boto3（とその依存）だけ。ロールは、渡した認証情報で識別する。
"""

import importlib
import io
import json
import multiprocessing
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moto.logs.models import logs_backends

from . import ACCOUNT
from .functions import Function

INIT_SECONDS = 30
WARM_LIMIT = 16
BOTO3 = ["boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six", "urllib3"]
OUTCOMES = {"PENDING": "待機", "SUCCEEDED": "完了", "FAILED": "失敗"}


class FunctionError(Exception):
    """関数の 1 回の呼び出しが、結果を返さずに終了した: ErrorType、メッセージ、呼び出しの ID。"""


class Worker:
    """1 つの関数の 1 つのバージョンのための、1 つのプロセス。"""

    def __init__(self, function: Function, packages: Path, env: dict[str, str]) -> None:
        self.function, self.configuration = function, function.get_configuration()
        self.name = f"{function.function_name}:{function.version}"
        self.access_key = env["AWS_ACCESS_KEY_ID"]
        today = time.strftime("%Y/%m/%d", time.gmtime())
        self.stream = f"{today}/[{function.version}]{uuid.uuid4().hex}"
        self.ready = False
        self.connection, theirs = multiprocessing.Pipe()
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("worker.py"))]
        command += [str(theirs.fileno()), str(packages)]
        command += [env["AWS_ENDPOINT_URL"], self.name]  # ps と pkill で識別するため
        self.process = subprocess.Popen(
            command,
            env=env,
            cwd=env["LAMBDA_TASK_ROOT"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # ターミナルの Ctrl-C はこのプロセスには届かない。終了させるのは親プロセスだけ。
            start_new_session=True,
        )
        theirs.close()

    def run(self, event: dict[str, Any], request_id: str) -> str:
        """プロセスが落ちれば EOFError か OSError、タイムアウトなら TimeoutError。"""
        if not self.ready:
            self._answer(INIT_SECONDS, request_id)
            self.ready = True
        job = {
            "event": event,
            "aws_request_id": request_id,
            "function_name": self.function.function_name,
            "function_version": str(self.function.version),
            "invoked_function_arn": self.function.function_arn,
            "memory_limit_in_mb": str(self.function.memory_size),  # AWS でも文字列
            "log_group_name": self.function.logs_group_name,
            "log_stream_name": self.stream,
            "deadline": time.time() + self.function.timeout,
        }
        self.connection.send_bytes(json.dumps(job).encode())
        return str(self._answer(self.function.timeout, request_id)["result"])

    def _answer(self, seconds: float, request_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while self.connection.poll(max(deadline - time.monotonic(), 0)):
            message: dict[str, Any] = json.loads(self.connection.recv_bytes())
            if "log" in message:
                backend = logs_backends[ACCOUNT][self.function.region]
                group = self.function.logs_group_name
                backend.ensure_log_group(group)
                backend.ensure_log_stream(group, self.stream)
                backend.put_log_events(group, self.stream, [message["log"]])
                continue
            if failure := message.get("error"):
                raise FunctionError(failure["errorType"], failure["errorMessage"], request_id)
            return message
        raise TimeoutError

    def usable(self) -> bool:
        return self.ready and self.process.poll() is None

    def stop(self) -> int:
        self.process.kill()
        self.connection.close()
        return self.process.wait()

    def post_mortem(self, timed_out: bool, request_id: str) -> FunctionError:
        """異常終了またはタイムアウトしたプロセスについて、Lambda と同じ形式のエラーを返す。"""
        code = self.stop()
        how = f"signal: {signal.strsignal(-code)}" if code < 0 else f"exit status {code}"
        kind, what = "Runtime.ExitError", f"Runtime exited with error: {how.lower()}"
        if timed_out:
            kind = "Sandbox.Timedout"
            what = f"Task timed out after {self.function.timeout:.2f} seconds"
        return FunctionError(kind, f"RequestId: {request_id} Error: {what}", request_id)


class Workers:
    def __init__(self, endpoint: str, report: Callable[[str], None]) -> None:
        self.endpoint, self.report = endpoint, report
        self.idle: list[Worker] = []
        self.busy: set[Worker] = set()
        self.closed = False
        self.lock = threading.Lock()
        self.folder = tempfile.TemporaryDirectory(prefix="local-aws-", ignore_cleanup_errors=True)
        self.packages = Path(self.folder.name, "packages")
        self.packages.mkdir()
        for name in BOTO3:  # site-packages のほかのものは見せない
            module = Path(str(importlib.import_module(name).__file__))
            top = module.parent if module.stem == "__init__" else module
            (self.packages / top.name).symlink_to(top)

    def close(self) -> None:
        with self.lock:
            self.closed = True
            for worker in [*self.idle, *self.busy]:  # パイプは、読んでいるスレッドが閉じる
                worker.process.kill()
                worker.process.wait()
        self.folder.cleanup()

    def holder_of(self, access_key: str) -> Function | None:
        """この認証情報を渡されたプロセスの関数。"""
        with self.lock:
            workers = [*self.idle, *self.busy]
        return next((w.function for w in workers if w.access_key == access_key), None)

    def invoke(self, function: Function, event: dict[str, Any], execution: str) -> tuple[str, str]:
        """ハンドラーを 1 回実行し、返された JSON と呼び出しの ID を返す。"""
        worker, request_id = self._take(function), str(uuid.uuid4())
        outcome = "失敗"
        try:
            answer = worker.run(event, request_id)
            status = re.match(r'{"Status": "(\w+)"', answer)
            outcome = OUTCOMES.get(status[1] if status else "", "完了")
            return answer, request_id
        except (EOFError, OSError) as error:
            timed_out = isinstance(error, TimeoutError)
            outcome = "タイムアウト" if timed_out else "異常終了"
            raise worker.post_mortem(timed_out, request_id) from error
        finally:
            self._put(worker)
            if not self.closed:
                end = f"呼び出し終了（{outcome}）  pid={worker.process.pid}"
                self.report(f"{worker.name}  {execution}  {end}")

    def _take(self, function: Function) -> Worker:
        with self.lock:
            kind = (function, function.get_configuration())
            warm = [w for w in self.idle if (w.function, w.configuration) == kind and w.usable()]
            if warm:
                self.idle.remove(warm[-1])
            else:
                warm = [Worker(function, self.packages, self._environment(function))]
            self.busy.add(warm[-1])
            return warm[-1]

    def _put(self, worker: Worker) -> None:
        with self.lock:
            self.busy.discard(worker)
            if worker.usable():
                self.idle.append(worker)
            else:
                worker.stop()
            while len(self.idle) > WARM_LIMIT:
                self.idle.pop(0).stop()

    def _environment(self, function: Function) -> dict[str, str]:
        """Lambda が渡すものと、関数の環境変数だけ。親の環境は何も渡さない。"""
        # zip はバージョンごとにあるので、更新後も、待機中の注文は元のコードで再開する。
        folder = Path(self.folder.name, function.code_digest)
        if not folder.exists():
            zipfile.ZipFile(io.BytesIO(function.code_bytes)).extractall(folder)
        return {
            **function.environment_vars,
            "AWS_ACCESS_KEY_ID": "ASIA" + secrets.token_hex(8).upper(),
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_SESSION_TOKEN": "local",
            "AWS_REGION": function.region,
            "AWS_DEFAULT_REGION": function.region,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_LAMBDA_FUNCTION_NAME": function.function_name,
            "AWS_LAMBDA_FUNCTION_VERSION": str(function.version),
            "LAMBDA_TASK_ROOT": str(folder),
            "_HANDLER": str(function.handler),
            "HOME": self.folder.name,
            "NO_PROXY": "127.0.0.1",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "TZ": ":UTC",
        }
