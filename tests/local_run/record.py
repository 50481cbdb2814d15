"""注文 1 件の、ディスク上の記録。1 つのプロセスだけが開き、傷んだ記録からは再開しない。"""

import contextlib
import fcntl
import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from aws_durable_execution_sdk_python_testing.execution import Execution
from aws_durable_execution_sdk_python_testing.stores.sqlite import SQLiteExecutionStore

from .runner import OrderClock
from .screen import stop

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS invocations (began REAL, ended REAL)",
    "CREATE TABLE IF NOT EXISTS seal (sha256 TEXT, time REAL)",
)
GONE = "注文の記録が、処理の途中で削除されたか壊れました。もう一度実行してください。"


class UnusableOrderError(Exception):
    """注文を開始も再開もできない。メッセージで対処方法を示す。"""


class OrderStore(SQLiteExecutionStore):
    """ランナーのストアに、排他、傷んだ記録の検出、呼び出しの記録、注文の時計を加える。

    上書きする _connection と、使う _get_connection、_init_db は、ランナーの非公開 API。
    """

    def __init__(self, path: Path, claim: "Claim", speed: float) -> None:
        """記録を開く。書き込めないか傷んでいれば、sqlite3.Error か ValueError。"""
        super().__init__(path)
        self.claim = claim
        self.lock = threading.RLock()
        self.database: sqlite3.Connection | None = None  # 開いている接続
        self.opened = False
        with self._connection() as database:
            self._init_db()
            for table in SCHEMA:
                database.execute(table)
            if database.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                raise ValueError("integrity_check")
            arn = database.execute("SELECT durable_execution_arn FROM executions").fetchone()
            seal, time = database.execute("SELECT sha256, time FROM seal").fetchone() or ("", 0)
            if (arn or seal) and seal != self._digest(database):
                raise ValueError("sha256")
            self.recorded = self.load(*arn) if arn else None
        self.last_time = datetime.fromtimestamp(time, UTC)
        self.clock = OrderClock(speed, self.last_time)  # 壁時計が戻されていても、記録の続きから
        self.opened = True

    @staticmethod
    def _digest(database: sqlite3.Connection) -> str:
        """すべての記録の SHA-256。"""
        parts = "data FROM executions", "began, ended FROM invocations", "time FROM seal"
        rows = [database.execute(f"SELECT {part}").fetchall() for part in parts]
        return hashlib.sha256(repr(rows).encode()).hexdigest()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """入れ子なら、外側と同じトランザクションを使う。

        ランナーの設定とは違い、電源が落ちても最後の書き込みを失わない。注文を始めてからここで
        失敗すれば、どのスレッドも、記録できないまま処理を進めない。
        """
        with self.lock:
            if self.database:
                yield self.database
                return
            try:
                if self.opened and not self.claim.is_held():
                    stop(GONE, 1)
                with contextlib.closing(self._get_connection()) as self.database, self.database:
                    self.database.execute("PRAGMA synchronous=FULL")
                    yield self.database
            except (sqlite3.Error, RuntimeError) as error:  # ランナーは RuntimeError で包む
                if self.opened:
                    stop(
                        f"{unwritable(self.db_path, error)}。" if is_unwritable(error) else GONE, 1
                    )
                raise
            finally:
                self.database = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, float]]:
        """書き込むための接続と現在の時刻（UNIX 時刻）を渡し、書き込みの後で封をする。"""
        with self._connection() as database:
            now = self.clock.now().timestamp()
            yield database, now
            database.execute("DELETE FROM seal")
            database.execute("INSERT INTO seal VALUES (NULL, ?)", [now])
            database.execute("UPDATE seal SET sha256 = ?", [self._digest(database)])

    def save(self, execution: Execution) -> None:
        with self._writing():
            super().save(execution)

    def delete(self) -> None:
        """記録のファイルだけを削除する。"""
        self.lock.acquire()  # ロックは解放しない。ランナーは、注文の完了後にも書き込もうとする
        for ending in ("", "-wal", "-shm"):
            self.db_path.with_name(self.db_path.name + ending).unlink(missing_ok=True)
        self.claim.path.unlink(missing_ok=True)

    def began(self) -> int:
        """呼び出しの開始を記録し、何回目かを返す。"""
        with self._writing() as (database, now):
            insert = database.execute("INSERT INTO invocations VALUES (?, NULL)", [now])
            return int(insert.lastrowid or 0)

    def ended(self) -> None:
        last = "rowid = (SELECT max(rowid) FROM invocations)"
        with self._writing() as (database, now):
            database.execute(f"UPDATE invocations SET ended = ? WHERE {last}", [now])

    def invocations(self) -> list[tuple[datetime, datetime | None]]:
        """呼び出しの開始と終了。中断した呼び出しには、終了がない。"""
        with self._connection() as database:
            rows = database.execute("SELECT began, ended FROM invocations").fetchall()
        return [
            (datetime.fromtimestamp(began, UTC), ended and datetime.fromtimestamp(ended, UTC))
            for began, ended in rows
        ]


class Claim:
    """記録の隣のファイルのロック。持っている間、ほかのプロセスはこの注文を処理できない。

    記録そのものはロックしない。macOS では、SQLite のロックと衝突する。
    """

    def __init__(self, path: Path) -> None:
        """ロックする。ほかのプロセスが使用中なら BlockingIOError、書き込めなければ OSError。"""
        self.path = path
        while True:
            self.file = path.open("ab")
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self.is_held():
                return  # 一致しなければ、開いた直後に、注文の完了で削除された

    def is_held(self) -> bool:
        """ロックしたファイルが、まだその場所にあるか。"""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        return False


def open_record(path: Path, speed: float) -> OrderStore:
    """注文の記録を排他的に開く。開けなければ UnusableOrderError。"""
    name = f"{path.parent.name}/{path.name}"
    try:
        path.parent.mkdir(exist_ok=True)
        return OrderStore(path, Claim(path.with_suffix(".lock")), speed)
    except BlockingIOError as error:
        raise UnusableOrderError(
            f"注文 {path.stem} は別のプロセスで処理中です。完了を待つか、order_id を変えてください"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) or is_unwritable(error):
            raise UnusableOrderError(unwritable(path, error)) from error
        # 傷んだ記録を読めば、ランナーのどこからどんな例外が来ることもある
        raise UnusableOrderError(
            f"{name} を注文の記録として読み取れません。別の場所に移動して、もう一度実行してください"
        ) from error


UNWRITABLE = ("FULL", "IOERR", "READONLY", "CANTOPEN", "BUSY", "PERM", "NOMEM")


def is_unwritable(error: BaseException | None) -> bool:
    """ディスクか権限が原因か。ランナーは sqlite3.Error を RuntimeError で包む。"""
    name = getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_")
    return name.startswith(UNWRITABLE) or bool(error and is_unwritable(error.__cause__))


def unwritable(path: Path, error: Exception) -> str:
    why = getattr(error, "strerror", None) or error.__cause__ or error
    return (
        f"{path.parent.name}/{path.name} に書き込めません（{why}）。"
        "ディスクの空きと権限を確認して、もう一度実行してください"
    )
