"""ハンドラーとランナーの間に入り、チェックポイント API の呼び出しを通すクライアント。"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aws_durable_execution_sdk_python.execution import DurableExecutionInvocationInputWithClient
from aws_durable_execution_sdk_python.lambda_service import (
    CheckpointOutput,
    DurableServiceClient,
    OperationUpdate,
    StateOutput,
)
from aws_durable_execution_sdk_python_testing.executor import Executor


@dataclass
class Client(DurableServiceClient):
    """handler の代わりにランナーに渡す。"""

    handler: Callable[[Any, Any], Any]
    service: DurableServiceClient | None = None

    def __call__(self, event: DurableExecutionInvocationInputWithClient, context: Any) -> Any:
        self.service = event.service_client
        return self.handler(replace(event, service_client=self), context)

    def checkpoint(self, *_: Any, **call: Any) -> CheckpointOutput:
        assert self.service
        return self.service.checkpoint(**call)

    def get_execution_state(self, *_: Any, **call: Any) -> StateOutput:
        assert self.service
        return self.service.get_execution_state(**call)


def is_early_start(updates: Sequence[OperationUpdate]) -> bool:
    """ステップの START だけの呼び出しか。

    すぐに終わるステップの START は SUCCEED と同じ呼び出しで送られるが、負荷の高いマシンでは先に
    送られることがある。だから、どこでも数えない。
    """
    kinds = {(update.action.value, update.operation_type.value) for update in updates}
    return kinds == {("START", "STEP")}


def restart_at_once(monkeypatch: Any) -> None:
    """異常終了した呼び出しを、間隔を空けずに再試行させる。"""
    monkeypatch.setattr(Executor, "RETRY_BACKOFF_SECONDS", 0)  # 非公開 API。公開の設定がない
