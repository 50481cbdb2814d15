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
    services.lose_answers("order-123-payment", flow.lost)
    result = run_order(flow.order, flow.answer)

    assert flow.expects(outcome(result))
    if flow.title in STEPS:
        assert step_names(result) == STEPS[flow.title].split()
    charges = {"order-123-payment": flow.total} if flow.status == "COMPLETED" else {}
    assert services.done("charge") == charges
    assert services.asked("charge") == ["order-123-payment"] * ASKED.get(flow.title, 0)
    assert services.asked("notice") == [f"order-123-{flow.status}"]
    assert services.done("notice") == {f"order-123-{flow.status}": outcome(result)}


@pytest.mark.parametrize(
    ("items", "products"),
    [
        (order_of(quantity=600)["items"] * 2, ["prod-001"]),  # 同じ商品の明細は合計する
        ([{"product_id": "unknown", "price": 0, "quantity": 1}], ["unknown"]),
        # 結果の上限 256 KB を超えないように、10 件まで
        (
            [{"product_id": f"{n:064}", "price": 1, "quantity": 1} for n in range(20_000)],
            [f"{n:064}" for n in range(10)],
        ),
    ],
)
def test_shortage_names_the_products(
    run_order: RunOrder, items: list[Any], products: list[str]
) -> None:
    result = outcome(run_order({"order_id": "order-1", "items": items}))
    assert (result["status"], result["products"]) == ("OUT_OF_STOCK", products)


def test_outcomes_do_not_depend_on_the_name_of_the_file(
    run_order: RunOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (app.CardDeclinedError, app.NoAnswerError):
        monkeypatch.setattr(error, "__module__", "lambda_function")
    for simulate, status in (
        ({"card_declined": True}, "PAYMENT_DECLINED"),
        ({"payment_timeouts": 4}, "PAYMENT_FAILED"),
    ):
        order = order_of(simulate=simulate) | {"order_id": status}
        assert outcome(run_order(order))["status"] == status


BAD_VALUES: dict[str, list[Any]] = {
    "注文": [[], "order-123", None, 5, math.nan],
    "order_id": [..., "", "a" * 65, "a/b", "a\n", "あ", 7, None],
    "items": [..., [], {}, None, "x"],
    "items[0]": ["prod-001", None, []],
    "items[0].product_id": [..., "", "a" * 65, "謎", 1, None],
    "items[0].price": [..., -1, 1.0, "1", True, None, math.nan, 10**9],
    "items[0].quantity": [..., 0, -1, 1.5, "1", True, None, math.nan, 10**9, 10**4000],
    "simulate": [[], None, "x", True],
    "simulate.payment_timeouts": [-1, 21, 1.0, "1", None],
    "simulate.card_declined": ["true", None],
    "simulate.payment_timeout": [4],
}


def order_with(field: str, value: Any) -> Any:
    """README の注文の field を value に変える。... なら取り除く。"""
    order = order_of(simulate={"payment_timeouts": 1})
    parent, _, key = field.rpartition(".")
    target = {"": order, "items[0]": order["items"][0], "simulate": order["simulate"]}[parent]
    if field == "注文":
        return value
    if field == "items[0]":
        order["items"][0] = value
    elif value is ...:
        del target[key]
    else:
        target[key] = value
    return order


BAD_ORDERS = [
    *[(field, order_with(field, value)) for field in BAD_VALUES for value in BAD_VALUES[field]],
    ("items[1].price", {**order_of(), "items": order_of()["items"] + [{"product_id": "p"}]}),
]


@pytest.mark.parametrize(("field", "order"), BAD_ORDERS)
def test_bad_order_fails_at_once_and_names_the_field(
    run_order: RunOrder, field: str, order: Any
) -> None:
    result = run_order(order)

    assert result.error is not None
    assert result.error.type == "app.InvalidOrderError"
    if field == "simulate.payment_timeout":  # 知らないキーは、キーとして示す
        field = "simulate のキー 'payment_timeout'"
    assert str(result.error.message).startswith(f"{field}: ")
    assert step_names(result) == []


def test_largest_values_are_accepted() -> None:
    line = {"product_id": "a" * 64, "price": 10**9 - 1, "quantity": 10**9 - 1}
    simulate = {"payment_timeouts": 20, "payment_seconds": 20}
    app.validate({"order_id": "-_" * 32, "items": [line], "simulate": simulate})


@pytest.mark.parametrize(
    "answer",
    [
        b"{}",
        b'{"approved": "true"}',
        b'{"approved": 1}',
        b'{"approved": null, "reason": 5, "approver": []}',
        b"true",
        b'[{"approved": true}]',
        b"",
        b'{"approved": true',
        b"[" * 100_000,
        b'{"approved": true, "x": NaN}',
        b'{"approved": true, "x": [-Infinity]}',
    ],
)
def test_anything_but_an_explicit_yes_rejects_with_a_reason(
    run_order: RunOrder, services: OutsideServices, answer: bytes
) -> None:
    result = outcome(run_order(TO_APPROVE, answer))
    assert result["status"] == "REJECTED"
    assert result.keys() == {"order_id", "status", "total", "reason"}
    assert result["reason"].endswith(("承認されませんでした", "JSON オブジェクトではありません"))
    assert services.asked("charge") == []
    assert services.asked("notice") == ["order-123-REJECTED"]


def test_approval_is_needed_from_the_threshold_on(run_order: RunOrder) -> None:
    result = run_order(order_of(price=99_999, quantity=1))
    assert "short_wait" in step_names(result)
    result = run_order(order_of(price=100_000, quantity=1), APPROVE)
    assert "approval" in step_names(result)


def test_failure_api_rejects_with_its_message(
    runner: LocalRunner, services: OutsideServices
) -> None:
    arn = runner.run_async(input=json.dumps(TO_APPROVE))
    error = ErrorObject(message="承認システム停止", type="Down", data=None, stack_trace=None)
    runner.send_callback_failure(runner.wait_for_callback(arn), error)

    result = outcome(runner.wait_for_result(arn))
    assert (result["status"], result["reason"]) == ("REJECTED", "承認システム停止")
    assert services.asked("charge") == []


def test_retry_backs_off_with_jitter_up_to_a_cap() -> None:
    strategy = app.STEP.retry_strategy
    assert strategy is not None
    longest = {}
    for attempt in (1, 2, 3):
        delays = {strategy(app.NoAnswerError(), attempt).delay_seconds for _ in range(300)}
        assert len(delays) > 1
        longest[attempt] = max(delays)
    assert longest == {1: 2, 2: 4, 3: 5}
    assert not strategy(app.NoAnswerError(), 4).should_retry
    assert not strategy(app.CardDeclinedError(), 1).should_retry


def test_longest_way_fits_the_execution_timeout() -> None:
    slowest_attempt = deploy.SETTINGS["Timeout"]
    attempts = app.RETRY.max_attempts
    slowest_step = attempts * slowest_attempt + (attempts - 1) * app.RETRY.max_delay_seconds
    asked_outside = ["ask_approver", "pay", "cancel_payment", "notify"]
    longest = app.APPROVAL_TIMEOUT.to_seconds() + len(asked_outside) * slowest_step
    assert longest < app.EXECUTION_TIMEOUT.to_seconds()
