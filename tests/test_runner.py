"""公式ランナーのタイマーが、済ませた操作の起動を取りこぼさないこと。"""

import json

import pytest

import app
from tests.conftest import OutsideWorld, order_of, outcome
from tests.support import runner as support
from tests.support.runner import LocalRunner, ReliableExecutor


class RearmedMeanwhile(ReliableExecutor):
    """操作を済ませた直後に、別のスレッドがタイマーを計り直したときと同じことを起こす。"""

    def _fire_due_operations(self, execution_arn: str) -> bool:
        completed = super()._fire_due_operations(execution_arn)
        self._schedule_earliest_pending(execution_arn)
        return completed


def test_timer_that_is_cancelled_after_its_work_still_invokes(
    world: OutsideWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "ReliableExecutor", RearmedMeanwhile)
    with LocalRunner(app.handler) as runner:
        arn = runner.run_async(input=json.dumps(order_of()), execution_timeout=20)
        assert outcome(runner.wait_for_result(arn, timeout=20))["status"] == "COMPLETED"
