"""お客様への約束。演習「壊してみる」の変更は、それぞれこの 1 つを失敗させる。"""

import time
from datetime import UTC, datetime, timedelta
from itertools import count
from types import SimpleNamespace

import pytest

import app
from tests.support.client import restart_at_once
from tests.support.flows import ANSWERS, RunOrder, outcome
from tests.support.outside import OutsideServices


def broken(suffering: str) -> None:
    """お客様への影響だけを表示して、テストを失敗させる。"""
    pytest.fail(suffering, pytrace=False)


def charged_once(services: OutsideServices, cause: str = "") -> int:
    """請求した金額。2 回以上の請求なら、テストを失敗させる。"""
    charges = services.done("charge").values()
    times, total = len(charges), int(sum(charges))
    if times > 1:
        charged = f"カードに {times} 回、合わせて {total:,} 円が請求されました。"
        broken(f"{cause}2,000 円の注文で、お客様の{charged}")
    return total


def test_one_payment_timeout_does_not_lose_the_order(
    run_order: RunOrder, services: OutsideServices
) -> None:
    services.lose_answers("charge", "N")
    result = run_order(ANSWERS)
    if result.error is not None or not services.done("notice"):
        broken("決済が 1 回タイムアウトしただけで注文が失敗し、お客様には何も通知されません。")
    assert outcome(result)["status"] == "COMPLETED"


def test_a_lost_answer_of_the_gateway_is_not_charged_twice(
    run_order: RunOrder, services: OutsideServices
) -> None:
    services.lose_answers("charge", "L")
    run_order(ANSWERS)
    assert charged_once(services) == 2000


def test_a_declined_card_is_tried_once(run_order: RunOrder, services: OutsideServices) -> None:
    services.lose_answers("charge", "DDDD")
    run_order(ANSWERS)
    tries = len(services.asked("charge"))
    if tries > 1:
        broken(
            f"拒否されたカードに {tries} 回請求しました。"
            "カード会社が不正利用を疑い、お客様のカードを利用停止にするおそれがあります。"
        )
    assert tries == 1


def test_a_customer_whose_payment_failed_is_not_left_charged(
    run_order: RunOrder, services: OutsideServices
) -> None:
    services.lose_answers("charge", "LLLL")
    run_order(ANSWERS)
    told = [notice["status"] for notice in services.done("notice").values()]
    charged = sum(services.done("charge").values())
    if told == ["PAYMENT_FAILED"] and not services.done("cancellation"):
        broken(
            f"お客様には支払いの失敗を通知したのに、カードには {charged:,} 円が請求されたままです。"
        )
    assert told in ([], ["PAYMENT_FAILED"])


def test_a_replay_asks_for_the_same_thing(
    run_order: RunOrder, services: OutsideServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """請求が成立した後、記録の前に異常終了する。app.py の時計は、見るたびに 1 日進む。"""
    restart_at_once(monkeypatch)
    days = (datetime(2026, 12, 1, tzinfo=UTC) + timedelta(days=n) for n in count())
    clock = SimpleNamespace(time=lambda: next(days).timestamp(), sleep=time.sleep)
    monkeypatch.setattr(app, "time", clock)
    monkeypatch.setattr(app, "datetime", SimpleNamespace(now=lambda tz=None: next(days)))
    services.lose_answers("charge", "C")
    result = run_order(ANSWERS)
    once = "呼び出しが 1 回異常終了しただけで、"
    charged = charged_once(services, once)
    if result.error is not None:
        left = "カードには請求されたまま、" if charged else ""
        broken(f"{once}注文が失敗し、{left}お客様には何も通知されません。")
    assert (charged, list(services.done("notice"))) == (2000, ["order-123-COMPLETED"])
