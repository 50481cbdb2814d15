"""公式ランナーで durable execution を管理する。

タイマー、再試行、チェックポイント、コールバック、履歴はすべてランナーが担う。ここで追加するのは、
AWS と同じ形式の ARN、実行名によるべき等性、バージョンごとの一覧、ワーカーでのハンドラー実行。
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aws_durable_execution_sdk_python.execution import DurableExecutionInvocationInput
from aws_durable_execution_sdk_python.lambda_service import ErrorObject, OperationUpdate
from aws_durable_execution_sdk_python_testing import model
from aws_durable_execution_sdk_python_testing.checkpoint.processor import CheckpointProcessor
from aws_durable_execution_sdk_python_testing.exceptions import AwsApiException
from aws_durable_execution_sdk_python_testing.execution import Execution
from aws_durable_execution_sdk_python_testing.invoker import InvokeResponse, LambdaInvoker
from aws_durable_execution_sdk_python_testing.stores.memory import InMemoryExecutionStore
from aws_durable_execution_sdk_python_testing.token import CallbackToken
from aws_durable_execution_sdk_python_testing.worker.registry import ExecutionRegistry

from tests.local_run.runner import ClockScheduler, OrderClock, ReliableExecutor

from . import ACCOUNT
from .errors import AwsError
from .functions import Function, find_function, qualifier_in
from .workers import FunctionError, Workers

Params = dict[str, Any]  # Region は、署名のリージョン


@dataclass(frozen=True)
class FailedInvocation(model.InvocationCompletedDetails):
    """結果を返さずに終了した呼び出し。ランナーの型にはエラーのフィールドがない。"""

    error: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"Error": {"Payload": self.error, "Truncated": False}}


class Store(InMemoryExecutionStore):
    """ランナーのストア。実行が外部から参照される前に、AWS と同じ形式の ARN を付ける。"""

    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__()
        self.report = report
        self.ended: set[str] = set()

    def save(self, execution: Execution) -> None:
        start = execution.start_input
        if not execution.durable_execution_arn.startswith("arn:"):
            # SDK は ARN の末尾を EXECUTION オペレーションの ID とみなし、入力をそこから読む。
            execution.region = function_of(execution).region
            path = f"/durable-execution/{start.execution_name}/{start.invocation_id}"
            execution.durable_execution_arn = execution.function_arn(execution.region) + path
        super().save(execution)
        if execution.is_complete and execution.durable_execution_arn not in self.ended:
            self.ended.add(execution.durable_execution_arn)
            where = f"{start.function_name}:{start.function_qualifier}"
            self.report(f"{where}  {start.execution_name}  実行終了（{status(execution)}）")

    update = save


class Executions(LambdaInvoker):
    """ランナーと、ランナーからハンドラーを呼び出す部分（invoke）。"""

    def __init__(self, workers: Workers, clock: OrderClock, report: Callable[[str], None]) -> None:
        super().__init__(lambda_client=None)
        self.workers, self.clock, self.store = workers, clock, Store(report)
        self.scheduler = ClockScheduler(clock)
        self.registry = ExecutionRegistry(self.store, self.scheduler)
        self.executor = ReliableExecutor(
            store=self.store,
            scheduler=self.scheduler,
            invoker=self,
            checkpoint_processor=CheckpointProcessor(self.store, self.scheduler),
            registry=self.registry,
            clock=clock,
        )
        self.lock = threading.Lock()
        self.scheduler.start()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self.executor.shutdown()
        self.workers.close()
        self.registry.shutdown()
        self.scheduler.stop()  # type: ignore[no-untyped-call]

    def invoke(
        self, function_name: str, input: DurableExecutionInvocationInput, *_: Any, **__: Any
    ) -> InvokeResponse:
        """HTTP を介さず、ワーカープロセスに直接渡す。"""
        execution = self.store.load(input.durable_execution_arn)
        name, event = execution.start_input.execution_name, dict(input.to_json_dict())
        began = self.clock.now()
        try:
            answer, request_id = self.workers.invoke(function_of(execution), event, name)
        except FunctionError as error:
            # ランナーは、結果を返さなかった呼び出しを記録しない。
            kind, message, request_id = error.args
            failure = {"ErrorType": kind, "ErrorMessage": message}
            execution.invocation_completions.append(
                FailedInvocation(began, self.clock.now(), request_id, failure)
            )
            # ランナーは例外のクラス名を ErrorType にする。組み込みならモジュール名は付かない。
            raise type(kind, (Exception,), {"__module__": "builtins"})(message) from error
        return InvokeResponse.from_payload(answer.encode(), request_id)

    def start(self, function: Function, name: str, payload: str) -> Execution:
        """実行名と入力が同じなら既存の実行を返す。実行名が同じで入力が違えば拒否する。"""
        asked = model.StartDurableExecutionInput(
            account_id=ACCOUNT,
            function_name=function.function_name,
            function_qualifier=str(function.version),
            execution_name=name,
            execution_timeout_seconds=function.durable_config["ExecutionTimeout"],
            execution_retention_period_days=1,  # 停止するまで保持する
            trace_fields={"function": function},
            input=payload,
        )
        with self.lock:
            for execution in self.store.list_all():
                same = function_of(execution).identity == function.identity
                if same and execution.start_input.execution_name == name:
                    break
            else:
                return self.store.load(str(self.executor.start_execution(asked).execution_arn))
        if execution.start_input.input != payload:
            message = f"A durable execution named {name} was already started with another payload"
            raise AwsError(409, "DurableExecutionAlreadyStartedException", message)
        return execution

    def history(self, params: Params) -> dict[str, Any]:
        arn = params["DurableExecutionArn"]
        events = self.executor.get_execution_history(arn, True, max_items=2**31).events
        written = as_aws_writes(events, self.store.load(arn))
        return {"Events": written[:: -1 if params.get("ReverseOrder") else 1]}

    def list(self, params: Params) -> dict[str, Any]:
        """ランナーの一覧はバージョンや複数の Status で絞り込めないので、ここで行う。"""
        function, version = find_function(params), qualifier_in(params)
        found = [
            model.Execution.from_execution(execution, status(execution), function.region).to_dict()
            for execution in self.store.list_all()
            if function_of(execution).identity == function.identity
            and version in (None, execution.start_input.function_qualifier)
            and params.get("DurableExecutionName") in (None, execution.start_input.execution_name)
            and status(execution) in (params.get("Statuses") or [status(execution)])
        ]
        return {"DurableExecutions": found if params.get("ReverseOrder") else found[::-1]}

    def describe(self, params: Params) -> dict[str, Any]:
        return self.executor.get_execution_details(params["DurableExecutionArn"]).to_dict()

    def stop(self, params: Params) -> dict[str, Any]:
        arn = params["DurableExecutionArn"]
        return self.executor.stop_execution(arn, error_in(params)).to_dict()

    def checkpoint(self, params: Params) -> dict[str, Any]:
        arn, token = params["DurableExecutionArn"], params["CheckpointToken"]
        updates = [OperationUpdate.from_dict(update) for update in params.get("Updates", [])]
        return self.executor.checkpoint_execution(arn, token, updates).to_dict()

    def state(self, params: Params) -> dict[str, Any]:
        arn, token = params["DurableExecutionArn"], params["CheckpointToken"]
        marker, most = params.get("Marker") or None, params.get("MaxItems") or None
        return self.executor.get_execution_state(arn, token, marker, most).to_dict()

    def answer(self, params: Params, kind: str, *answer: Any) -> dict[str, Any]:
        """存在しないコールバックと、すでに完了したコールバックへの応答を拒否する。"""
        callback_id = params["CallbackId"]
        params.get("Result", b"").decode()  # UTF-8 でなければ ValueError。ランナーは 404 にする
        try:
            execution = self.store.load(CallbackToken.from_str(callback_id).execution_arn)
            _, operation = execution.find_callback_operation(callback_id)
        except (ValueError, KeyError, TypeError, AwsApiException) as error:
            message = "The callback does not exist."
            raise AwsError(404, "ResourceNotFoundException", message) from error
        if execution.is_complete or operation.status.value != "STARTED":
            message = "The callback has already been closed."
            raise AwsError(400, "CallbackTimeoutException", message)
        getattr(self.executor, f"send_callback_{kind}")(callback_id, *answer)
        return {}


OPERATIONS: dict[str, Callable[[Executions, Params], dict[str, Any]]] = {
    "ListDurableExecutionsByFunction": Executions.list,
    "GetDurableExecution": Executions.describe,
    "GetDurableExecutionHistory": Executions.history,
    "GetDurableExecutionState": Executions.state,
    "CheckpointDurableExecution": Executions.checkpoint,
    "StopDurableExecution": Executions.stop,
    "SendDurableExecutionCallbackSuccess": lambda e, p: e.answer(
        p, "success", p.get("Result", b"")
    ),
    "SendDurableExecutionCallbackFailure": lambda e, p: e.answer(p, "failure", error_in(p)),
    "SendDurableExecutionCallbackHeartbeat": lambda e, p: e.answer(p, "heartbeat"),
}


def as_aws_writes(events: list[model.Event], execution: Execution) -> list[dict[str, Any]]:
    """ランナーの履歴に、AWS だけが記録する項目を補う。events は最初からの全イベント。"""
    invocations = iter(execution.invocation_completions)
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


def error_in(params: Params) -> ErrorObject | None:
    return ErrorObject.from_dict(params["Error"]) if "Error" in params else None


def function_of(execution: Execution) -> Function:
    """実行が始まったときのバージョン。関数が更新されても、削除されても変わらない。"""
    function: Function = (execution.start_input.trace_fields or {})["function"]
    return function


def status(execution: Execution) -> str:
    return execution.current_status().value
