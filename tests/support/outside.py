"""外部サービス（決済と通知）のスタブ。べき等性キーで重複を検出し、応答を失わせ、強制終了させる。

依頼はフォルダーに記録するので、強制終了されても残る。環境変数 BOOKS があれば、そのフォルダーで
app.py の外部サービスを置き換える（ローカル AWS へは、app.py と並べてデプロイする）。
`python -m tests.support.outside [注文]` は、5 倍速の `python app.py [注文]` になる。
時計は環境変数 SPEED 倍で、LATER の秒数だけ進んだ状態で始まる。FREEZE の言葉を表示した所で、
SIGCONT が届くまで止まり、その間に JUMP の秒数が過ぎる。
"""

import json
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aws_durable_execution_sdk_python.exceptions import RetryableSerDesError

import app


class OutsideServices:
    """kind は charge（請求）、cancellation（取り消し）、notice（通知）。"""

    def __init__(self, books: Path) -> None:
        self.books = books
        self.stub = app.charge_card

    def replace(self, setattr: Callable[[Any, str, Any], None]) -> None:
        """app.py の外部サービスを、これに置き換える。"""
        for name in ("charge_card", "cancel_charge", "send_notification", "request_shipment"):
            if hasattr(app, name):  # request_shipment は、演習 4 で書き加えたもの
                setattr(app, name, getattr(self, name))

    def charge_card(self, key: str, amount: int) -> str:
        with self._asked("charge", key, key):
            if (self.books / f"done-cancellation-{key}").exists():
                raise RuntimeError("取り消したキーの請求を拒否しました")
            self._record("charge", key, amount)
        return self.stub(key, amount)

    def cancel_charge(self, key: str) -> None:
        with self._asked("cancellation", key, f"{key}-cancellation"):
            self._record("cancellation", key, True)
            (self.books / f"done-charge-{key}").unlink(missing_ok=True)

    def send_notification(self, key: str, result: dict[str, Any]) -> None:
        with self._asked("notice", key, f"{result['order_id']}-notice"):
            self._record("notice", key, result)

    def request_shipment(self, key: str, order_id: str) -> str:
        with self._asked("shipment", key, f"{order_id}-shipment"):
            self._record("shipment", key, order_id)
        return f"ship-{order_id}"

    def lose_answers(self, name: str, fates: str) -> None:
        """依頼 name の 1 回目からの結果を、1 文字ずつ指定する。その先は応答する。

        name は、charge、cancellation、notice、shipment か、1 件の注文の依頼（_asked の name）。
        A: 処理して応答する。L: 処理するが、応答が失われる。N: 依頼が届かない。D: 拒否する。
        C: 処理した後、ステップの結果を記録する前に、呼び出しが異常終了する。
        """
        (self.books / f"fates-{name}").write_text(fates)

    def kill(self, kind: str, when: str) -> None:
        """次の処理の直前（before）か直後（after）に、1 度だけプロセスを強制終了させる。"""
        (self.books / f"kill-{when}-{kind}").touch()

    def done(self, kind: str) -> dict[str, Any]:
        """処理したことを、べき等性キーごとに返す。"""
        start = f"done-{kind}-"
        found = self.books.glob(f"{start}*")
        return {file.name.removeprefix(start): json.loads(file.read_text()) for file in found}

    def asked(self, kind: str) -> list[str]:
        """依頼されたべき等性キーを、依頼された順に返す。"""
        log = self.books / f"asked-{kind}"
        return log.read_text().split() if log.exists() else []

    @contextmanager
    def _asked(self, kind: str, key: str, name: str) -> Iterator[None]:
        with open(self.books / f"asked-{kind}", "a") as log:
            log.write(f"{key}\n")
        fate, asked = "", self.asked(kind)
        for label, turn in ((kind, len(asked)), (name, asked.count(key))):
            if (fates := self.books / f"fates-{label}").exists():
                fate = fates.read_text()[turn - 1 : turn]
        self._die_if_told(kind, "before")
        if fate == "D":
            refusal = "CardDeclinedError" if kind == "charge" else "ShipmentRefusedError"
            raise getattr(app, refusal)(f"{name} を拒否する")
        if fate == "N":
            raise app.NoAnswerError(f"{name} の依頼が届かない")
        yield
        self._die_if_told(kind, "after")
        if fate == "L":
            raise app.NoAnswerError(f"{name} の応答が届かない")
        if fate == "C":  # SDK は、この例外をステップの失敗として記録せず、呼び出しを失敗させる
            raise RetryableSerDesError("呼び出しが異常終了しました")

    def _record(self, kind: str, key: str, value: object) -> None:
        """べき等性キーごとに 1 度だけ書く。同じキーで内容が違えば拒否する。"""
        book, draft = self.books / f"done-{kind}-{key}", self.books / f"draft-{uuid.uuid4()}"
        draft.write_text(json.dumps(value))
        try:
            os.link(draft, book)  # 途中で終了しても、書きかけは残らない
        except FileExistsError:
            if book.read_text() != draft.read_text():
                raise RuntimeError("同じべき等性キーで内容の違う依頼を拒否しました") from None
        draft.unlink()

    def _die_if_told(self, kind: str, when: str) -> None:
        if (order := self.books / f"kill-{when}-{kind}").exists():
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


if books := os.environ.get("BOOKS"):
    OutsideServices(Path(books)).replace(setattr)
handler = app.handler


if __name__ == "__main__":
    import threading
    from datetime import datetime, timedelta
    from unittest import mock

    from tests.local_run import record, screen
    from tests.local_run.order import process
    from tests.local_run.runner import OrderClock as Clock

    screen.prepare()
    later, freeze, jump = map(os.environ.get, ("LATER", "FREEZE", "JUMP"))
    clocks: list[Clock] = []

    def start(speed: float, last: datetime | None) -> Clock:
        clocks.append(Clock(speed, Clock(speed, last).now() + timedelta(seconds=float(later or 0))))
        return clocks[-1]

    def show(text: str, **options: Any) -> None:
        print(text, **options)
        if freeze and freeze in text:
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # 次の行の前に止まる
            if jump:  # 止まっている間に、この秒数が過ぎた
                os.environ.update(LATER=jump, FREEZE="")
                clocks[-1]._wall -= timedelta(seconds=float(jump))

    with (
        mock.patch.object(record, "OrderClock", start),
        mock.patch.object(screen, "print", show, create=True),
    ):
        process(app, sys.argv[1:], float(os.environ.get("SPEED", "5")))
