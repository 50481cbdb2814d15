"""`python app.py` を SIGKILL で終了させては再開しても、請求も通知も結果も変わらないこと。

代表のほかは `-m sweep` で動く。
"""

import os
import pty
import signal

import pytest

from tests.support.flows import FLOWS, Flow
from tests.support.terminal import QUESTION, WAITING, Terminal, result_in

BETWEEN = "再試行します"
BY_TITLE = {flow.title: flow for flow in FLOWS}
KILLS = {  # 1 件の注文を終了させていく場所。before と after は、外部サービスの処理の前後
    "README の注文": [
        WAITING, BETWEEN, "before charge", "after charge", "before notice", "after notice"
    ],
    "応答はないが請求は成立": [
        "before charge", BETWEEN, "before cancellation", "after cancellation", "after notice"
    ],
    "承認された注文": [QUESTION, QUESTION, "after charge", "before notice"],
    "在庫が足りない注文": ["before notice", "after notice"],
    "却下された注文": [QUESTION, "before notice", "after notice"],
    "回答のない注文": [QUESTION, "before notice", "after notice"],
    "カードが拒否された注文": [WAITING, "before notice", "after notice"],
}  # fmt: skip
CASES = [
    pytest.param(BY_TITLE[title], KILLS[title], marks=[pytest.mark.sweep] if n > 1 else [])
    for n, title in enumerate(KILLS)
]


def live(terminal: Terminal, flow: Flow, kill: str) -> tuple[int, str]:
    """注文を始めるか再開する。kill で終了させ、空なら完了まで見て、終了コードと画面を返す。"""
    controller, keyboard = pty.openpty()
    if kill != QUESTION and flow.status != "APPROVAL_TIMED_OUT":
        os.write(controller, b"sato\nyes\n" if flow.status == "COMPLETED" else b"sato\nno\n")
    before_or_after = kill.startswith(("before", "after"))
    if before_or_after:
        when, kind = kill.split()
        terminal.services.kill(kind, when)
    freeze = "" if before_or_after else kill
    process = terminal.start(flow.order, stdin=keyboard, freeze=freeze)
    if freeze:
        process.kill()
    seen, _ = process.communicate(timeout=120)
    os.close(controller)
    os.close(keyboard)
    return process.returncode, seen


@pytest.mark.parametrize(("flow", "kills"), CASES, ids=KILLS)
def test_killed_and_run_again_the_order_ends_as_if_it_had_not_been(
    terminal: Terminal, flow: Flow, kills: list[str]
) -> None:
    terminal.services.lose_answers("order-123-payment", flow.lost)
    if flow.status == "APPROVAL_TIMED_OUT":
        terminal.edit("Duration.from_minutes(10)", "Duration.from_minutes(2)")
    for kill in kills:
        code, seen = live(terminal, flow, kill)
        assert code == -signal.SIGKILL, seen
    code, seen = live(terminal, flow, "")
    assert code == 0, seen

    result = result_in(seen)
    known = {"order_id": "order-123", "status": flow.status, "total": flow.total}
    assert known.items() <= result.items()
    charged = {"order-123-payment": flow.total} if flow.status == "COMPLETED" else {}
    assert terminal.services.done("charge") == charged
    assert terminal.services.done("notice") == {f"order-123-{flow.status}": result}
    assert list(terminal.orders.iterdir()) == []
    cut_off = sum(kill.startswith(("before", "after")) for kill in kills)
    assert f"秒でした（中断した {cut_off} 回は除く）\n" in seen
    for step in ("受け付けました", "在庫を確認しました", "承認を依頼しました"):
        assert step not in seen
