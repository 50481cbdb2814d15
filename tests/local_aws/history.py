"""公式ランナーの履歴に、AWS だけが記録する項目を補う。"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from aws_durable_execution_sdk_python.lambda_service import OperationUpdate
from aws_durable_execution_sdk_python_testing.execution import Execution
from aws_durable_execution_sdk_python_testing.model import Event, InvocationCompletedDetails


@dataclass(frozen=True)
class FailedInvocation(InvocationCompletedDetails):
    """結果を返さずに終了した呼び出し。ランナーの型にはエラーのフィールドがない。"""

    error: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"Error": {"Payload": self.error, "Truncated": False}}


def as_aws_writes(events: list[Event], execution: Execution) -> list[dict[str, Any]]:
    """events は、execution の最初からの全イベント。"""
    # ランナーと同じく、終了した順。
    invocations = iter(sorted(execution.invocation_completions, key=lambda i: i.end_timestamp))
    started: defaultdict[str, list[Any]] = defaultdict(list)
    ended: defaultdict[str, list[Any]] = defaultdict(list)
    for update in map(OperationUpdate.to_dict, execution.updates):
        (started if update["Action"] == "START" else ended)[update["Id"]].append(update)
    attempts = Counter[str]()
    written = []
    for event in events:
        entry, operation = event.to_dict(), str(event.operation_id)
        details = entry.setdefault(f"{event.event_type}Details", {})
        if event.event_type == "InvocationCompleted":
            details |= next(invocations).to_dict()
        elif event.event_type == "CallbackStarted":
            for key, seconds in started[operation][0].get("CallbackOptions", {}).items():
                details |= {key.removesuffix("Seconds"): seconds} if seconds else {}
        elif event.event_type in ("StepSucceeded", "StepFailed"):
            update = ended[operation][attempts[operation]]
            attempts[operation] += 1
            retry = {"CurrentAttempt": attempts[operation], **update.get("StepOptions", {})}
            details["RetryDetails"] = retry
            if "Payload" in update:
                details["Result"] = {"Payload": update["Payload"], "Truncated": False}
        written.append(entry)
    return written
