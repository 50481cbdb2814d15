"""`python app.py` を SIGKILL で終了させては再開しても、請求も通知も結果も変わらないこと。"""

import signal

import pytest

from tests.support.flows import FLOWS
from tests.support.terminal import QUESTION, WAITING, Terminal, result_in

BETWEEN = "再試行します"
KILLS = {  # 1 件の注文を終了させていく場所。before と after は、外部サービスの処理の前後
    "README の注文": [
        WAITING, BETWEEN, "before charge", "after charge", "before notice", "after notice"
    ],
    "応答はないが請求は成立": [
        "before charge", BETWEEN, "before cancellation", "after cancellation", "after notice"
    ],
    "承認された注文": [QUESTION, QUESTION, "after charge", "before notice"],
}  # fmt: skip


@pytest.mark.parametrize("title", KILLS)
def test_killed_and_run_again_the_order_ends_the_same(terminal: Terminal, title: str) -> None:
    flow = next(flow for flow in FLOWS if flow.title == title)
    terminal.services.lose_answers("order-123-payment", flow.lost)
    for kill in KILLS[title]:
        if kill.startswith(("before", "after")):
            when, kind = kill.split()
            terminal.services.kill(kind, when)
            code, seen, _ = terminal.run(flow.order, stdin="sato\nyes\n")
        else:
            code, seen = terminal.stop_at(kill, signal.SIGKILL, flow.order)
        assert code == -signal.SIGKILL, seen
    code, seen, _ = terminal.run(flow.order)
    assert code == 0, seen

    result = result_in(seen)
    known = {"order_id": "order-123", "status": flow.status, "total": flow.total}
    assert known.items() <= result.items()
    charged = {"order-123-payment": flow.total} if flow.status == "COMPLETED" else {}
    assert terminal.services.done("charge") == charged
    assert terminal.services.done("notice") == {f"order-123-{flow.status}": result}
    assert list(terminal.orders.iterdir()) == []
    cut_off = sum(kill.startswith(("before", "after")) for kill in KILLS[title])
    assert f"秒でした（中断した {cut_off} 回は除く）\n" in seen
    for step in ("受け付けました", "在庫を確認しました", "承認を依頼しました"):
        assert step not in seen
