"""公式のローカルランナーで動かした、注文の結果と、記録に残るもの。"""

import json
import logging
import math
from collections import Counter
from typing import Any

import pytest
from aws_durable_execution_sdk_python.config import Duration
from aws_durable_execution_sdk_python.lambda_service import ErrorObject
from aws_durable_execution_sdk_python_testing.client import InMemoryServiceClient
from aws_durable_execution_sdk_python_testing.exceptions import ResourceNotFoundException
from aws_durable_execution_sdk_python_testing.runner import (
    CallbackOperation,
    DurableFunctionTestResult,
    DurableFunctionTestRunner,
    StepOperation,
    WaitOperation,
)

import app
import deploy
from tests.conftest import OutsideWorld, RunOrder, order_of, outcome, step_names
from tests.local_run import README_ORDER

APPROVE = b'{"approved": true}'


def test_readme_order_completes(run_order: RunOrder, world: OutsideWorld) -> None:
    result = run_order(README_ORDER)

    assert outcome(result) == {
        "order_id": "order-123",
        "status": "COMPLETED",
        "total": 2000,
        "payment_id": world.answers["order-123-payment"],
    }
    assert step_names(result) == ["accept_order", "check_stock", "short_wait", "pay", "notify"]
    assert world.charges == {"order-123-payment": 2000}
    assert world.inbox == {"order-123-COMPLETED": outcome(result)}


@pytest.mark.parametrize(
    ("order", "status", "details"),
    [
        (order_of(quantity=1001), "OUT_OF_STOCK", {"products": ["prod-001"]}),
        (
            {"order_id": "o", "items": order_of(quantity=600)["items"] * 2},
            "OUT_OF_STOCK",
            {"products": ["prod-001"]},
        ),
        (
            {"order_id": "o", "items": [{"product_id": "謎", "price": 0, "quantity": 1}]},
            "OUT_OF_STOCK",
            {"products": ["謎"]},
        ),
        (order_of(simulate={"card_declined": True}), "PAYMENT_DECLINED", {}),
        (order_of(simulate={"payment_timeouts": 4}), "PAYMENT_FAILED", {}),
        (order_of(simulate={"payment_timeouts": 10}), "PAYMENT_FAILED", {}),
    ],
)
def test_refused_orders_end_with_one_notification_and_no_charge(
    run_order: RunOrder,
    world: OutsideWorld,
    order: dict[str, Any],
    status: str,
    details: dict[str, Any],
) -> None:
    result = outcome(run_order(order))

    assert result.items() >= {"order_id": order["order_id"], "status": status, **details}.items()
    assert result["total"] == sum(i["price"] * i["quantity"] for i in order["items"])
    assert world.charges == {}
    assert world.deliveries == [f"{order['order_id']}-{status}"]


def test_order_for_exactly_the_stock_is_accepted(run_order: RunOrder) -> None:
    assert outcome(run_order(order_of(price=1, quantity=1000)))["status"] == "COMPLETED"


def test_unknown_extra_fields_are_ignored(run_order: RunOrder) -> None:
    order = order_of(coupon={"a": [1]}, simulate={"payment_timeouts": 0, "weather": None})
    order["items"][0]["color"] = math.nan
    assert outcome(run_order(order))["status"] == "COMPLETED"


def item_with(**fields: Any) -> dict[str, Any]:
    item = order_of()["items"][0] | fields
    return order_of() | {"items": [{k: v for k, v in item.items() if v is not ...}]}


BAD_VALUES: dict[str, list[Any]] = {
    "注文": [[], "order-123", None, 5, math.nan],
    "order_id": [..., "", "a" * 65, "a/b", "a\n", "あ", 7, None],
    "items": [..., [], {}, None, "x"],
    "items[0]": ["prod-001", None, []],
    "items[0].product_id": [..., "", "a" * 65, 1, None],
    "items[0].price": [..., -1, 1.0, "1", True, None, math.nan, 10**10],
    "items[0].quantity": [..., 0, -1, 1.5, "1", True, None, math.nan, 10**4000],
    "simulate": [[], None, "x", True],
    "simulate.payment_timeouts": [-1, 11, 1.0, "1", True, None],
    "simulate.payment_seconds": [-1, 21, 1.0, "1", True, None],
    "simulate.card_declined": [0, 1, "true", None],
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
    run_order: RunOrder, world: OutsideWorld, field: str, order: Any
) -> None:
    result = run_order(order)

    assert result.error is not None
    assert result.error.type == "app.InvalidOrderError"
    assert result.error.message is not None
    assert result.error.message.startswith(f"{field}: ")
    assert step_names(result) == []
    assert world.payment_calls == []
    assert world.deliveries == []


def test_bad_order_error_does_not_quote_the_order(run_order: RunOrder) -> None:
    result = run_order(order_of() | {"order_id": "secret/4111111111111111"})
    assert result.error is not None
    assert "4111" not in str(result.error)


@pytest.mark.parametrize(
    ("answer", "details"),
    [
        (b"{}", {}),
        (b'{"approved": false}', {}),
        (b'{"approved": false, "reason": "over budget"}', {"reason": "over budget"}),
        (b'{"approved": false, "approver": "sato"}', {"approver": "sato"}),
        (b'{"approved": "true"}', {}),
        (b'{"approved": 1}', {}),
        (b'{"approved": null, "reason": 5, "approver": []}', {}),
        (b"true", {}),
        (b'"yes"', {}),
        (b"[]", {}),
        (b'[{"approved": true}]', {}),
        (b"null", {}),
        (b"", {}),
        (b"approved: true", {}),
        (b'{"approved": true', {}),
        (b"[" * 100_000, {}),
        (b"1" * 5_000, {}),
    ],
)
def test_anything_but_an_explicit_yes_rejects(
    run_order: RunOrder, world: OutsideWorld, answer: bytes, details: dict[str, str]
) -> None:
    result = outcome(run_order(order_of(price=50_000), answer))

    assert result.items() >= {"status": "REJECTED", "total": 100_000, **details}.items()
    assert isinstance(result["reason"], str)
    assert result["reason"]
    assert world.payment_calls == []
    assert world.deliveries == ["order-123-REJECTED"]


def test_explicit_yes_approves(run_order: RunOrder, world: OutsideWorld) -> None:
    answer = b'{"approved": true, "approver": "sato", "reason": "ok"}'
    result = run_order(order_of(price=50_000, simulate={"payment_timeouts": 0}), answer)

    assert outcome(result).items() >= {"status": "COMPLETED", "approver": "sato"}.items()
    names = "accept_order check_stock approval ask_approver pay notify"
    assert step_names(result) == names.split()
    assert world.charges == {"order-123-payment": 100_000}


def test_approval_is_needed_from_the_threshold_on(run_order: RunOrder) -> None:
    result = run_order(order_of(price=99_999, quantity=1))
    assert "short_wait" in step_names(result)
    result = run_order(order_of(price=100_000, quantity=1), APPROVE)
    assert "approval" in step_names(result)


def test_failure_api_rejects_with_its_message(
    runner: DurableFunctionTestRunner, world: OutsideWorld
) -> None:
    arn = runner.run_async(input=json.dumps(order_of(price=50_000)))
    error = ErrorObject(message="承認システム停止", type="Down", data=None, stack_trace=None)
    runner.send_callback_failure(runner.wait_for_callback(arn), error)

    result = outcome(runner.wait_for_result(arn))
    assert (result["status"], result["reason"]) == ("REJECTED", "承認システム停止")
    assert world.payment_calls == []


def test_silence_ends_in_approval_timed_out(
    runner: DurableFunctionTestRunner, world: OutsideWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "APPROVAL_TIMEOUT", Duration.from_seconds(1))
    result = outcome(runner.run(input=json.dumps(order_of(price=50_000)), execution_timeout=30))

    assert result["status"] == "APPROVAL_TIMED_OUT"
    assert world.payment_calls == []
    assert world.deliveries == ["order-123-APPROVAL_TIMED_OUT"]


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        (APPROVE, b'{"approved": false}', "COMPLETED"),
        (b'{"approved": false}', APPROVE, "REJECTED"),
    ],
)
def test_second_answer_changes_nothing(
    runner: DurableFunctionTestRunner, first: bytes, second: bytes, status: str
) -> None:
    arn = runner.run_async(input=json.dumps(order_of(price=50_000)))
    callback_id = runner.wait_for_callback(arn)
    runner.send_callback_success(callback_id, first)
    with pytest.raises(ResourceNotFoundException):
        runner.send_callback_success(callback_id, second)
    assert outcome(runner.wait_for_result(arn))["status"] == status


def test_payment_is_retried_on_timeouts_only(run_order: RunOrder, world: OutsideWorld) -> None:
    result = run_order(order_of(simulate={"payment_timeouts": 3}))
    assert outcome(result)["status"] == "COMPLETED"
    assert world.payment_calls == [("order-123-payment", 2000)] * 4

    world.payment_calls.clear()
    run_order({**order_of(simulate={"payment_timeouts": 10}), "order_id": "order-456"})
    assert world.payment_calls == [("order-456-payment", 2000)] * 4

    world.payment_calls.clear()
    run_order({**order_of(simulate={"card_declined": True}), "order_id": "order-789"})
    assert world.payment_calls == [("order-789-payment", 2000)]


def test_an_unforeseen_error_is_neither_retried_nor_hidden(
    run_order: RunOrder, world: OutsideWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def broken(*args: Any) -> str:
        calls.append(args)
        raise ZeroDivisionError("bug")

    monkeypatch.setattr(app, "charge_card", broken)
    result = run_order(order_of())

    assert result.error is not None
    assert result.error.message == "bug"
    assert len(calls) == 1
    assert world.deliveries == []


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
    slowest_attempt = deploy.desired_settings("role")["Timeout"]
    attempts = app.RETRY.max_attempts
    slowest_step = attempts * slowest_attempt + (attempts - 1) * app.RETRY.max_delay_seconds
    asked_outside = ["ask_approver", "pay", "cancel_payment", "notify"]
    longest = app.APPROVAL_TIMEOUT.to_seconds() + len(asked_outside) * slowest_step
    assert longest < app.EXECUTION_TIMEOUT.to_seconds()


@pytest.mark.parametrize(
    ("order", "answer", "calls", "billed", "invocations"),
    [
        (README_ORDER, None, 6, 7, 3),
        (order_of(price=50_000), APPROVE, 7, 8, 3),
        (order_of(price=50_000, simulate={"payment_timeouts": 0}), APPROVE, 6, 7, 2),
    ],
)
def test_checkpoint_calls_billed_operations_and_invocations(
    runner: DurableFunctionTestRunner,
    world: OutsideWorld,
    monkeypatch: pytest.MonkeyPatch,
    order: dict[str, Any],
    answer: bytes | None,
    calls: int,
    billed: int,
    invocations: int,
) -> None:
    made: Counter[str] = Counter()
    checkpoint = InMemoryServiceClient.checkpoint

    def counted(self: InMemoryServiceClient, durable_execution_arn: str, **kwargs: Any) -> Any:
        made[durable_execution_arn] += 1
        return checkpoint(self, durable_execution_arn, **kwargs)

    monkeypatch.setattr(InMemoryServiceClient, "checkpoint", counted)
    for _ in range(3):
        world.charges.clear()
        arn = runner.run_async(input=json.dumps(order))
        if answer:
            runner.send_callback_success(runner.wait_for_callback(arn), answer)
        result = runner.wait_for_result(arn)

        assert outcome(result)["status"] == "COMPLETED"
        assert billed_operations(result) == billed
        events = runner.get_execution_history(arn).events
        assert sum(event.event_type == "InvocationCompleted" for event in events) == invocations
    # 混んだ機械では START が SUCCEED を待ちきれず、先に送られることがある
    assert min(made.values()) == calls


def billed_operations(result: DurableFunctionTestResult) -> int:
    """facts.md の表による課金操作数: 開始 1、ステップは試行ごとに 1、待ちとコールバック 1。"""
    return 1 + sum(
        operation.attempt if isinstance(operation, StepOperation) else 1
        for operation in result.operations
        if isinstance(operation, StepOperation | WaitOperation | CallbackOperation)
    )


def test_recorded_results_are_plain_json(run_order: RunOrder) -> None:
    result = run_order(README_ORDER)
    payment_id = json.loads(result.result or "")["payment_id"]

    assert result.get_step("accept_order").result == '{"order_id": "order-123", "total": 2000}'
    assert result.get_step("check_stock").result == "[]"
    assert result.get_step("pay").result == f'"{payment_id}"'
    assert result.get_step("notify").result == result.result


def test_logs_of_steps_appear_once_and_hold_no_more_than_ids_and_totals(
    run_order: RunOrder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run_order(README_ORDER)

    assert [record.getMessage() for record in caplog.records if record.name == "app"] == [
        "ハンドラー開始"
    ] * 3
    steps = [getattr(r, "operationName", None) for r in caplog.records if r.name == "root"]
    assert steps == ["accept_order", "check_stock", "pay", "notify"]
    assert "Widget" not in caplog.text
    assert "prod-001" not in caplog.text
