"""注文 1 件の、ディスク上の記録。1 つのプロセスだけが開き、破損した記録からは再開しない。"""

import contextlib
import fcntl
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from aws_durable_execution_sdk_python_testing.stores.sqlite import SQLiteExecutionStore

from .runner import OrderClock
from .screen import stop

MARK = b"ordr"  # このデモの記録の印（SQLite の application_id）。ファイルの 68 バイト目から入る
SCHEMA = f"""
    PRAGMA application_id = {int.from_bytes(MARK)};
    CREATE TABLE invocations (began REAL, ended REAL);
"""


class UnusableOrderError(Exception):
    """注文を開始も再開もできない。メッセージで対処方法を示す。"""


class OrderStore(SQLiteExecutionStore):
    """ランナーのストアに、排他、呼び出しの記録、注文の時計を加える。

    記録の隣のファイルをロックする。記録そのものをロックすると、macOS では SQLite のロックと
    衝突する。上書きする _connection と、使う _init_db は、ランナーの非公開 API。
    """

    def __init__(self, path: Path, speed: float) -> None:
        """記録を開くか、作る。途中で強制終了しても、作りかけの記録は残らない。"""
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
        """ランナーの設定とは違い、電源が落ちても最後の書き込みを失わない。

        注文を始めてからここで失敗すれば、どのスレッドも、記録できないまま処理を進めない。
        """
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
        return [
            (datetime.fromtimestamp(began, UTC), ended and datetime.fromtimestamp(ended, UTC))
            for began, ended in rows
        ]


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
    return (
        f"{file} を使えません（{why}）。"
        "ディスクの空きと権限を確認するか、別の場所に移動して、もう一度実行してください"
    )
