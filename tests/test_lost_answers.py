"""どの応答が失われても、実際の請求とお客様への通知が一致すること。

支払い 4 回の「応答した、処理したが応答が失われた、依頼が届かなかった」の並びを、すべて試す。
"""

import json
from itertools import product

import pytest
from aws_durable_execution_sdk_python_testing.runner import DurableFunctionTestResult

import app
from tests.support.flows import order_of, outcome
from tests.support.outside import OutsideServices
from tests.support.runner import LocalRunner

ATTEMPTS = app.RETRY.max_attempts
# 応答が届けば終わるので、A はいちばん後ろにだけ来る: 1 + 2 + 4 + 8 + 16 通り
PAYMENTS = [
    *("".join(lost) + "A" for n in range(ATTEMPTS) for lost in product("LN", repeat=n)),
    *("".join(lost) for lost in product("LN", repeat=ATTEMPTS)),
]
UNANSWERED = [payment for payment in PAYMENTS if "A" not in payment]
NEVER = ["L" * ATTEMPTS, "N" * ATTEMPTS]
SOMETIMES = ["", "L", "N", "LNL", "NLN"]
LOSSES = [  # 取り消しと通知の失い方。違うもの同士の組み合わせは sweep で
    pytest.param(cancellation, notice, marks=[pytest.mark.sweep] if cancellation != notice else [])
    for cancellation, notice in product(SOMETIMES, repeat=2)
]
ORDER = order_of(simulate={"payment_timeouts": 0})


def results(
    runner: LocalRunner,
    services: OutsideServices,
    payments: list[str],
    cancellation: str = "",
    notice: str = "",
) -> list[tuple[str, str, DurableFunctionTestResult]]:
    """支払いの並びごとに 1 件、同時に注文し、注文の ID、並び、実行の結果を返す。"""
    started = []
    for payment in payments:
        order_id = f"order-{payment}"
        services.lose_answers(f"{order_id}-payment", payment)
        services.lose_answers(f"{order_id}-payment-cancellation", cancellation)
        services.lose_answers(f"{order_id}-notice", notice)
        order = ORDER | {"order_id": order_id}
        started.append((order_id, payment, runner.run_async(input=json.dumps(order))))
    return [(name, payment, runner.wait_for_result(arn)) for name, payment, arn in started]


def notices(services: OutsideServices, order_id: str) -> list[dict[str, object]]:
    return [notice for notice in services.done("notice").values() if notice["order_id"] == order_id]


def test_every_sequence_of_four_attempts_is_tried() -> None:
    assert len(PAYMENTS) == len(set(PAYMENTS)) == 31
    assert len(UNANSWERED) == 16


@pytest.mark.parametrize(("cancellation", "notice"), LOSSES)
def test_completed_is_charged_once_anything_else_not_at_all_and_the_customer_hears_it_once(
    runner: LocalRunner, services: OutsideServices, cancellation: str, notice: str
) -> None:
    payments = PAYMENTS if cancellation == notice else UNANSWERED  # 応答すれば、取り消しはない
    for order_id, payment, result in results(runner, services, payments, cancellation, notice):
        ended = outcome(result)
        assert ended["status"] == ("COMPLETED" if "A" in payment else "PAYMENT_FAILED"), payment
        charged = {
            key: yen for key, yen in services.done("charge").items() if key.startswith(order_id)
        }
        assert charged == ({f"{order_id}-payment": 2000} if "A" in payment else {}), payment
        assert notices(services, order_id) == [ended], payment


@pytest.mark.parametrize("never", NEVER)
def test_unanswered_cancellation_fails_the_order_and_tells_the_customer_nothing(
    runner: LocalRunner, services: OutsideServices, never: str
) -> None:
    for order_id, payment, result in results(runner, services, UNANSWERED, cancellation=never):
        assert result.error is not None, payment
        assert result.error.message is not None
        assert result.error.message.startswith(f"{order_id}-payment-cancellation "), payment
        assert notices(services, order_id) == [], payment


@pytest.mark.parametrize("never", NEVER)
def test_unanswered_notice_fails_the_order_and_what_arrived_of_it_is_true(
    runner: LocalRunner, services: OutsideServices, never: str
) -> None:
    for order_id, payment, result in results(runner, services, PAYMENTS, notice=never):
        assert result.error is not None, payment
        assert result.error.message is not None
        assert result.error.message.startswith(f"{order_id}-notice "), payment
        charged = sum(
            yen for key, yen in services.done("charge").items() if key.startswith(order_id)
        )
        assert charged == (2000 if "A" in payment else 0), payment
        told = [notice["status"] for notice in notices(services, order_id)]
        status = "COMPLETED" if charged else "PAYMENT_FAILED"
        assert told == ([status] if "L" in never else []), payment


@pytest.mark.parametrize("broken", ["error", "result"])
def test_unforeseen_error_after_a_charge_leaves_nothing_charged(
    runner: LocalRunner, services: OutsideServices, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """請求が成立した後に、想定外のエラーが起きるか、結果が JSON にならない（SerDesError）。"""

    def charge_card(key: str, amount: int, simulate: dict[str, int], attempt: int) -> object:
        if broken == "error" and attempt == 2:
            raise ConnectionError("想定外のエラー")
        return {services.charge_card(key, amount, simulate, attempt)}

    monkeypatch.setattr(app, "charge_card", charge_card)
    [(_, _, result)] = results(runner, services, ["L" if broken == "error" else "A"])
    assert result.error is not None
    expected = "想定外のエラー" if broken == "error" else "Serialization failed"
    assert str(result.error.message).startswith(expected)
    assert (services.done("charge"), services.done("notice")) == ({}, {})
    assert services.done("cancellation")
    assert len(services.asked("charge")) == 1  # 再試行していない


def test_charge_that_arrives_after_its_cancellation_is_refused(services: OutsideServices) -> None:
    services.cancel_charge("order-123-payment")
    with pytest.raises(RuntimeError):
        services.charge_card("order-123-payment", 2000, {"payment_timeouts": 0}, 1)
    assert services.done("charge") == {}
