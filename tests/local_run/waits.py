"""実行が何を、いつまで待っているかと、オペレーションの呼び名。"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from aws_durable_execution_sdk_python.lambda_service import OperationStatus
from aws_durable_execution_sdk_python_testing.execution import Execution

FOREVER = datetime(9999, 1, 1, tzinfo=UTC)


def label(operation: Any, operations: Mapping[str, Any]) -> str:
    """オペレーションの名前。なければ種類。コンテキストの中なら、コンテキストの名前に続ける。"""
    own = str(operation.name or operation.sub_type or operation.operation_type.value)
    parent = operations.get(operation.parent_id)
    if not parent:
        return own
    return f"{label(parent, operations)}/{own.removeprefix(f'{parent.name} ')}"


@dataclass(frozen=True)
class Wait:
    """待機、再試行、コールバックのどれか 1 つ。期限のないコールバックの due は FOREVER。"""

    label: str
    due: datetime
    callback_id: str = ""
    retry: bool = False


def waits_of(execution: Execution) -> list[Wait]:
    """待っているものを、期限の早い順に返す。"""
    found = []
    operations = {operation.operation_id: operation for operation in execution.operations}
    options = {update.operation_id: update.callback_options for update in execution.updates[::-1]}
    for key, operation in operations.items():
        name, started = label(operation, operations), operation.status is OperationStatus.STARTED
        step = operation.step_details
        if started and (wait := operation.wait_details) and wait.scheduled_end_timestamp:
            found.append(Wait(name, wait.scheduled_end_timestamp))
        elif step and step.next_attempt_timestamp and operation.status is OperationStatus.PENDING:
            found.append(Wait(name, step.next_attempt_timestamp, retry=True))
        elif started and (callback := operation.callback_details):
            limits = options[key]
            assert limits
            assert operation.start_timestamp
            seconds = filter(None, (limits.timeout_seconds, limits.heartbeat_timeout_seconds))
            first = min(seconds, default=0)  # 0 は、期限がないこと
            due = operation.start_timestamp + timedelta(seconds=first) if first else FOREVER
            name = name.removesuffix("/create callback id")  # wait_for_callback
            found.append(Wait(name, due, callback.callback_id))
    return sorted(found, key=lambda wait: wait.due)
