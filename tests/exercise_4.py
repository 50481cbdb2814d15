"""演習 4「ステップを 1 つ書く」の採点。お客様が困ることを、1 文で示す。"""

import pytest

import app
from tests.support.client import restart_at_once
from tests.support.flows import ANSWERS as ORDER
from tests.support.flows import APPROVE, TO_APPROVE, RunOrder, outcome
from tests.support.outside import OutsideServices
from tests.test_promises import broken


@pytest.fixture(autouse=True)
def stub_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(app, "request_shipment"):
        broken("app.py に request_shipment がありません。演習のスタブを貼り付けてください。")
    restart_at_once(monkeypatch)


def test_paid_order_is_shipped_and_unpaid_is_not(
    run_order: RunOrder, services: OutsideServices
) -> None:
    services.lose_answers("charge", "D")
    run_order(ORDER)
    if services.asked("shipment"):
        broken("カードが拒否されたのに、商品が発送されました。")
    results = [run_order(ORDER | {"order_id": "order-2"})]
    results.append(run_order(TO_APPROVE | {"order_id": "order-3"}, APPROVE))
    if error := results[0].error:
        broken(f"注文が失敗しました: {error.type}: {error.message}")
    if sorted(services.done("shipment").values()) != ["order-2", "order-3"]:
        broken("代金を支払ったお客様に、商品が発送されません。")
    if [outcome(result).get("shipment_id") for result in results].count(None):
        broken("結果に shipment_id がないので、お客様は荷物を追跡できません。")


CAUSES = {"L": "応答が 1 回失われただけで、", "C": "呼び出しが 1 回異常終了しただけで、"}


@pytest.mark.parametrize("fate", CAUSES)
def test_goods_are_shipped_once(run_order: RunOrder, services: OutsideServices, fate: str) -> None:
    cause = CAUSES[fate]
    services.lose_answers("shipment", fate)
    result = run_order(ORDER)
    if len(services.done("shipment")) > 1:
        broken(f"{cause}同じ商品が {len(services.done('shipment'))} 回発送されました。")
    if result.error is not None or list(services.done("notice")) != ["order-123-COMPLETED"]:
        broken(f"{cause}代金を支払ったお客様に、注文の完了が通知されません。")


def test_refused_shipment_is_paid_back(run_order: RunOrder, services: OutsideServices) -> None:
    services.lose_answers("shipment", "DDDD")
    services.lose_answers("cancellation", "N")
    result = run_order(ORDER)
    told = [key.removeprefix("order-123-") for key in services.asked("notice")]
    if len(services.asked("shipment")) > 1:
        broken("断られた発送を、もう一度依頼しました。")
    if charged := sum(services.done("charge").values()):
        broken(f"発送を断られたのに、お客様のカードには {charged:,} 円が請求されたままです。")
    if told != ["SHIPMENT_FAILED"] or outcome(result)["status"] != "SHIPMENT_FAILED":
        broken(f"発送を断られたお客様に通知したのは、SHIPMENT_FAILED ではなく {told} です。")
