"""どの応答が失われても、実際の請求とお客様への通知が一致すること。

支払い 4 回の「応答した、処理したが応答が失われた、依頼が届かなかった」の並びを、すべて試す。
"""

import json
from itertools import product
from typing import Any

import pytest
from aws_durable_execution_sdk_python_testing.runner import DurableFunctionTestResult

import app
from tests.local_run.runner import LocalRunner
from tests.support.flows import ANSWERS, outcome
from tests.support.outside import OutsideServices

ATTEMPTS = app.RETRY.max_attempts
# 応答が届けば終わるので、A はいちばん後ろにだけ来る: 1 + 2 + 4 + 8 + 16 + 16 通り
EVERY = map("".join, product("ALN", repeat=ATTEMPTS))
PAYMENTS = sorted({"".join(fates.partition("A")[:2]) for fates in EVERY})
NEVER = ["L" * ATTEMPTS, "N" * ATTEMPTS]
BOTH = [(lost, lost) for lost in ("", "LNL", "NLN")]
LOSSES = [*BOTH, *product(NEVER, [""]), *product([""], NEVER)]  # 取り消しと通知の失い方


def results(
    runner: LocalRunner, services: OutsideServices, payments: list[str], *losses: str
) -> dict[str, DurableFunctionTestResult]:
    """支払いの並びごとに 1 件、同時に注文し、並びごとの結果を返す。"""
    arns = {}
    for payment in payments:
        names = ("payment", "payment-cancellation", "notice")
        for name, fates in zip(names, (payment, *losses), strict=False):
            services.lose_answers(f"order-{payment}-{name}", fates)
        order = json.dumps(ANSWERS | {"order_id": f"order-{payment}"})
        arns[payment] = runner.run_async(input=order)
    return {payment: runner.wait_for_result(arn) for payment, arn in arns.items()}


@pytest.mark.parametrize(("cancellation", "notice"), LOSSES)
def test_what_is_charged_and_what_the_customer_hears_agree(
    runner: LocalRunner, services: OutsideServices, cancellation: str, notice: str
) -> None:
    """COMPLETED なら 1 回だけ請求され、ほかなら請求されず、お客様は 1 度だけ本当のことを聞く。"""
    payments = [p for p in PAYMENTS if "A" not in p or not cancellation]  # A なら取り消さない
    ended = results(runner, services, payments, cancellation, notice)
    charges, notices = services.done("charge"), services.done("notice").values()
    for payment, result in ended.items():
        order_id = f"order-{payment}"
        told = [notice for notice in notices if notice["order_id"] == order_id]
        message = str(result.error and result.error.message)
        if cancellation in NEVER:  # 請求がどうなったか分からないので、お客様には何も言わない
            assert (message.split()[0], told) == (f"{order_id}-payment-cancellation", []), payment
            continue
        status, charged = ("COMPLETED", 2000) if "A" in payment else ("PAYMENT_FAILED", 0)
        assert charges.get(f"{order_id}-payment", 0) == charged, payment
        if notice in NEVER:
            assert message.split()[0] == f"{order_id}-notice", payment
            assert [one["status"] for one in told] == ([status] if "L" in notice else []), payment
        else:
            assert (outcome(result)["status"], told) == (status, [outcome(result)]), payment


@pytest.mark.parametrize(
    ("payment", "message"), [("L", "想定外のエラー"), ("A", "Serialization failed")]
)
def test_unforeseen_error_after_a_charge_leaves_nothing_charged(
    runner: LocalRunner, services: OutsideServices, monkeypatch: Any, payment: str, message: str
) -> None:
    """請求が成立した後に、想定外のエラーが起きるか、結果が JSON にならない（SerDesError）。"""

    def charge_card(key: str, amount: int) -> object:
        if services.asked("charge"):
            raise ConnectionError(message)
        return {services.charge_card(key, amount)}

    monkeypatch.setattr(app, "charge_card", charge_card)
    [result] = results(runner, services, [payment]).values()
    assert str(result.error and result.error.message).startswith(message)
    assert (services.done("charge"), services.done("notice")) == ({}, {})
    assert (len(services.asked("charge")), len(services.done("cancellation"))) == (1, 1)


def test_charge_that_arrives_after_its_cancellation_is_refused(services: OutsideServices) -> None:
    services.cancel_charge("order-123-payment")
    with pytest.raises(RuntimeError):
        services.charge_card("order-123-payment", 2000)
    assert services.done("charge") == {}
