"""デプロイされた zip を走らせるプロセスたち。

一つのプロセスは一度に一つの呼び出しを受け、終われば次のために温かいまま残る。
プロセスが見るのは zip と boto3 (とその依存) だけ。役割は、与えた資格情報で見分ける。
"""

import hashlib
import importlib.metadata
import io
import json
import re
import signal
import socket
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

from . import ACCOUNT, iam
from .errors import FunctionError
from .functions import Function

INIT_SECONDS = 30
WARM_LIMIT = 16
OUTCOMES = {"PENDING": "待ち", "SUCCEEDED": "完了", "FAILED": "失敗"}


class Worker:
    """一つの関数の一つの版のための、一つのプロセス。"""

    def __init__(self, function: Function, packages: Path, env: dict[str, str]) -> None:
        self.function, self.key = function, worker_key(function)
        today = time.strftime("%Y/%m/%d", time.gmtime())
        self.stream = f"{today}/[{function.version}]{uuid.uuid4().hex}"
        self.ready = False
        level = function.logging_config["ApplicationLogLevel"]
        self.connection, theirs = socket.socketpair()
        self.lines = self.connection.makefile("rb")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", str(Path(__file__).with_name("worker.py"))),
                *(str(theirs.fileno()), env["LAMBDA_TASK_ROOT"], str(packages), level),
                env["AWS_ENDPOINT_URL"],  # ここから先は、ps と pkill で見分けるため
                self.name,
            ],
            env=env,
            cwd=env["LAMBDA_TASK_ROOT"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # 端末の Ctrl-C はこのプロセスには届かない。終わらせるのは親だけ。
            start_new_session=True,
        )
        theirs.close()

    def run(self, event: str, request_id: str) -> str:
        """一度の呼び出し。プロセスが死ねば EOFError か OSError、時間が尽きれば TimeoutError。"""
        if not self.ready:
            self._answer(INIT_SECONDS, request_id)
        # 答えが来るまでの間に何が起きても、このプロセスは次の呼び出しに使われない。
        self.ready = False
        arn = f"arn:aws:lambda:{self.function.region}:{ACCOUNT}:function:{self.name}"
        timeout = float(self.function.timeout)
        job = {"event": event, "request_id": request_id, "timeout": timeout, "arn": arn}
        self.connection.settimeout(timeout)
        self.connection.sendall(json.dumps(job).encode() + b"\n")
        return str(self._answer(timeout, request_id)["result"])

    def _answer(self, seconds: float, request_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            self.connection.settimeout(max(deadline - time.monotonic(), 0.001))
            line = self.lines.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            message: dict[str, Any] = json.loads(line)
            if "log" in message:
                write_log(self.function, self.stream, message["log"])
                continue
            self.ready = "init_error" not in message
            if failure := message.get("error") or message.get("init_error"):
                raise FunctionError(failure["errorType"], failure["errorMessage"], request_id)
            return message

    @property
    def name(self) -> str:
        return f"{self.function.function_name}:{self.function.version}"

    def usable(self) -> bool:
        return self.ready and self.process.poll() is None

    def stop(self) -> int:
        self.process.kill()
        self.lines.close()
        self.connection.close()
        return self.process.wait()

    def post_mortem(self, timed_out: bool, request_id: str) -> FunctionError:
        """死んだ、または時間切れのプロセスについて、Lambda が返す形の誤り。"""
        code = self.stop()
        if timed_out:
            kind = "Sandbox.Timedout"
            what = f"Task timed out after {self.function.timeout:.2f} seconds"
        else:
            kind = "Runtime.ExitError"
            how = f"signal: {signal.strsignal(-code)}" if code < 0 else f"exit status {code}"
            what = f"Runtime exited with error: {how.lower()}"
        return FunctionError(kind, f"RequestId: {request_id} Error: {what}", request_id)


class Workers:
    def __init__(self, endpoint: str, report: Callable[[str], None]) -> None:
        self.endpoint, self.report = endpoint, report
        self.principals: dict[str, tuple[str, str]] = {}
        self.idle: list[Worker] = []
        self.busy: set[Worker] = set()
        self.closed = False
        self.lock = threading.Lock()
        self.folder = tempfile.TemporaryDirectory(prefix="local-aws-", ignore_cleanup_errors=True)
        self.packages = Path(self.folder.name, "packages")
        link_distribution("boto3", self.packages)

    def close(self) -> None:
        with self.lock:
            self.closed = True
            for worker in self.idle:
                worker.stop()
            # 走っているもののソケットは、それを読んでいるスレッドが閉じる。
            for worker in self.busy:
                worker.process.kill()
                worker.process.wait()
        self.folder.cleanup()

    def invoke(self, function: Function, event: str, execution: str) -> tuple[str, str]:
        """ハンドラーを一度走らせ、返した JSON と呼び出しの ID を返す。"""
        worker, request_id = self._take(function), str(uuid.uuid4())
        outcome = "失敗"
        try:
            answer = worker.run(event, request_id)
            outcome = outcome_of(answer)
            return answer, request_id
        except (EOFError, OSError) as error:
            timed_out = isinstance(error, TimeoutError)
            outcome = "時間切れ" if timed_out else "プロセスが落ちた"
            raise worker.post_mortem(timed_out, request_id) from error
        finally:
            self._put(worker)
            if not self.closed:
                self.report(f"{worker.name}  {execution}  {outcome}  pid={worker.process.pid}")

    def _take(self, function: Function) -> Worker:
        key = worker_key(function)
        with self.lock:
            if self.closed:
                raise RuntimeError("local AWS is closed")
            warm = [worker for worker in self.idle if worker.key == key and worker.usable()]
            if warm:
                self.idle.remove(warm[-1])
            else:
                warm = [Worker(function, self.packages, self._environment(function))]
            self.busy.add(warm[-1])
            return warm[-1]

    def _put(self, worker: Worker) -> None:
        with self.lock:
            self.busy.discard(worker)
            if worker.usable() and not self.closed:
                self.idle.append(worker)
            else:
                worker.stop()
            while len(self.idle) > WARM_LIMIT:
                self.idle.pop(0).stop()

    def _environment(self, function: Function) -> dict[str, str]:
        """Lambda が渡すものと、関数の環境変数だけ。親の環境は何も渡さない。"""
        access_key = "ASIA" + uuid.uuid4().hex[:16].upper()
        self.principals[access_key] = (function.role, function.function_name)
        return {
            **function.environment_vars,
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_SESSION_TOKEN": "local",
            "AWS_REGION": function.region,
            "AWS_DEFAULT_REGION": function.region,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_LAMBDA_FUNCTION_NAME": function.function_name,
            "AWS_LAMBDA_FUNCTION_VERSION": str(function.version),
            "LAMBDA_TASK_ROOT": str(self._unzipped(function)),
            "_HANDLER": str(function.handler),
            "HOME": self.folder.name,
            "LANG": "en_US.UTF-8",
            "NO_PROXY": "127.0.0.1",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "TZ": ":UTC",
        }

    def _unzipped(self, function: Function) -> Path:
        """moto は版ごとに zip を持つので、更新のあとも待っている注文は前のコードで続く。"""
        folder = Path(self.folder.name, hashlib.sha256(function.code_bytes).hexdigest())
        if not folder.exists():
            with zipfile.ZipFile(io.BytesIO(function.code_bytes)) as archive:
                archive.extractall(folder)
        return folder


def write_log(function: Function, stream: str, event: dict[str, Any]) -> None:
    """ロールに許されていれば、moto の CloudWatch Logs に書く。"""
    backend = logs_backends[ACCOUNT][function.region]
    group = function.get_configuration()["LoggingConfig"]["LogGroup"]
    arn = f"arn:aws:logs:{function.region}:{ACCOUNT}:log-group:{group}"
    if group not in backend.groups:
        if iam.refusal(function.role, "logs:CreateLogGroup", arn):
            return
        backend.ensure_log_group(group)
    if not iam.refusal(function.role, "logs:PutLogEvents", f"{arn}:log-stream:{stream}"):
        backend.ensure_log_stream(group, stream)
        backend.put_log_events(group, stream, [event])


def worker_key(function: Function) -> str:
    settings = function.settings | {"version": str(function.version), "id": function.identity}
    return json.dumps(settings, sort_keys=True)


def outcome_of(answer: str) -> str:
    result = json.loads(answer)
    status = result.get("Status") if isinstance(result, dict) else None
    return OUTCOMES.get(str(status), "完了")


def link_distribution(name: str, folder: Path) -> None:
    """配布物とその依存を、site-packages のほかのものなしで folder から見えるようにする。"""
    folder.mkdir(exist_ok=True)
    distribution = importlib.metadata.distribution(name)
    for file in distribution.files or []:
        top = file.parts[0]
        if top not in ("..", "__pycache__") and not (folder / top).exists():
            (folder / top).symlink_to(Path(str(distribution.locate_file(top))).absolute())
    for requirement in distribution.requires or []:
        needed = re.match(r"[\w.-]+", requirement)
        if needed and "extra ==" not in requirement:
            link_distribution(needed.group(), folder)
