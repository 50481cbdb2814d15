"""どのような入力でも、決められた結果か InvalidOrderError で終わること。"""

import json
import re
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import app
from tests.local_run.runner import LocalRunner
from tests.support.flows import outcome
from tests.support.outside import OutsideServices

TEXT = st.text(st.characters(codec=None), max_size=70)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """たいてい正しく、ときどき何でもよい値。"""
    return st.integers(0, 11).flatmap(lambda dice: JSON if dice == 0 else good)


ITEMS = st.fixed_dictionaries(
    {
        "product_id": mostly(st.sampled_from(["prod-001", "prod-002", "謎", "\ud800"])),
        "price": mostly(st.sampled_from([0, 1, 1000, 50_000, 100_000])),
        "quantity": mostly(st.integers(1, 12)),
    },
    optional={"name": JSON, "extra": JSON},
)
SIMULATE = st.fixed_dictionaries(
    {},
    optional={
        "payment_timeouts": mostly(st.integers(0, 10)),
        "payment_seconds": st.just(0),
        "card_declined": mostly(st.booleans()),
    },
)
ORDERS = mostly(
    st.fixed_dictionaries(
        {"order_id": mostly(st.just("order-123")), "items": mostly(st.lists(ITEMS, max_size=4))},
        optional={"simulate": mostly(SIMULATE), "extra": JSON},
    )
)
ANSWERS = st.one_of(
    st.text(max_size=40),
    JSON.map(json.dumps),
    JSON.map(lambda value: json.dumps({"approved": value})),
    st.fixed_dictionaries(
        {"approved": st.just(True)}, optional={"reason": JSON, "approver": JSON}
    ).map(json.dumps),
)
IN_BATCHES = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@settings(IN_BATCHES, max_examples=500)
@given(ORDERS)
def test_validation_raises_nothing_but_invalid_order_error(order: Any) -> None:
    try:
        app.validate(order)
    except app.InvalidOrderError:
        return
    assert re.fullmatch("[A-Za-z0-9_-]{1,64}", order["order_id"])
    assert all(type(item["price"]) is type(item["quantity"]) is int for item in order["items"])


def total(order: Any) -> int:
    return sum(int(item["price"] * item["quantity"]) for item in order["items"])


def expected(order: Any, answer: str) -> str | None:
    """app.py とは別に求めた結果。不正な注文なら None。"""
    try:
        app.validate(order)
        wanted = Counter[str]()
        for item in order["items"]:
            wanted[item["product_id"]] += item["quantity"]
    except app.InvalidOrderError:
        return None
    if any(wanted[product] > app.STOCK.get(product, 0) for product in wanted):
        return "OUT_OF_STOCK"
    if total(order) >= app.APPROVAL_THRESHOLD and not approves(answer):
        return "REJECTED"
    simulate = app.SIMULATE | order.get("simulate", {})
    if simulate["card_declined"]:
        return "PAYMENT_DECLINED"
    return "COMPLETED" if simulate["payment_timeouts"] < 4 else "PAYMENT_FAILED"


def approves(answer: str) -> bool:
    try:
        value = json.loads(answer, parse_constant=int)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("approved") is True


@IN_BATCHES
@given(st.lists(st.tuples(ORDERS, ANSWERS), min_size=15, max_size=25))
def test_every_order_ends_as_expected_and_only_completed_orders_are_charged(
    runner: LocalRunner, services: OutsideServices, batch: list[tuple[Any, str]]
) -> None:
    for book in services.books.iterdir():
        book.unlink()
    started = []
    for number, (order, answer) in enumerate(batch):
        if isinstance(order, dict) and order.get("order_id") == "order-123":
            order = {**order, "order_id": f"order-{number}"}
        arn = runner.run_async(input=json.dumps(order), execution_timeout=60)
        started.append((arn, order, answer))
    for arn, order, answer in started:
        if expected(order, "") == "REJECTED":
            runner.send_callback_success(runner.wait_for_callback(arn), answer.encode())
    charges = {}
    for arn, order, answer in started:
        result, status = runner.wait_for_result(arn, timeout=60), expected(order, answer)
        if status is None:
            assert result.error is not None
            assert result.error.type == "app.InvalidOrderError"
            continue
        ended = outcome(result)
        assert (ended["status"], ended["total"]) == (status, total(order))
        if status == "COMPLETED":
            charges[f"{order['order_id']}-payment"] = total(order)
    assert services.done("charge") == charges
