"""公式ランナーを一つのリージョンの durable 実行の置き場にする。

時計、再試行、チェックポイント、コールバック、履歴はすべてランナーのもの。ここで足すのは、
本物の形の ARN、名前の冪等性、版ごとの一覧、そしてハンドラーをプロセスで走らせること。
"""

import json
import threading
from collections.abc import Callable
from typing import Any

from aws_durable_execution_sdk_python.execution import DurableExecutionInvocationInput
from aws_durable_execution_sdk_python.lambda_service import ErrorObject, OperationUpdate
from aws_durable_execution_sdk_python_testing.checkpoint.processor import CheckpointProcessor
from aws_durable_execution_sdk_python_testing.clock import Clock, RealClock, SkipClock
from aws_durable_execution_sdk_python_testing.exceptions import (
    AwsApiException,
    ResourceNotFoundException,
)
from aws_durable_execution_sdk_python_testing.execution import Execution
from aws_durable_execution_sdk_python_testing.invoker import InvokeResponse, LambdaInvoker
from aws_durable_execution_sdk_python_testing.model import Execution as ExecutionSummary
from aws_durable_execution_sdk_python_testing.model import StartDurableExecutionInput
from aws_durable_execution_sdk_python_testing.scheduler import Scheduler
from aws_durable_execution_sdk_python_testing.stores.memory import InMemoryExecutionStore
from aws_durable_execution_sdk_python_testing.threads import DaemonThreadPool
from aws_durable_execution_sdk_python_testing.token import CallbackToken
from aws_durable_execution_sdk_python_testing.worker.registry import ExecutionRegistry

from tests.support.runner import ReliableExecutor

from . import ACCOUNT
from .errors import AwsError, FunctionError
from .functions import Function, find_function, named
from .history import FailedInvocation, as_aws_writes
from .workers import Workers

AT_ONCE = 12
EVERYTHING = 2**31
Params = dict[str, Any]


class Store(InMemoryExecutionStore):
    """ランナーの置き場。実行が誰の目にも触れないうちに、本物の形の ARN を与える。"""

    def __init__(self, region: str, report: Callable[[str], None]) -> None:
        super().__init__()
        self.region, self.report = region, report
        self.ended: set[str] = set()

    def save(self, execution: Execution) -> None:
        if not execution.durable_execution_arn.startswith("arn:"):
            # SDK は ARN の最後の部分を EXECUTION 操作の ID と見て、入力をそこから読む。
            start = execution.start_input
            path = f"/durable-execution/{start.execution_name}/{start.invocation_id}"
            execution.durable_execution_arn = execution.function_arn(self.region) + path
        super().save(execution)
        if execution.is_complete and execution.durable_execution_arn not in self.ended:
            self.ended.add(execution.durable_execution_arn)
            start = execution.start_input
            where = f"{start.function_name}:{start.function_qualifier}"
            self.report(f"{where}  {start.execution_name}  実行終了 {status(execution)}")

    update = save


class ProcessInvoker(LambdaInvoker):
    """ランナーがハンドラーを呼ぶところ。HTTP で呼び返さず、ワーカープロセスへ直に渡す。"""

    def __init__(self, region: str, store: Store, workers: Workers, clock: Clock) -> None:
        super().__init__(lambda_client=None)
        self.region, self.store, self.workers, self.clock = region, store, workers, clock

    def invoke(
        self, function_name: str, input: DurableExecutionInvocationInput, *_: Any, **__: Any
    ) -> InvokeResponse:
        execution = self.store.load(input.durable_execution_arn)
        start = execution.start_input
        try:
            function = find_function(self.region, start.function_name, start.function_qualifier)
        except AwsError as error:
            raise ResourceNotFoundException(error.message) from error
        if function.identity != owner(start):
            raise ResourceNotFoundException(f"Function not found: {function_name}")
        event = json.dumps(input.to_json_dict())
        began = self.clock.now()
        try:
            answer, request_id = self.workers.invoke(function, event, start.execution_name)
        except FunctionError as error:
            # ランナーは、答えを返さなかった呼び出しを記録しない。
            failure = {"ErrorType": error.kind, "ErrorMessage": str(error)}
            execution.invocation_completions.append(
                FailedInvocation(began, self.clock.now(), error.request_id, failure)
            )
            # ランナーは例外のクラス名を ErrorType にする。組み込みならモジュール名は付かない。
            raise type(error.kind, (Exception,), {"__module__": "builtins"})(str(error)) from error
        return InvokeResponse.from_payload(answer.encode(), request_id)


class Executions:
    """一つのリージョンの durable 実行。"""

    def __init__(
        self, region: str, workers: Workers, report: Callable[[str], None], skip_time: bool
    ) -> None:
        self.region = region
        self.store = Store(region, report)
        self.scheduler = Scheduler()
        self.registry = ExecutionRegistry(self.store, self.scheduler)
        clock = SkipClock() if skip_time else RealClock()
        processor = CheckpointProcessor(self.store, self.scheduler, clock=clock)
        self.invoker = ProcessInvoker(region, self.store, workers, clock)
        self.executor = ReliableExecutor(
            store=self.store,
            scheduler=self.scheduler,
            invoker=self.invoker,
            checkpoint_processor=processor,
            # 関数の Timeout はワーカーの側で守る。ここは順番待ちの時間も数えるので長く取る。
            invocation_timeout_seconds=86_400,
            registry=self.registry,
            clock=clock,
            region=region,
        )
        # ランナーは CPU + 4 件までしか同時に呼ばず、広げる公開の口がない。呼び出しの終わりの
        # 0.1 秒は待つだけなので、ここだけで広げる。workers.py の WARM_LIMIT と合わせること。
        self.executor._invocation_pool = DaemonThreadPool(max_workers=AT_ONCE)
        if skip_time:
            self.executor.RETRY_BACKOFF_SECONDS = 0
        self.names: dict[tuple[str, str], Execution] = {}
        self.lock = threading.Lock()
        self.scheduler.start()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self.registry.shutdown()
        self.scheduler.stop()  # type: ignore[no-untyped-call]

    def start(self, function: Function, name: str, payload: str) -> Execution:
        """同じ名前と同じ入力は同じ実行。名前が同じで入力が違えば断る。"""
        config = function.durable_config or {}
        asked = StartDurableExecutionInput(
            account_id=ACCOUNT,
            function_name=function.function_name,
            function_qualifier=str(function.version),
            execution_name=name,
            execution_timeout_seconds=config["ExecutionTimeout"],
            execution_retention_period_days=config["RetentionPeriodInDays"],
            trace_fields={"owner": function.identity},
            input=payload,
        )
        key = (function.identity, name)
        with self.lock:
            if key not in self.names:
                arn = self.executor.start_execution(asked).execution_arn
                self.names[key] = self.store.load(str(arn))
            execution = self.names[key]
        if execution.start_input.input != payload:
            message = f"A durable execution named {name} was already started with another payload"
            raise AwsError(409, "DurableExecutionAlreadyStartedException", message)
        return execution

    def describe(self, params: Params) -> dict[str, Any]:
        """ランナーの答えに、AWS が文書にしている残りの項目を足す。"""
        arn = params["DurableExecutionArn"]
        answer = self.executor.get_execution_details(arn).to_dict()
        start = self.store.load(arn).start_input
        answer["DurableConfig"] = {
            "ExecutionTimeout": start.execution_timeout_seconds,
            "RetentionPeriodInDays": start.execution_retention_period_days,
        }
        if "EndTimestamp" not in answer:
            end = answer["StartTimestamp"].timestamp() + start.execution_timeout_seconds
            answer["ExpectedExecutionTimeoutTimestamp"] = end
        answer["ExecutionDataIncluded"] = params.get("IncludeExecutionData", True)
        if not answer["ExecutionDataIncluded"]:
            for key in ("InputPayload", "Result", "Error"):
                answer.pop(key, None)
        return answer

    def history(self, params: Params) -> dict[str, Any]:
        arn = params["DurableExecutionArn"]
        events = self.executor.get_execution_history(arn, True, max_items=EVERYTHING).events
        written = as_aws_writes(events, self.store.load(arn))
        if not params.get("IncludeExecutionData", True):
            for part in ("Input", "Result", "Error"):
                for event in written:
                    event[f"{event['EventType']}Details"].get(part, {}).pop("Payload", None)
        if params.get("ReverseOrder"):
            written.reverse()
        return page("Events", written, params)

    def list(self, params: Params) -> dict[str, Any]:
        """ランナーの一覧は版も複数の状態も見ないので、並べ方も含めてここで選ぶ。"""
        name, version = named(params["FunctionName"], params.get("Qualifier"))
        function = find_function(self.region, name, version)

        every = []
        for execution in self.store.list_all():
            start, state = execution.start_input, status(execution)
            entry = ExecutionSummary.from_execution(execution, state, self.region).to_dict()
            began, called = entry["StartTimestamp"], start.execution_name
            if (
                owner(start) == function.identity
                and version in (None, start.function_qualifier)
                and called == params.get("DurableExecutionName", called)
                and state in params.get("Statuses", [state])
                and params.get("StartedAfter", began) <= began <= params.get("StartedBefore", began)
            ):
                every.append(entry)
        every.sort(key=lambda e: e["StartTimestamp"], reverse=not params.get("ReverseOrder"))
        return page("DurableExecutions", every, params)

    def stop(self, params: Params) -> dict[str, Any]:
        error = ErrorObject.from_dict(params["Error"]) if "Error" in params else None
        return self.executor.stop_execution(params["DurableExecutionArn"], error).to_dict()

    def checkpoint(self, params: Params) -> dict[str, Any]:
        arn, token = params["DurableExecutionArn"], params["CheckpointToken"]
        updates = [OperationUpdate.from_dict(update) for update in params.get("Updates", [])]
        client = params.get("ClientToken")
        return self.executor.checkpoint_execution(arn, token, updates, client).to_dict()

    def state(self, params: Params) -> dict[str, Any]:
        arn, token = params["DurableExecutionArn"], params["CheckpointToken"]
        marker, most = params.get("Marker") or None, params.get("MaxItems") or None
        return self.executor.get_execution_state(arn, token, marker, most).to_dict()

    def answer(self, params: Params, send: Callable[..., Any], *answer: Any) -> dict[str, Any]:
        """知らないコールバックと、もう答えの要らないコールバックを断る。"""
        callback_id = params["CallbackId"]
        with self.lock:  # 同時に来た二つの答えも、一つだけが通る。
            try:
                execution = self.store.load(CallbackToken.from_str(callback_id).execution_arn)
                _, operation = execution.find_callback_operation(callback_id)
            except (ValueError, KeyError, TypeError, AwsApiException) as error:
                message = "The callback does not exist."
                raise AwsError(404, "ResourceNotFoundException", message) from error
            if execution.is_complete or operation.status.value != "STARTED":
                message = "The callback has already been closed."
                raise AwsError(400, "CallbackTimeoutException", message)
            send(callback_id, *answer)
        return {}


OPERATIONS: dict[str, Callable[[Executions, Params], dict[str, Any]]] = {
    "ListDurableExecutionsByFunction": Executions.list,
    "GetDurableExecution": Executions.describe,
    "GetDurableExecutionHistory": Executions.history,
    "GetDurableExecutionState": Executions.state,
    "CheckpointDurableExecution": Executions.checkpoint,
    "StopDurableExecution": Executions.stop,
    "SendDurableExecutionCallbackSuccess": lambda e, params: e.answer(
        params, e.executor.send_callback_success, params["Result"]
    ),
    "SendDurableExecutionCallbackFailure": lambda e, params: e.answer(
        params, e.executor.send_callback_failure, ErrorObject.from_dict(params.get("Error", {}))
    ),
    "SendDurableExecutionCallbackHeartbeat": lambda e, params: e.answer(
        params, e.executor.send_callback_heartbeat
    ),
}


def page(key: str, items: list[Any], params: Params) -> dict[str, Any]:
    begin = int(params.get("Marker") or 0)
    end = begin + (params.get("MaxItems") or 100)
    following = {"NextMarker": str(end)} if end < len(items) else {}
    return {key: items[begin:end], **following}


def owner(start: StartDurableExecutionInput) -> str:
    return str((start.trace_fields or {}).get("owner"))


def status(execution: Execution) -> str:
    return execution.current_status().value
