"""注文の経過を、起きたときに 1 行ずつ表示する。"""

import logging
import math
from datetime import datetime
from pathlib import Path
from types import ModuleType

from aws_durable_execution_sdk_python.lambda_service import OperationStatus
from aws_durable_execution_sdk_python.plugin import (
    DurableInstrumentationPlugin,
    InvocationEndInfo,
    InvocationStartInfo,
    InvocationStatus,
    UserFunctionEndInfo,
    UserFunctionOutcome,
)

from .record import OrderStore
from .screen import say, stop


class Progress(DurableInstrumentationPlugin, logging.Handler):
    """ハンドラーの呼び出し、リプレイ、待機、ステップのログを、そのつど 1 行ずつ表示する。

    時刻は、注文の開始からの秒数。idle は、ハンドラーが動いていないことを示す。
    """

    def __init__(self, app: ModuleType, store: OrderStore) -> None:
        super().__init__()
        self.app, self.store, self.clock = app, store, store.clock
        self.idle = False
        self.started = self.clock.now()

    def show(self, text: str) -> None:
        say(f"{(self.clock.now() - self.started).total_seconds():5.1f} 秒  {text}")

    def create_plugin(self, info: InvocationStartInfo) -> "Progress":
        return self

    def on_invocation_start(self, info: InvocationStartInfo) -> None:
        assert info.execution_start_time
        self.idle, self.started = False, info.execution_start_time
        number = self.store.began()
        self.show(f"呼び出し {number} 回目" + ("" if info.is_first_invocation else ": リプレイ"))
        done = [
            operation.name
            for operation in info.operations.values()
            if operation.status is OperationStatus.SUCCEEDED and operation.name
        ]
        if done:
            self.show(f"  記録済み: {', '.join(done)}")

    def emit(self, record: logging.LogRecord) -> None:
        step = getattr(record, "operationName", None)
        if step or record.name == self.app.__name__:
            try:
                message = record.getMessage()
            except Exception:  # noqa: BLE001 ログの書き間違いで、注文を失敗させない
                return self.handleError(record)
            self.show(f"  {step or '':14} {message}")

    def on_user_function_end(self, info: UserFunctionEndInfo) -> None:
        if info.outcome is UserFunctionOutcome.FAILED and info.error:
            retryable = [kind.__name__ for kind in self.app.RETRY.retryable_error_types]
            again = (info.error.type or "").rpartition(".")[2] in retryable
            which = f"{info.attempt} 回目は失敗" if again else "失敗"
            self.show(f"  {info.name:14} {which}: {info.error.message}")

    def on_invocation_end(self, info: InvocationEndInfo) -> None:
        error = (info.error and info.error.type) or ""
        if error.endswith(".NonDeterministicExecutionError"):
            name = Path(str(self.app.__file__)).name
            stop(
                f"{name} の処理の流れが、処理途中の注文の記録と一致しません。"
                f"{name} を元に戻すか、order_id を変えてください。",
                1,
            )
        self.store.ended()
        if info.status is InvocationStatus.PENDING:
            self.show_wait(str(info.execution_arn))
        else:
            self.show_end()
        self.idle = True

    def show_end(self) -> None:
        invocations = self.store.invocations()
        ran = [(end - begin).total_seconds() for begin, end in invocations if end]
        cut_off = len(invocations) - len(ran)
        total = (self.clock.now() - self.started).total_seconds()
        self.show(
            f"終了: 呼び出しは {len(invocations)} 回。"
            f"{total:.1f} 秒のうち、動いていたのは {sum(ran):.1f} 秒でした"
            + (f"（中断した {cut_off} 回は除く）" if cut_off else "")
        )

    def show_wait(self, arn: str) -> None:
        for operation in reversed(self.store.load(arn).operations):
            wait, step, status = operation.wait_details, operation.step_details, operation.status
            if wait and wait.scheduled_end_timestamp and status is OperationStatus.STARTED:
                left = self.seconds_until(wait.scheduled_end_timestamp)
                what = f"あと {left} 秒待ちます" if left else "すぐに再開します"
            elif step and step.next_attempt_timestamp and status is OperationStatus.PENDING:
                left = self.seconds_until(step.next_attempt_timestamp)
                what = f"{left} 秒後に再試行します" if left else "すぐに再試行します"
            elif operation.callback_details and status is OperationStatus.STARTED:
                what = "承認者の回答を待ちます"
            else:
                continue
            return self.show(f"{operation.name}: {what}。その間、ハンドラーは動きません")

    def seconds_until(self, moment: datetime) -> int:
        return max(math.ceil((moment - self.clock.now()).total_seconds()), 0)
