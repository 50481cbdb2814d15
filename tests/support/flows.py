"""注文の表: 結果ごとの経路と、それぞれのコストの下限。どのテストもベンチマークもこれを使う。"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from aws_durable_execution_sdk_python_testing.runner import DurableFunctionTestResult

from tests.local_run import README_ORDER


def order_of(price: int = 1000, quantity: int = 2, **extra: Any) -> dict[str, Any]:
    """在庫のある商品 1 件の注文（price は円）を作る。"""
    item = {"product_id": "prod-001", "price": price, "quantity": quantity}
    return {"order_id": "order-123", "items": [item], **extra}


OUT_OF_STOCK = order_of(quantity=5000)
TO_APPROVE = order_of(price=50_000)  # 承認が必要な 100,000 円
APPROVE = b'{"approved": true, "approver": "sato"}'
REJECT = b'{"approved": false, "approver": "sato", "reason": "over budget"}'
DECLINED = order_of(simulate={"card_declined": True})
ANSWERS = order_of(simulate={"payment_timeouts": 0})
LAST_TRY = order_of(price=1, quantity=1000, simulate={"payment_timeouts": 3})  # 在庫ちょうど
UNANSWERED = order_of(simulate={"payment_timeouts": 10})


class Flow(NamedTuple):
    """1 つの経路: 注文、承認者の回答、期待する結果と、そのコストの下限。"""

    title: str
    status: str
    order: dict[str, Any]
    calls: int  # チェックポイント API の呼び出し
    operations: int  # 課金される durable オペレーション
    invocations: int
    answer: bytes | None = None
    lost: str = ""  # 支払いの依頼ごとの結果（outside.py の lose_answers）

    @property
    def total(self) -> int:
        return sum(int(item["price"] * item["quantity"]) for item in self.order["items"])

    def expects(self, result: dict[str, Any], order_id: str = "order-123") -> bool:
        """result が、この経路の結果か。"""
        known = {"order_id": order_id, "status": self.status, "total": self.total}
        found = {"payment_id": result.get("payment_id")} if self.status == "COMPLETED" else {}
        short = {"products": ["prod-001"]} if self.status == "OUT_OF_STOCK" else {}
        answer = json.loads(self.answer or b"{}")
        return result == known | found | short | {k: answer[k] for k in answer if k != "approved"}


FLOWS = [
    Flow("README の注文", "COMPLETED", README_ORDER, 6, 7, 3),
    Flow("承認された注文", "COMPLETED", TO_APPROVE, 7, 8, 3, APPROVE),
    Flow("4 回目の試行で成功", "COMPLETED", LAST_TRY, 8, 9, 5),
    Flow("在庫が足りない注文", "OUT_OF_STOCK", OUT_OF_STOCK, 3, 4, 1),
    Flow("却下された注文", "REJECTED", TO_APPROVE, 5, 6, 2, REJECT),
    Flow("回答のない注文", "APPROVAL_TIMED_OUT", TO_APPROVE, 5, 6, 2),
    Flow("カードが拒否された注文", "PAYMENT_DECLINED", DECLINED, 5, 6, 2),
    Flow("応答のない支払い", "PAYMENT_FAILED", UNANSWERED, 9, 10, 5),
    Flow("応答はないが請求は成立", "PAYMENT_FAILED", ANSWERS, 9, 10, 5, lost="LNLLLLLLL"),
]
RunOrder = Callable[..., DurableFunctionTestResult]


def outcome(result: DurableFunctionTestResult) -> dict[str, Any]:
    """成功した実行の結果を読む。"""
    assert result.error is None
    return dict(json.loads(str(result.result)))
