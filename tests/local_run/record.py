"""注文 1 件の、ディスク上の記録と、記録から読む待ち。破損した記録からは再開しない。"""

import contextlib
import fcntl
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aws_durable_execution_sdk_python.lambda_service import OperationStatus
from aws_durable_execution_sdk_python_testing.execution import Execution
from aws_durable_execution_sdk_python_testing.stores.sqlite import SQLiteExecutionStore

from .runner import OrderClock
from .screen import stop

MARK = b"ordr"  # このデモの記録の印（SQLite の application_id）。ファイルの 68 バイト目から入る
FOREVER = datetime(9999, 1, 1, tzinfo=UTC)
SCHEMA = f"""
    PRAGMA application_id = {int.from_bytes(MARK)};
    CREATE TABLE invocations (began REAL, ended REAL);
"""


class UnusableOrderError(Exception):
    """注文を開始も再開もできない。メッセージで対処方法を示す。"""


class OrderStore(SQLiteExecutionStore):
    """ランナーのストアに、排他、呼び出しの記録、注文の時計を加える。

    ロックするのは、隣のファイル。記録をロックすると、macOS では SQLite のロックと衝突する。
    """

    def __init__(self, path: Path, speed: float) -> None:
        """記録を開くか、作る。途中で強制終了しても、作りかけの記録からは始めない。"""
        self.opened, self.thread_lock, lock = False, threading.Lock(), path.with_suffix(".lock")
        path.parent.mkdir(exist_ok=True)
        self.lock = lock.open("ab")
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for file, mark in ((path, MARK), (lock, b"")):
            if file.exists() and file.read_bytes()[68:72] != mark:
                raise OSError(None, "このデモの記録ではないか、破損しています", file)
        new = not path.exists()
        super().__init__(path.with_suffix(".db-new") if new else path)
        if new:
            self.db_path.unlink(missing_ok=True)
            self._init_db()
            with self._connection() as database:
                database.executescript(SCHEMA)
            self.db_path = self.db_path.rename(path)
        with self._connection() as database:
            for (problem,) in database.execute("PRAGMA integrity_check"):
                if problem != "ok":
                    raise sqlite3.DatabaseError(problem)
            arn = database.execute("SELECT durable_execution_arn FROM executions").fetchone()
        self.recorded = self.load(*arn) if arn else None
        times = [time for times in self.invocations() for time in times if time]
        times += self.recorded.update_timestamps if self.recorded else []
        self.last_time = max(times, default=None)
        self.clock = OrderClock(speed, self.last_time)  # 壁時計が戻されていても、記録の続きから
        self.opened = True

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """電源が落ちても失われないように書く。書けなければ、どのスレッドも処理を進めない。"""
        with self.thread_lock:
            try:
                with super()._connection() as database:
                    database.execute("PRAGMA synchronous=FULL")
                    yield database
            except sqlite3.Error as error:
                if self.opened:
                    stop(f"{unusable(self.db_path, error)}。", 1)
                raise

    def delete(self) -> None:
        """記録のファイルだけを削除する。"""
        self.thread_lock.acquire()  # 解放しない。ランナーは、注文の完了後にも書き込もうとする
        for ending in (".db", ".db-wal", ".db-shm", ".lock"):
            self.db_path.with_suffix(ending).unlink(missing_ok=True)

    def began(self) -> int:
        """呼び出しの開始を記録し、何回目かを返す。"""
        insert = "INSERT INTO invocations (began) VALUES (?)"
        with self._connection() as database:
            return int(database.execute(insert, [self.clock.now().timestamp()]).lastrowid or 0)

    def ended(self) -> None:
        """最後の呼び出しの終了を記録する。"""
        last = "(SELECT max(rowid) FROM invocations)"
        update = f"UPDATE invocations SET ended = ? WHERE rowid = {last}"
        with self._connection() as database:
            database.execute(update, [self.clock.now().timestamp()])

    def invocations(self) -> list[tuple[datetime, datetime | None]]:
        """呼び出しの開始と終了。中断した呼び出しには、終了がない。"""
        with self._connection() as database:
            rows = database.execute("SELECT began, ended FROM invocations").fetchall()
        at = datetime.fromtimestamp
        return [(at(began, UTC), at(ended, UTC) if ended else None) for began, ended in rows]


def open_record(path: Path, speed: float) -> OrderStore:
    """注文の記録を開く。開けなければ、何も変えずに UnusableOrderError。"""
    try:
        return OrderStore(path, speed)
    except BlockingIOError as error:
        raise UnusableOrderError(
            f"注文 {path.stem} は別のプロセスで処理中です。完了を待つか、order_id を変えてください"
        ) from error
    except Exception as error:
        # 破損した記録を読めば、ランナーのどこからどんな例外が来ることもある
        raise UnusableOrderError(unusable(path, error)) from error


def unusable(path: Path, error: Exception) -> str:
    file = Path(getattr(error, "filename", None) or path).relative_to(path.parents[1])
    why = getattr(error, "strerror", None) or error.__cause__ or error
    advice = "ディスクの空きと権限を確認するか、別の場所に移動して、もう一度実行してください"
    return f"{file} を使えません（{why}）。{advice}"


def label(operation: Any, operations: Mapping[str, Any]) -> str:
    """オペレーションの名前。なければ種類。コンテキストの中なら、コンテキストの名前に続ける。"""
    own = str(operation.name or operation.sub_type or operation.operation_type.value)
    parent = operations.get(operation.parent_id)
    if not parent:
        return own
    return f"{label(parent, operations)}/{own.removeprefix(f'{parent.name} ')}"


@dataclass(frozen=True)
class Wait:
    """待機、再試行、コールバックのどれか 1 つ。期限のないコールバックの due は FOREVER。"""

    label: str
    due: datetime
    callback_id: str = ""
    retry: bool = False


def waits_of(execution: Execution) -> list[Wait]:
    """待っているものを、期限の早い順に返す。"""
    if execution.is_complete:
        return []
    found = []
    operations = {operation.operation_id: operation for operation in execution.operations}
    options = {update.operation_id: update.callback_options for update in execution.updates[::-1]}
    for key, operation in operations.items():
        name, started = label(operation, operations), operation.status is OperationStatus.STARTED
        step = operation.step_details
        if started and (wait := operation.wait_details) and wait.scheduled_end_timestamp:
            found.append(Wait(name, wait.scheduled_end_timestamp))
        elif step and step.next_attempt_timestamp and operation.status is OperationStatus.PENDING:
            found.append(Wait(name, step.next_attempt_timestamp, retry=True))
        elif started and (callback := operation.callback_details) and (limits := options[key]):
            begun = operation.start_timestamp or FOREVER
            seconds = filter(None, (limits.timeout_seconds, limits.heartbeat_timeout_seconds))
            first = min(seconds, default=0)  # 0 は、期限がないこと
            due = begun + timedelta(seconds=first) if first else FOREVER
            name = name.removesuffix("/create callback id")  # wait_for_callback
            found.append(Wait(name, due, callback.callback_id))
    return sorted(found, key=lambda wait: wait.due)
