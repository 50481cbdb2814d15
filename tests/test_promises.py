"""お客様への約束。演習「壊してみる」の変更は、それぞれこの一つを赤くする。"""

from typing import Any

import pytest

import app
from tests.conftest import OutsideWorld, RunOrder, order_of, outcome


def broken(suffering: str) -> None:
    """お客様が受けたはずの害だけを示して、テストを赤くする。"""
    pytest.fail(suffering, pytrace=False)


def test_one_payment_timeout_does_not_lose_the_order(
    run_order: RunOrder, world: OutsideWorld
) -> None:
    result = run_order(order_of())
    if result.error is not None or not world.inbox:
        broken(
            "お客様の注文は、決済が 1 回タイムアウトしただけで失敗し、"
            "お客様には何も知らされません。"
        )
    assert outcome(result)["status"] == "COMPLETED"


def test_a_lost_answer_of_the_gateway_is_not_charged_twice(
    run_order: RunOrder, world: OutsideWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_answers(world, monkeypatch, attempts=1)
    run_order(order_of())
    times, charged = len(world.charges), sum(world.charges.values())
    if times > 1:
        broken(
            f"2,000 円の注文で、お客様のカードに {times} 回、"
            f"合わせて {charged:,} 円が請求されました。"
        )
    assert charged == 2000


def test_a_declined_card_is_tried_once(run_order: RunOrder, world: OutsideWorld) -> None:
    run_order(order_of(simulate={"card_declined": True}))
    tries = len(world.payment_calls)
    if tries > 1:
        broken(
            f"断られたカードに {tries} 回請求しました。"
            "カード会社が不正利用を疑い、お客様のカードを止めかねません。"
        )
    assert tries == 1


def test_a_customer_whose_payment_failed_is_not_left_charged(
    run_order: RunOrder, world: OutsideWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_answers(world, monkeypatch, attempts=4)
    run_order(order_of())
    told, charged = (
        [notice["status"] for notice in world.inbox.values()],
        sum(world.charges.values()),
    )
    if told == ["PAYMENT_FAILED"] and not world.cancelled:
        broken(
            "お客様は支払えなかったと知らされたのに、"
            f"カードには {charged:,} 円が請求されたままです。"
        )
    assert told in ([], ["PAYMENT_FAILED"])


def lose_answers(world: OutsideWorld, monkeypatch: pytest.MonkeyPatch, attempts: int) -> None:
    """請求は済ませるが、はじめの attempts 回は答えを失う決済代行会社にする。"""

    def charge_card(
        idempotency_key: str, amount: int, simulate: dict[str, Any], attempt: int
    ) -> str:
        payment_id = world.charge_card(idempotency_key, amount, {"payment_timeouts": 0}, attempt)
        if attempt <= attempts:
            raise app.NoAnswerError("請求は済んだが、答えが届かない")
        return payment_id

    monkeypatch.setattr(app, "charge_card", charge_card)
