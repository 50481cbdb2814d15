"""公式ローカルランナーを、不具合の回避策と、注文の時計を付けて使う。"""

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from aws_durable_execution_sdk_python_testing import runner
from aws_durable_execution_sdk_python_testing.executor import Executor
from aws_durable_execution_sdk_python_testing.scheduler import Scheduler


class ReliableExecutor(Executor):
    """待機や再試行の時刻が来た実行を、必ずもう一度呼び出す。上書きするものは、非公開 API。

    ランナー 1.4.0 は、操作を完了してから呼び出しを予約するまでの間にタイマーを取り消されると、
    その実行を二度と呼び出さない（lost wakeup）。そこで、取り消されない場所で呼び出しを予約する。
    """

    def _fire_due_operations(self, execution_arn: str) -> bool:
        if super()._fire_due_operations(execution_arn):
            self._invoke_execution(execution_arn)
        return False  # 呼び出しは予約した


class OrderClock:
    """実時間の speed 倍で進み、戻らない時計。

    スリープした時間は進むが（壁時計で計る）、壁時計が戻されても戻らない（経過時間で計る）。
    start より前の時刻からは始まらない。タイマーが 1 秒おきに見るので、前に見てから 10 秒を超えて
    いれば、その間は何も動けなかった（Ctrl-Z、スリープ）。そのときは、先に jumped を呼び出す。
    """

    def __init__(self, speed: float = 1, start: datetime | None = None) -> None:
        self.speed = speed
        self._lock = threading.Lock()
        self._wall, self._ticks = datetime.now(UTC), time.monotonic()
        self._now = max(start or self._wall, self._wall)
        self.jumped: Callable[[], None] | None = None

    def now(self) -> datetime:
        with self._lock:
            wall, ticks = datetime.now(UTC), time.monotonic()
            passed = max(wall - self._wall, timedelta(seconds=ticks - self._ticks))
            if self.jumped and passed > timedelta(seconds=10):
                self.jumped()
            self._now += passed * self.speed
            self._wall, self._ticks = wall, ticks
            return self._now

    def arm(self, wake: datetime) -> float:
        """wake までの、この時計での秒数。実際に待つのは ClockScheduler。"""
        return max((wake - self.now()).total_seconds(), 0.0)


class ClockScheduler(Scheduler):
    """待ち時間を、どれも clock で計る。ランナーのタイムアウトは、時計を通らずここに来る。"""

    def __init__(self, clock: OrderClock) -> None:
        super().__init__()
        self.clock = clock

    def call_later(
        self, func: Callable[[], Any], delay: float = 0, *args: Any, **kwargs: Any
    ) -> Any:
        wake = self.clock.now() + timedelta(seconds=delay)

        async def when_due() -> Any:
            while left := self.clock.arm(wake):  # スリープから覚めたことに、1 秒以内に気付く
                await asyncio.sleep(min(left / self.clock.speed, 1))
            if inspect.iscoroutinefunction(func):
                return await func()
            return await asyncio.to_thread(func)

        return super().call_later(when_due if delay > 0 else func, 0, *args, **kwargs)


class LocalRunner(runner.DurableFunctionTestRunner):
    """回避策を付けた公式ランナー。clock を渡さなければ、待ち時間を飛ばす。"""

    def __init__(
        self, handler: Callable[..., Any], *, clock: OrderClock | None = None, **options: Any
    ) -> None:
        # ランナーには Executor、時計、Scheduler を選ぶ公開 API がないので、ここでだけ差し替える
        names, originals = vars(runner), dict(vars(runner))
        names["Executor"] = ReliableExecutor
        if clock:
            names.update(RealClock=lambda: clock, Scheduler=lambda: ClockScheduler(clock))
        try:
            super().__init__(handler, skip_time=clock is None, **options)
        finally:
            names.update(originals)
