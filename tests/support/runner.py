"""公式ローカルランナーを、不具合の回避策と、速く進む時計を付けて使う。

ここを import しても、ランナーそのものは変わらない。変わるのは LocalRunner だけ。
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

from aws_durable_execution_sdk_python_testing import runner
from aws_durable_execution_sdk_python_testing.clock import Clock, RealClock, SkipClock
from aws_durable_execution_sdk_python_testing.executor import Executor
from aws_durable_execution_sdk_python_testing.scheduler import Scheduler


class ReliableExecutor(Executor):
    """待機や再試行の時刻が来た実行を、必ずもう一度呼び出す。

    ランナー 1.4.0 は、操作を完了してから呼び出しを予約するまでの間にタイマーを取り消されると、
    その実行を二度と呼び出さない（lost wakeup）。混んだ機械では注文が RUNNING のまま残るので、
    取り消されない場所で呼び出しを予約する。_fire_due_operations と _invoke_execution は、
    ランナーの非公開 API。
    """

    def _fire_due_operations(self, execution_arn: str) -> bool:
        if super()._fire_due_operations(execution_arn):
            self._invoke_execution(execution_arn)
        return False  # 呼び出しは予約した


class FastClock:
    """実時間の speed 倍で進む時計。FastScheduler と組で使う。

    飛ばす時計（SkipClock）と違い、出来事の順番が変わらない。origin（UNIX 時刻）を同じにすれば、
    別のプロセスとも同じ時刻になる。
    """

    def __init__(self, speed: float, origin: float | None = None) -> None:
        self.speed = speed
        self.origin = datetime.now(UTC) if origin is None else datetime.fromtimestamp(origin, UTC)

    def now(self) -> datetime:
        return self.origin + (datetime.now(UTC) - self.origin) * self.speed

    def arm(self, wake: datetime) -> float:
        """この時計での秒数を返す。実時間に縮めるのは FastScheduler。"""
        return max((wake - self.now()) / timedelta(seconds=1), 0.0)


class FastScheduler(Scheduler):
    """どの待ち時間も 1/speed にする。時計を通らないタイムアウトも、ここは通る。"""

    def __init__(self, speed: float) -> None:
        super().__init__()
        self.speed = speed

    def call_later(
        self, func: Callable[[], Any], delay: float = 0, *args: Any, **kwargs: Any
    ) -> Any:
        return super().call_later(func, delay / self.speed, *args, **kwargs)


class LocalRunner(runner.DurableFunctionTestRunner):
    """回避策を付けた公式ランナー。clock を渡さなければ、待ち時間を飛ばす。"""

    def __init__(
        self, handler: Callable[..., Any], *, clock: Clock | None = None, **options: Any
    ) -> None:
        clock = clock or SkipClock()
        speed = getattr(clock, "speed", 1)
        # ランナーには Executor と時計を選ぶ公開 API がない。差し替える場所はここだけ。
        with mock.patch.multiple(
            runner,
            Executor=ReliableExecutor,
            RealClock=lambda: clock,
            Scheduler=lambda: FastScheduler(speed),
        ):
            super().__init__(handler, skip_time=False, **options)


__all__ = ["FastClock", "FastScheduler", "LocalRunner", "RealClock", "ReliableExecutor"]
