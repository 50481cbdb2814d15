"""`python app.py` を SIGKILL で終了させては再開しても、請求も通知も結果も変わらないこと。

代表のほかは `-m sweep` で動く。
"""

import os
import pty
import signal
import time
from pathlib import Path

import pytest

from tests.support.flows import FLOWS, Flow, order_of
from tests.support.terminal import Terminal, result_in

WAIT, BETWEEN, QUESTION, PAYING = "short_wait: あと", "再試行します", "承認者の名前", "paying"
BEFORE = {kind: f"before {kind}" for kind in ("charge", "cancellation", "notice")}
AFTER = {kind: f"after {kind}" for kind in ("charge", "cancellation", "notice")}
SLOW = order_of(simulate={"payment_timeouts": 0, "payment_seconds": 2})
KILLS = {  # 道筋ごとに、1 件の注文を終了させていく場所。最初の組が代表
    "README の注文": [
        [WAIT, AFTER["charge"], AFTER["notice"]], [BETWEEN], [WAIT], [BEFORE["charge"]],
        [AFTER["charge"]], [BEFORE["notice"]], [AFTER["notice"]], [WAIT, BETWEEN],
    ],
    "長い支払い": [[PAYING, PAYING, AFTER["notice"]], [PAYING]],
    "承認された注文": [
        [QUESTION, AFTER["charge"]], [QUESTION], [BETWEEN], [AFTER["notice"]],
        [QUESTION, BETWEEN, BEFORE["notice"]],
    ],
    "在庫が足りない注文": [
        [AFTER["notice"], BEFORE["notice"]], [BEFORE["notice"]], [AFTER["notice"]],
    ],
    "却下された注文": [[QUESTION, QUESTION, AFTER["notice"]], [QUESTION], [BEFORE["notice"]]],
    "回答のない注文": [[QUESTION, BEFORE["notice"]], [QUESTION], [AFTER["notice"]]],
    "カードが拒否された注文": [[WAIT, AFTER["notice"]], [BEFORE["notice"]], [AFTER["notice"]]],
    "応答はないが請求は成立": [
        [BETWEEN, AFTER["cancellation"], AFTER["notice"]], [BETWEEN], [AFTER["charge"]],
        [BEFORE["cancellation"]], [AFTER["cancellation"]], [BEFORE["notice"]], [AFTER["notice"]],
    ],
}  # fmt: skip
BY_TITLE = {flow.title: flow for flow in FLOWS}
BY_TITLE["長い支払い"] = Flow("長い支払い", "COMPLETED", SLOW, 6, 6, 2)
CASES = [
    pytest.param(
        BY_TITLE[title], kills, marks=[pytest.mark.sweep] if n else [], id=f"{title}-{kills}"
    )
    for title in KILLS
    for n, kills in enumerate(KILLS[title])
]


def live(terminal: Terminal, flow: Flow, kill: str | None) -> tuple[int, str]:
    """注文を始めるか再開する。kill で終了させ、なければ完了まで見て、終了コードと画面を返す。"""
    controller, keyboard = pty.openpty()
    answer = b"sato\nyes\n" if flow.status == "COMPLETED" else b"sato\nno\n"
    silent = kill == QUESTION or flow.status == "APPROVAL_TIMED_OUT"
    os.write(controller, b"" if silent else answer)
    for when, places in (("before", BEFORE), ("after", AFTER)):
        for kind in places:
            if kill == places[kind]:
                terminal.services.kill(kind, when)
    asked = len(terminal.services.asked("charge"))
    with terminal.start(flow.order, stdin=keyboard) as process:
        assert process.stdout
        screen, seen = process.stdout, ""
        for char in iter(lambda: screen.read(1), ""):
            seen += char
            if kill and (kill in seen or (kill == PAYING and "check_stock" in seen)):
                while kill == PAYING and len(terminal.services.asked("charge")) == asked:
                    time.sleep(0.01)
                process.kill()
                break
    os.close(controller)
    os.close(keyboard)
    return process.returncode, seen


def test_every_outcome_is_killed() -> None:
    assert {BY_TITLE[title].status for title in KILLS} == {flow.status for flow in FLOWS}


@pytest.mark.parametrize(("flow", "kills"), CASES)
def test_killed_and_run_again_the_order_ends_as_if_it_had_not_been(
    folder: Path, tmp_path: Path, flow: Flow, kills: list[str]
) -> None:
    books = tmp_path / "books"
    books.mkdir()
    terminal = Terminal(folder, books)
    terminal.services.lose_answers("order-123-payment", flow.lost)
    if flow.status == "APPROVAL_TIMED_OUT":
        terminal.edit("Duration.from_minutes(10)", "Duration.from_minutes(2)")
    for kill in kills:
        code, seen = live(terminal, flow, kill)
        assert code == -signal.SIGKILL, seen
    code, seen = live(terminal, flow, None)
    assert code == 0, seen

    result = result_in(seen)
    known = {"order_id": "order-123", "status": flow.status, "total": flow.total}
    assert known.items() <= result.items()
    charged = {"order-123-payment": flow.total} if flow.status == "COMPLETED" else {}
    assert terminal.services.done("charge") == charged
    assert terminal.services.done("notice") == {f"order-123-{flow.status}": result}
    assert list(terminal.orders.iterdir()) == []
    for step in ("受け付けました", "在庫を確認しました", "承認を頼みました"):
        assert step not in seen
