"""外の世界の代役。帳簿はファイルなので、プロセスが死んでも残る。フォルダーは環境変数 OUTSIDE。

手元の AWS へは、app.py と並べてデプロイする。`python -m tests.outside [注文]` は、待ち時間の短い
`python app.py [注文]` になる。承認は環境変数 APPROVAL_SECONDS の秒数だけ待つ。
simulate の lost_answers は、請求を済ませてから答えを失う回数。
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

from aws_durable_execution_sdk_python.config import Duration

import app

BOOKS = Path(os.environ["OUTSIDE"])
real_charge_card = app.charge_card


def charge_card(idempotency_key: str, amount: int, simulate: dict[str, Any], attempt: int) -> str:
    asked("charge", idempotency_key)
    payment_id = real_charge_card(idempotency_key, amount, simulate, attempt)
    strike("charge", "before")
    assert not (BOOKS / f"cancellation-{idempotency_key}").exists(), "charge after cancellation"
    record("charge", idempotency_key, amount)
    strike("charge", "after")
    if attempt <= simulate.get("lost_answers", 0):
        raise app.NoAnswerError("請求の答えが届かない")
    return payment_id


def cancel_charge(idempotency_key: str) -> None:
    asked("cancellation", idempotency_key)
    strike("cancellation", "before")
    record("cancellation", idempotency_key, True)
    (BOOKS / f"charge-{idempotency_key}").unlink(missing_ok=True)
    strike("cancellation", "after")


def send_notification(idempotency_key: str, result: dict[str, Any]) -> None:
    asked("notice", idempotency_key)
    strike("notice", "before")
    record("notice", idempotency_key, result)
    strike("notice", "after")


def asked(kind: str, key: str) -> None:
    """頼まれるたびに書く。"""
    with open(BOOKS / f"{kind}-asked", "a") as book:
        book.write(f"{key}\n")


def record(kind: str, key: str, value: object) -> None:
    """冪等キーごとに一度だけ書く。同じキーで中身が違えば断る。"""
    text = json.dumps(value)
    try:
        with open(BOOKS / f"{kind}-{key}", "x") as book:
            book.write(text)
    except FileExistsError:
        assert (BOOKS / f"{kind}-{key}").read_text() == text, "same key, another value"


def strike(kind: str, when: str) -> None:
    """kind-when-kills というファイルがあれば、それを消し、このプロセスを殺す。"""
    try:
        (BOOKS / f"{kind}-{when}-kills").unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


app.charge_card, app.cancel_charge = charge_card, cancel_charge
app.send_notification = send_notification
handler = app.handler


if __name__ == "__main__":
    from tests.local_run import main

    app.SHORT_WAIT = Duration.from_seconds(2)
    app.APPROVAL_TIMEOUT = Duration.from_seconds(int(os.environ["APPROVAL_SECONDS"]))
    app.RETRY.max_delay = Duration.from_seconds(1)
    main()
