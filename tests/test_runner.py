"""公式ランナーに付けた回避策と時計。"""

import json
from datetime import UTC, datetime, timedelta

import pytest

import app
from tests.support import runner as support
from tests.support.flows import order_of, outcome
from tests.support.outside import OutsideServices
from tests.support.runner import LocalRunner, OrderClock, ReliableExecutor


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


class Wall:
    """テストが進めたり戻したりする、壁時計と経過時間。"""

    def __init__(self) -> None:
        self.wall, self.ticks = datetime(2026, 11, 26, tzinfo=UTC), 1000.0

    def now(self, zone: object) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.ticks

    def pass_time(self, wall: float, ticks: float) -> None:
        self.wall, self.ticks = self.wall + timedelta(seconds=wall), self.ticks + ticks


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    wall = Wall()
    monkeypatch.setattr(support, "datetime", wall)
    monkeypatch.setattr(support, "time", wall)
    return wall


@pytest.mark.parametrize(
    ("speed", "passed", "seconds"),
    [
        (1, (5, 5), 5),
        (20, (5, 5), 100),
        (1, (3600, 1), 3600),  # スリープしていた
        (1, (-86400, 5), 5),  # 壁時計が戻された
    ],
)
def test_clock_counts_sleep_and_never_goes_back(
    wall: Wall, speed: float, passed: tuple[float, float], seconds: float
) -> None:
    clock = OrderClock(speed)
    before = clock.now()
    wall.pass_time(*passed)
    assert (clock.now() - before).total_seconds() == seconds


def test_clock_goes_on_from_the_latest_known_time(wall: Wall) -> None:
    later = wall.wall + timedelta(days=1)
    assert OrderClock(start=later).now() == later
    assert OrderClock(start=wall.wall - timedelta(days=1)).now() == wall.wall
