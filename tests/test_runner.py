"""公式ランナーに付けた回避策と時計。"""

import json
from datetime import UTC, datetime, timedelta
from unittest import mock

import pytest

import app
from tests.local_run import runner as support
from tests.local_run.runner import LocalRunner, OrderClock, ReliableExecutor
from tests.support.flows import order_of, outcome
from tests.support.outside import OutsideServices

NOW = datetime(2026, 11, 26, tzinfo=UTC)


class RearmedMeanwhile(ReliableExecutor):
    """操作を完了した直後に、別のスレッドがタイマーを計り直したときと同じことを起こす。"""

    def _fire_due_operations(self, execution_arn: str) -> bool:
        completed = super()._fire_due_operations(execution_arn)
        self._schedule_earliest_pending(execution_arn)
        return completed


def test_timer_that_is_cancelled_after_its_work_still_invokes(
    services: OutsideServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "ReliableExecutor", RearmedMeanwhile)
    with LocalRunner(app.handler) as runner:
        arn = runner.run_async(input=json.dumps(order_of()), execution_timeout=60)
        assert outcome(runner.wait_for_result(arn, timeout=60))["status"] == "COMPLETED"


@pytest.mark.parametrize(
    ("speed", "wall", "ticks", "seconds"),
    [
        (20, 5, 5, 100),
        (1, 3600, 1, 3600),  # スリープしていた
        (1, -86400, 5, 5),  # 壁時計が戻された
    ],
)
def test_clock_counts_sleep_and_never_goes_back(
    monkeypatch: pytest.MonkeyPatch, speed: float, wall: float, ticks: float, seconds: float
) -> None:
    walls = [NOW, NOW, NOW + timedelta(seconds=wall)]
    monkeypatch.setattr(support, "datetime", mock.Mock(**{"now.side_effect": walls}))
    monkeypatch.setattr(support, "time", mock.Mock(**{"monotonic.side_effect": [7, 7, 7 + ticks]}))
    clock = OrderClock(speed)
    before = clock.now()
    assert (clock.now() - before).total_seconds() == seconds
