"""どの答えが失われても、お客様に請求されたことと、お客様が聞いたことが食い違わないこと。

支払い 4 回の「答えた、起きたが答えが失われた、起きずに失われた」の並びを、数え上げてすべて試す。
"""

import json
from itertools import product

import pytest
from aws_durable_execution_sdk_python_testing.runner import (
    DurableFunctionTestResult,
    DurableFunctionTestRunner,
)

import app
from tests.conftest import OutsideWorld, order_of, outcome

ATTEMPTS = app.RETRY.max_attempts
# 答えが届けば終わるので、A はいちばん後ろにだけ来る: 1 + 2 + 4 + 8 + 16 通り
PAYMENTS = [
    *("".join(lost) + "A" for n in range(ATTEMPTS) for lost in product("LN", repeat=n)),
    *("".join(lost) for lost in product("LN", repeat=ATTEMPTS)),
]
UNANSWERED = [payment for payment in PAYMENTS if "A" not in payment]
NEVER = ["L" * ATTEMPTS, "N" * ATTEMPTS]
SOMETIMES = ["", "L", "N", "LNL", "NLN"]
LOSSES = [  # 取り消しと通知の失い方。違うもの同士の組は長い総当たりで
    pytest.param(cancellation, notice, marks=[pytest.mark.sweep] if cancellation != notice else [])
    for cancellation, notice in product(SOMETIMES, repeat=2)
]
ORDER = order_of(simulate={"payment_timeouts": 0})


def results(
    runner: DurableFunctionTestRunner,
    world: OutsideWorld,
    payments: list[str],
    cancellation: str = "",
    notice: str = "",
) -> list[tuple[str, str, DurableFunctionTestResult]]:
    """支払いの並びごとに 1 件、同時に注文し、注文の ID、並び、実行の結果を返す。"""
    started = []
    for payment in payments:
        order_id = f"order-{payment}"
        world.scripts |= {
            f"{order_id}-payment": payment,
            f"{order_id}-payment-cancellation": cancellation,
            f"{order_id}-notice": notice,
        }
        order = ORDER | {"order_id": order_id}
        started.append((order_id, payment, runner.run_async(input=json.dumps(order))))
    return [(name, payment, runner.wait_for_result(arn)) for name, payment, arn in started]


def notices(world: OutsideWorld, order_id: str) -> list[dict[str, object]]:
    return [notice for notice in world.inbox.values() if notice["order_id"] == order_id]


def test_every_sequence_of_four_attempts_is_tried() -> None:
    assert len(PAYMENTS) == len(set(PAYMENTS)) == 31
    assert len(UNANSWERED) == 16


@pytest.mark.parametrize(("cancellation", "notice"), LOSSES)
def test_completed_is_charged_once_anything_else_not_at_all_and_the_customer_hears_it_once(
    runner: DurableFunctionTestRunner, world: OutsideWorld, cancellation: str, notice: str
) -> None:
    payments = PAYMENTS if cancellation == notice else UNANSWERED  # 答えれば、取り消しはない
    for order_id, payment, result in results(runner, world, payments, cancellation, notice):
        ended = outcome(result)
        assert ended["status"] == ("COMPLETED" if "A" in payment else "PAYMENT_FAILED"), payment
        charged = {key: yen for key, yen in world.charges.items() if key.startswith(order_id)}
        assert charged == ({f"{order_id}-payment": 2000} if "A" in payment else {}), payment
        assert notices(world, order_id) == [ended], payment


@pytest.mark.parametrize("never", NEVER)
def test_unanswered_cancellation_fails_the_order_and_tells_the_customer_nothing(
    runner: DurableFunctionTestRunner, world: OutsideWorld, never: str
) -> None:
    for order_id, payment, result in results(runner, world, UNANSWERED, cancellation=never):
        assert result.error is not None, payment
        assert result.error.message is not None
        assert result.error.message.startswith(f"{order_id}-payment-cancellation "), payment
        assert notices(world, order_id) == [], payment


@pytest.mark.parametrize("never", NEVER)
def test_unanswered_notice_fails_the_order_and_what_arrived_of_it_is_true(
    runner: DurableFunctionTestRunner, world: OutsideWorld, never: str
) -> None:
    for order_id, payment, result in results(runner, world, PAYMENTS, notice=never):
        assert result.error is not None, payment
        assert result.error.message is not None
        assert result.error.message.startswith(f"{order_id}-notice "), payment
        charged = sum(yen for key, yen in world.charges.items() if key.startswith(order_id))
        assert charged == (2000 if "A" in payment else 0), payment
        told = [notice["status"] for notice in notices(world, order_id)]
        status = "COMPLETED" if charged else "PAYMENT_FAILED"
        assert told == ([status] if "L" in never else []), payment


def test_unforeseen_error_after_a_lost_answer_leaves_nothing_charged(
    runner: DurableFunctionTestRunner, world: OutsideWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def charge_card(key: str, amount: int, simulate: dict[str, int], attempt: int) -> str:
        if attempt == 2:
            raise ConnectionError("思わぬエラー")
        return world.charge_card(key, amount, simulate, attempt)

    monkeypatch.setattr(app, "charge_card", charge_card)
    [(_, _, result)] = results(runner, world, ["L"])
    assert result.error is not None
    assert result.error.message == "思わぬエラー"
    assert (world.charges, world.inbox) == ({}, {})
    assert world.cancelled


def test_charge_that_arrives_after_its_cancellation_is_refused(world: OutsideWorld) -> None:
    world.cancel_charge("order-123-payment")
    with pytest.raises(RuntimeError):
        world.charge_card("order-123-payment", 2000, {"payment_timeouts": 0}, 1)
    assert world.charges == {}
