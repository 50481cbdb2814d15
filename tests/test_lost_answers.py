"""どの応答が失われても、実際の請求とお客様への通知が一致すること。

支払い 4 回の「応答した、処理したが応答が失われた、依頼が届かなかった」の並びを、すべて試す。
"""

import json
from itertools import product

import pytest
from aws_durable_execution_sdk_python_testing.runner import DurableFunctionTestResult

import app
from tests.local_run.runner import LocalRunner
from tests.support.flows import order_of, outcome
from tests.support.outside import OutsideServices

ATTEMPTS = app.RETRY.max_attempts
# 応答が届けば終わるので、A はいちばん後ろにだけ来る: 1 + 2 + 4 + 8 + 16 通り
PAYMENTS = [
    *("".join(lost) + "A" for n in range(ATTEMPTS) for lost in product("LN", repeat=n)),
    *("".join(lost) for lost in product("LN", repeat=ATTEMPTS)),
]
UNANSWERED = [payment for payment in PAYMENTS if "A" not in payment]
NEVER = ["L" * ATTEMPTS, "N" * ATTEMPTS]
LOSSES = [  # 取り消しと通知の失い方
    *((never, "") for never in NEVER),
    *(("", never) for never in NEVER),
    *((sometimes, sometimes) for sometimes in ("", "LNL", "NLN")),
]


def results(
    runner: LocalRunner,
    services: OutsideServices,
    payments: list[str],
    cancellation: str = "",
    notice: str = "",
) -> dict[str, DurableFunctionTestResult]:
    """支払いの並びごとに 1 件、同時に注文し、並びごとの結果を返す。"""
    arns = {}
    for payment in payments:
        order = order_of(simulate={"payment_timeouts": 0}) | {"order_id": f"order-{payment}"}
        services.lose_answers(f"order-{payment}-payment", payment)
        services.lose_answers(f"order-{payment}-payment-cancellation", cancellation)
        services.lose_answers(f"order-{payment}-notice", notice)
        arns[payment] = runner.run_async(input=json.dumps(order))
    return {payment: runner.wait_for_result(arn) for payment, arn in arns.items()}


@pytest.mark.parametrize(("cancellation", "notice"), LOSSES)
def test_what_is_charged_and_what_the_customer_hears_agree(
    runner: LocalRunner, services: OutsideServices, cancellation: str, notice: str
) -> None:
    """COMPLETED なら 1 回だけ請求され、ほかなら請求されず、お客様は 1 度だけ本当のことを聞く。"""
    payments = UNANSWERED if cancellation else PAYMENTS  # 応答すれば、取り消しはない
    ended = results(runner, services, payments, cancellation, notice)
    charges, notices = services.done("charge"), services.done("notice").values()
    for payment, result in ended.items():
        order_id = f"order-{payment}"
        told = [notice for notice in notices if notice["order_id"] == order_id]
        charged = charges.get(f"{order_id}-payment", 0)
        message = (result.error and result.error.message) or ""
        if cancellation in NEVER:  # 請求がどうなったか分からないので、お客様には何も言わない
            assert message.startswith(f"{order_id}-payment-cancellation "), payment
            assert told == [], payment
            continue
        assert charged == (2000 if "A" in payment else 0), payment
        status = "COMPLETED" if "A" in payment else "PAYMENT_FAILED"
        if notice in NEVER:
            assert message.startswith(f"{order_id}-notice "), payment
            assert [one["status"] for one in told] == ([status] if "L" in notice else []), payment
        else:
            assert outcome(result)["status"] == status, payment
            assert told == [outcome(result)], payment


@pytest.mark.parametrize("broken", ["error", "result"])
def test_unforeseen_error_after_a_charge_leaves_nothing_charged(
    runner: LocalRunner, services: OutsideServices, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """請求が成立した後に、想定外のエラーが起きるか、結果が JSON にならない（SerDesError）。"""

    def charge_card(key: str, amount: int) -> object:
        if broken == "error" and services.asked("charge"):
            raise ConnectionError("想定外のエラー")
        return {services.charge_card(key, amount)}

    monkeypatch.setattr(app, "charge_card", charge_card)
    [result] = results(runner, services, ["L" if broken == "error" else "A"]).values()
    assert result.error is not None
    expected = "想定外のエラー" if broken == "error" else "Serialization failed"
    assert str(result.error.message).startswith(expected)
    assert (services.done("charge"), services.done("notice")) == ({}, {})
    assert services.done("cancellation")
    assert len(services.asked("charge")) == 1  # 再試行していない


def test_charge_that_arrives_after_its_cancellation_is_refused(services: OutsideServices) -> None:
    services.cancel_charge("order-123-payment")
    with pytest.raises(RuntimeError):
        services.charge_card("order-123-payment", 2000)
    assert services.done("charge") == {}
