"""`python app.py` の中身: 注文 1 件を公式ローカルランナーで実行し、止まっても続ける。"""

import contextlib
import fcntl
import inspect
import io
import json
import logging
import math
import os
import select
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, NoReturn

from aws_durable_execution_sdk_python.execution import durable_execution
from aws_durable_execution_sdk_python.lambda_service import (
    CallbackOptions,
    CallbackTimeoutType,
    ErrorObject,
    OperationStatus,
)
from aws_durable_execution_sdk_python.plugin import (
    DurableInstrumentationPlugin,
    InvocationEndInfo,
    InvocationStartInfo,
    InvocationStatus,
    UserFunctionEndInfo,
    UserFunctionOutcome,
)
from aws_durable_execution_sdk_python_testing.exceptions import ResourceNotFoundException
from aws_durable_execution_sdk_python_testing.execution import Execution, ExecutionStatus
from aws_durable_execution_sdk_python_testing.stores.sqlite import SQLiteExecutionStore

import app
from tests.support.runner import LocalRunner, RealClock

README_ORDER: dict[str, Any] = {
    "order_id": "order-123",
    "items": [{"product_id": "prod-001", "name": "Widget", "price": 1000, "quantity": 2}],
}
ORDERS = Path(app.__file__).parent / ".orders"


class UnusableOrderError(Exception):
    """注文を始めることも続けることもできない。メッセージは次にすることを示す。"""


def main() -> None:
    """引数の注文（なければ README の注文）を終わりまで実行し、結果を表示する。

    できなければ、次にすることを 1 文で示して終了コード 1 で終わる。Ctrl-C では 130 で終わる。
    """
    interrupted = "\n中断しました。同じコマンドで、続きから始まります。"
    signal.signal(signal.SIGINT, lambda *_: stop(interrupted, 130))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # 書けない文字があっても終わらせる
    try:
        order = read_order(sys.argv[1:])
        app.validate(order)
        store = open_store(order["order_id"])
        execution = run(order, store)
    except (app.InvalidOrderError, UnusableOrderError) as error:
        sys.exit(f"{error}。")
    failure = show_result(execution)
    store.delete()
    stop(failure, 1 if failure else 0)


def stop(sentence: str | None, code: int) -> NoReturn:
    """ステップの途中でも、すぐに終わる。"""
    if sentence:
        print(sentence, file=sys.stderr, flush=True)
    os._exit(code)


def read_order(arguments: list[str]) -> Any:
    """引数の JSON か JSON ファイルを読む。読めなければ UnusableOrderError。"""
    if len(arguments) > 1:
        raise UnusableOrderError("注文は、JSON かファイル名で 1 つだけ渡してください")
    if not arguments:
        return README_ORDER
    text = arguments[0]
    try:
        if os.path.isfile(text):
            text = Path(text).read_text("utf-8-sig")
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{error.lineno} 行 {error.colno} 文字目"
        raise UnusableOrderError(
            f"注文を、JSON かファイルの名前で渡してください（JSON として読めないのは {place}）"
        ) from error
    except (ValueError, RecursionError, OSError) as error:
        raise UnusableOrderError("注文のファイルか JSON を読めません。直してください") from error


# ---- 実行する --------------------------------------------------------------------


def run(order: Any, store: "OrderStore") -> Execution:
    """注文を、記録があればその続きから実時間で実行し、終わった実行を返す。承認は端末で尋ねる。"""
    execution = store.recorded()
    text = json.dumps(order, sort_keys=True)
    if execution and execution.start_input.input != text:
        raise UnusableOrderError(
            f"注文 {order['order_id']} は別の内容で始まり、まだ終わっていません。"
            "その内容で続けるか、order_id を変えてください"
        )
    progress = Progress(store)
    logging.root.addHandler(progress)
    logging.root.setLevel(logging.INFO)
    for library in ("aws_durable_execution_sdk_python", "aws_durable_execution_sdk_python_testing"):
        logging.getLogger(library).setLevel(logging.CRITICAL)

    handler = durable_execution(inspect.unwrap(app.handler), plugins=[progress])
    with LocalRunner(handler, clock=RealClock(), store=store) as runner:
        if execution is None:
            print("注文を、AWS に接続せずこの端末で実行します。", flush=True)
            timeout = app.EXECUTION_TIMEOUT.to_seconds()
            arn = runner.run_async(text, timeout, execution_name=order["order_id"])
        else:
            print("途中まで済んだ注文を、続きから実行します。", flush=True)
            arn = execution.durable_execution_arn
            go_on(runner, store, execution)
        while not (execution := store.load(arn)).is_complete:
            callback = open_callback(execution)
            if callback and progress.idle and callback[1] > datetime.now(UTC):
                answer = ask_person(callback[1])
                if answer is not None:
                    with contextlib.suppress(ResourceNotFoundException):  # 期限には間に合わなかった
                        runner.send_callback_success(callback[0], answer)
            time.sleep(0.1)
    return execution


def go_on(runner: LocalRunner, store: SQLiteExecutionStore, execution: Execution) -> None:
    """前のプロセスが残した実行を続ける。待ちも再試行も期限も、もとの時刻に終わる。"""
    if execution.is_complete:
        return
    now = datetime.now(UTC)
    limit = timedelta(seconds=execution.start_input.execution_timeout_seconds)
    start = execution.get_operation_execution_started().start_timestamp
    assert start
    if start + limit <= now:
        execution.complete_timeout(ErrorObject.from_message("ExecutionTimeout"), now)
    execution.complete_due_operations(now)
    callback = open_callback(execution)
    if callback and callback[1] <= now:
        kind = CallbackTimeoutType.TIMEOUT.value
        execution.complete_callback_timeout(callback[0], ErrorObject(kind, kind, None, None), now)
        callback = None
    store.update(execution)
    if execution.is_complete:
        return
    # ランナーには、記録から続ける公開の口がない。その代わりに使う名前は、ここだけに書く。
    executor = runner._executor
    executor._launch_execution(execution, math.ceil((start + limit - now).total_seconds()))
    if callback:
        left = CallbackOptions(math.ceil((callback[1] - now).total_seconds()))
        executor._schedule_callback_timeouts(execution.durable_execution_arn, left, callback[0])


def open_callback(execution: Execution) -> tuple[str, datetime] | None:
    """答えを待っているコールバックの ID と期限。"""
    for operation in execution.operations:
        if operation.callback_details and operation.status is OperationStatus.STARTED:
            assert operation.start_timestamp
            seconds = next(
                update.callback_options.timeout_seconds
                for update in execution.updates
                if update.callback_options and update.operation_id == operation.operation_id
            )
            expiry = operation.start_timestamp + timedelta(seconds=seconds)
            return operation.callback_details.callback_id, expiry
    return None


def show_result(execution: Execution) -> str | None:
    """結果を表示する。結果を残さずに終わった注文なら、そのわけを返す。"""
    assert execution.result
    if execution.current_status() is ExecutionStatus.TIMED_OUT:
        minutes = execution.start_input.execution_timeout_seconds // 60
        return f"注文は、始めてから {minutes} 分の ExecutionTimeout を過ぎたので失敗しました。"
    if execution.result.error:
        return f"注文は失敗しました: {execution.result.error.message}。"
    result = json.loads(execution.result.result or "null")
    print(json.dumps(result, ensure_ascii=False, indent=2), flush=True)
    return None


def ask_person(expiry: datetime) -> bytes | None:
    """承認するかを端末で尋ね、コールバックに送る答えを返す。期限までに答えがなければ None。

    yes のほかはすべて却下になる。入力の終わりも却下である。
    """
    try:
        approver = ask("だれが決めますか（名前）: ", expiry)
        approved = ask("承認しますか（yes のほかは却下）: ", expiry) == "yes"
    except TimeoutError:
        print("\n期限が過ぎました。", flush=True)
        return None
    except (EOFError, OSError):  # 標準入力が閉じている
        print("\n答えがないので、承認しません。", flush=True)
        return b'{"approved": false}'
    return json.dumps({"approved": approved, "approver": approver}).encode()


def ask(question: str, expiry: datetime) -> str:
    """端末で答えの 1 行を受け取る。期限が過ぎれば TimeoutError、入力が終われば EOFError。"""
    print(question, end="", flush=True)
    line = b""
    while not line.endswith(b"\n"):
        seconds = max((expiry - datetime.now(UTC)).total_seconds(), 0)
        if not select.select([0], [], [], seconds)[0]:
            raise TimeoutError
        char = os.read(0, 1)  # 次の答えを先読みしない
        if not char and not line:
            raise EOFError
        line += char or b"\n"
    return line.decode(errors="replace").strip()


# ---- 見せる ----------------------------------------------------------------------


class Progress(DurableInstrumentationPlugin, logging.Handler):
    """ハンドラーの起動、リプレイ、待ち、ステップのログを、起きたときに 1 行ずつ表示する。

    時刻は、注文が始まってからの秒数。idle は、何も動いていないことを示す。
    """

    def __init__(self, store: "OrderStore") -> None:
        super().__init__()
        self.store = store
        self.idle = False
        self.started = 0.0

    def show(self, text: str) -> None:
        print(f"{time.time() - self.started:5.1f} 秒  {text}", flush=True)

    def create_plugin(self, info: InvocationStartInfo) -> "Progress":
        return self

    def on_invocation_start(self, info: InvocationStartInfo) -> None:
        assert info.execution_start_time
        self.idle, self.started = False, info.execution_start_time.timestamp()
        number = self.store.began()
        self.show(f"起動 {number} 回目" + ("" if info.is_first_invocation else ": リプレイ"))
        done = [
            operation.name
            for operation in info.operations.values()
            if operation.status is OperationStatus.SUCCEEDED and operation.name
        ]
        if done:
            self.show(f"  記録済み: {', '.join(done)}")

    def emit(self, record: logging.LogRecord) -> None:
        step = getattr(record, "operationName", None)
        if step or record.name == app.__name__:
            self.show(f"  {step or '':14} {record.getMessage()}")

    def on_user_function_end(self, info: UserFunctionEndInfo) -> None:
        if info.outcome is UserFunctionOutcome.FAILED and info.error:
            self.show(f"  {info.name:14} {info.attempt} 回目は失敗: {info.error.message}")

    def on_invocation_end(self, info: InvocationEndInfo) -> None:
        error = (info.error and info.error.type) or ""
        if error.endswith(".NonDeterministicExecutionError"):
            stop(
                "app.py が、途中まで済んだ注文の記録と合いません。"
                "app.py を元に戻すか、order_id を変えてください。",
                1,
            )
        self.store.ended()
        if info.status is InvocationStatus.PENDING:
            self.show_wait(str(info.execution_arn))
        else:
            number, cut_off, seconds = self.store.invocations()
            total = time.time() - self.started
            besides = f"（途中で止まった {cut_off} 回を除く）" if cut_off else ""
            self.show(
                f"終了: 起動は {number} 回。"
                f"{total:.1f} 秒のうち、動いていたのは {seconds:.1f} 秒でした{besides}"
            )
        self.idle = True

    def show_wait(self, arn: str) -> None:
        for operation in reversed(self.store.load(arn).operations):
            wait, step, status = operation.wait_details, operation.step_details, operation.status
            if wait and wait.scheduled_end_timestamp and status is OperationStatus.STARTED:
                what = f"あと {seconds_until(wait.scheduled_end_timestamp)} 秒待ちます"
            elif step and step.next_attempt_timestamp and status is OperationStatus.PENDING:
                what = f"{seconds_until(step.next_attempt_timestamp)} 秒後に再試行します"
            elif operation.callback_details and status is OperationStatus.STARTED:
                what = "人の答えを待ちます"
            else:
                continue
            return self.show(f"{operation.name}: {what}。その間は何も動きません")


def seconds_until(moment: datetime) -> int:
    return math.ceil((moment - datetime.now(UTC)).total_seconds())


# ---- 記録する --------------------------------------------------------------------


class OrderStore(SQLiteExecutionStore):
    """注文 1 件の、ランナーの記録と、起動の記録。"""

    def __init__(self, path: Path, claim: IO[bytes]) -> None:
        super().__init__(path)
        self.claim = claim  # 開いている間、ほかのプロセスはこの注文を実行できない
        self.readable = False
        self.lock = threading.Lock()
        with self._connection() as database:
            database.execute("CREATE TABLE IF NOT EXISTS invocations (began REAL, ended REAL)")
        self._init_db()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """消したあとは開かない。ランナーの設定とは違い、電源が落ちても最後の書き込みを失わない。"""
        try:
            with self.lock, super()._connection() as database:
                database.execute("PRAGMA synchronous=FULL")
                yield database
        except sqlite3.Error:
            if self.readable:  # どのスレッドでも、記録できないまま先へは進まない
                stop(f"{ORDERS.name}/ に記録できません。直して、もう一度実行してください。", 1)
            raise

    def recorded(self) -> Execution | None:
        """前のプロセスが残した実行。"""
        with self._connection() as database:
            found = database.execute("SELECT durable_execution_arn FROM executions").fetchone()
        return self.load(*found) if found else None

    def delete(self) -> None:
        self.lock.acquire()  # もう放さない。ランナーは、注文が終わったあとにも書こうとする
        for file in ORDERS.glob(f"{self.db_path.name}*"):
            file.unlink()

    def began(self) -> int:
        """起動を記録し、何回目かを返す。"""
        with self._connection() as database:
            insert = database.execute("INSERT INTO invocations VALUES (?, NULL)", [time.time()])
            return int(insert.lastrowid or 0)

    def ended(self) -> None:
        last = "rowid = (SELECT max(rowid) FROM invocations)"
        with self._connection() as database:
            database.execute(f"UPDATE invocations SET ended = ? WHERE {last}", [time.time()])

    def invocations(self) -> tuple[int, int, float]:
        """起動の数、そのうち途中で止まった数、残りが動いていた秒数。"""
        sums = "count(*), count(*) - count(ended), total(ended - began)"
        with self._connection() as database:
            number, cut_off, seconds = database.execute(
                f"SELECT {sums} FROM invocations"
            ).fetchone()
        return number, cut_off, seconds


def open_store(order_id: str) -> OrderStore:
    """注文の記録を、このプロセスだけのものとして開く。だめなら UnusableOrderError。"""
    path = ORDERS / f"{order_id}.db"
    name = f"{ORDERS.name}/{path.name}"
    try:
        ORDERS.mkdir(exist_ok=True)
        store = OrderStore(path, claim_file(path))
        store.recorded()
    except BlockingIOError as error:
        raise UnusableOrderError(
            f"注文 {order_id} は別の端末で実行中です。終わるのを待つか、order_id を変えてください"
        ) from error
    except (OSError, sqlite3.OperationalError) as error:
        why = getattr(error, "strerror", error)
        raise UnusableOrderError(
            f"{name} に書けません（{why}）。書けるようにして、もう一度実行してください"
        ) from error
    except (RuntimeError, sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise UnusableOrderError(
            f"{name} を注文の記録として読めません。ほかへ移して、もう一度実行してください"
        ) from error
    store.readable = True
    return store


def claim_file(path: Path) -> IO[bytes]:
    """ファイルを開き、ほかのプロセスに先を越されていれば BlockingIOError。"""
    while True:
        file = path.open("ab")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file  # そうでなければ、開いた直後に、終わった注文として消された
