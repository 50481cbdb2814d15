"""公式ローカルランナーで処理した、注文の結果と、記録に残るもの。"""

import json
import math
from typing import Any

import pytest
from aws_durable_execution_sdk_python.config import Duration
from aws_durable_execution_sdk_python.lambda_service import ErrorObject
from aws_durable_execution_sdk_python_testing.runner import DurableFunctionTestResult

import app
import deploy
from tests.local_run.runner import LocalRunner
from tests.support.flows import APPROVE, FLOWS, TO_APPROVE, Flow, RunOrder, order_of, outcome
from tests.support.outside import OutsideServices

STEPS = {
    "README の注文": "accept_order check_stock short_wait pay notify",
    "承認された注文": "accept_order check_stock approval ask_approver pay notify",
    "応答のない支払い": "accept_order check_stock short_wait pay cancel_payment notify",
}
ASKED = dict.fromkeys(["README の注文", "承認された注文", "4 回目の試行で成功"], 1)
ASKED |= {"応答はないが請求は成立": 4}  # ほかは、simulate が依頼の前に失敗させる


def step_names(result: DurableFunctionTestResult) -> list[str | None]:
    return [operation.name for operation in result.operations]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.title)
def test_each_flow_ends_as_listed_with_one_notification(
    run_order: RunOrder, services: OutsideServices, monkeypatch: pytest.MonkeyPatch, flow: Flow
) -> None:
    if flow.status == "APPROVAL_TIMED_OUT":
        monkeypatch.setattr(app, "APPROVAL_TIMEOUT", Duration.from_seconds(1))
    for error in (app.CardDeclinedError, app.NoAnswerError):  # ファイル名が app.py でなくても同じ
        monkeypatch.setattr(error, "__module__", "lambda_function")
    services.lose_answers("order-123-payment", flow.lost)
    result = run_order(flow.order, flow.answer)

    assert flow.expects(outcome(result))
    assert flow.title not in STEPS or step_names(result) == STEPS[flow.title].split()
    charges = {"order-123-payment": flow.total} if flow.status == "COMPLETED" else {}
    assert services.done("charge") == charges
    assert services.asked("charge") == ["order-123-payment"] * ASKED.get(flow.title, 0)
    assert services.asked("notice") == [f"order-123-{flow.status}"]
    assert services.done("notice") == {f"order-123-{flow.status}": outcome(result)}


MANY = [{"product_id": f"{n:064}", "price": 1, "quantity": 1} for n in range(20_000)]


@pytest.mark.parametrize(
    ("items", "products"),
    [
        (order_of(quantity=600)["items"] * 2, ["prod-001"]),  # 同じ商品の明細は合計する
        ([{"product_id": "unknown", "price": 0, "quantity": 1}], ["unknown"]),
        (MANY, [f"{n:064}" for n in range(10)]),  # 結果の上限 256 KB を超えないように、10 件まで
    ],
)
def test_shortage_names_the_products(run_order: RunOrder, items: Any, products: Any) -> None:
    result = outcome(run_order(order_of(items=items)))
    assert (result["status"], result["products"]) == ("OUT_OF_STOCK", products)


def orders(key: str, *values: Any) -> list[Any]:
    """README の注文の key か、simulate の key だけを、それぞれの値に変えた注文。"""
    if key.startswith(("payment_", "card_")):
        key, values = "simulate", tuple({key: value} for value in values)
    return [order_of(**{key: value}) for value in values]


BAD_ORDERS: dict[str, list[Any]] = {
    "注文": [[], "order-123", None, math.nan],
    "order_id": [{}, *orders("order_id", "", "a" * 65, "a/b", "a\n", "あ", 7)],
    "items": orders("items", [], {}, None, "x"),
    "items[0]": orders("items", ["prod-001"], [None]),
    "items[0].product_id": orders("items", [{}], [{"product_id": "謎"}]),
    "items[0].price": orders("price", -1, 1.0, "1", True, math.nan, 10**9),
    "items[0].quantity": orders("quantity", 0, 1.5, "1", True, 10**9, 10**4000),
    "items[1].price": orders("items", [*order_of()["items"], {"product_id": "p"}]),
    "simulate": orders("simulate", [], None, "x"),
    "simulate.payment_timeouts": orders("payment_timeouts", -1, 21, 1.0, "1"),
    "simulate.card_declined": orders("card_declined", "true", None),
    "simulate のキー 'payment_timeout'": orders("payment_timeout", 4),
}


@pytest.mark.parametrize(
    ("field", "order"), [(field, order) for field in BAD_ORDERS for order in BAD_ORDERS[field]]
)
def test_bad_order_fails_at_once_and_names_the_field(
    run_order: RunOrder, field: str, order: Any
) -> None:
    result = run_order(order)
    error = result.error or ErrorObject(None, None, None, None)
    assert (error.type, step_names(result)) == ("app.InvalidOrderError", [])
    assert str(error.message).startswith(f"{field}: ")


def test_largest_values_are_accepted() -> None:
    most, simulate = 10**9 - 1, {"payment_timeouts": 20, "payment_seconds": 20}
    app.validate(order_of(most, most, order_id="-_" * 32, simulate=simulate))


NO_YES = [b"{}", b'{"approved": "true"}', b'{"approved": 1, "reason": 5, "approver": []}']
NO_OBJECT = [b"", b"true", b'[{"approved": true}]', b'{"approved": true', b"[" * 100_000]
NO_JSON = [b'{"approved": true, "x": NaN}', b'{"approved": true, "x": [-Infinity]}']
NOT_READ = "回答が JSON オブジェクトではありません"
DOWN = ErrorObject(message="承認システム停止", type="Down", data=None, stack_trace=None)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        *((answer, "承認されませんでした") for answer in NO_YES),
        *((answer, NOT_READ) for answer in NO_OBJECT + NO_JSON),
        (DOWN, "承認システム停止"),
    ],
)
def test_anything_but_an_explicit_yes_rejects_with_a_reason(
    runner: LocalRunner, services: OutsideServices, answer: Any, reason: str
) -> None:
    arn = runner.run_async(input=json.dumps(TO_APPROVE))
    send = runner.send_callback_failure if answer is DOWN else runner.send_callback_success
    send(runner.wait_for_callback(arn), answer)

    rejected = {"order_id": "order-123", "status": "REJECTED", "total": 100_000, "reason": reason}
    assert outcome(runner.wait_for_result(arn)) == rejected
    assert services.asked("charge") == []
    assert services.asked("notice") == ["order-123-REJECTED"]


def test_approval_is_needed_from_the_threshold_on(run_order: RunOrder) -> None:
    assert "short_wait" in step_names(run_order(order_of(99_999, 1)))
    assert "approval" in step_names(run_order(order_of(100_000, 1), APPROVE))


def test_retry_backs_off_with_jitter_up_to_a_cap() -> None:
    strategy, longest = app.STEP.retry_strategy, {}
    assert strategy
    for attempt in (1, 2, 3):
        delays = {strategy(app.NoAnswerError(), attempt).delay_seconds for _ in range(300)}
        longest[attempt] = (len(delays) > 1, max(delays))
    assert longest == {1: (True, 2), 2: (True, 4), 3: (True, 5)}
    assert not strategy(app.NoAnswerError(), 4).should_retry
    assert not strategy(app.CardDeclinedError(), 1).should_retry


def test_longest_way_fits_the_execution_timeout() -> None:
    waits = app.RETRY.max_attempts - 1
    slowest_step = deploy.SETTINGS["Timeout"] * (waits + 1) + app.RETRY.max_delay_seconds * waits
    asked_outside = ["ask_approver", "pay", "cancel_payment", "notify"]
    longest = app.APPROVAL_TIMEOUT.to_seconds() + len(asked_outside) * slowest_step
    assert longest < app.EXECUTION_TIMEOUT.to_seconds()
