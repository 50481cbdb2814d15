"""公式ランナーを一つのリージョンの durable 実行の置き場にする。

時計、再試行、チェックポイント、コールバック、履歴はすべてランナーのもの。ここで足すのは、
本物の形の ARN、名前の冪等性、版ごとの一覧、そしてハンドラーをプロセスで走らせること。
"""

import json
import operator
import threading
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

from aws_durable_execution_sdk_python.execution import DurableExecutionInvocationInput
from aws_durable_execution_sdk_python.lambda_service import ErrorObject
from aws_durable_execution_sdk_python_testing.checkpoint.processor import CheckpointProcessor
from aws_durable_execution_sdk_python_testing.child_dispatcher import (
    ChainedInvokeRequest,
    ChildOutcome,
    DispatchResult,
    FunctionTarget,
    RunInvocation,
    StartChild,
    failed_to_start,
)
from aws_durable_execution_sdk_python_testing.clock import RealClock, SkipClock
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

from tests.steady import SteadyExecutor

from . import ACCOUNT
from .errors import AwsError, FunctionError
from .functions import Function, find_function
from .workers import Workers

AT_ONCE = 12
UNQUALIFIED = "You cannot invoke a durable function using an unqualified ARN"
Query = dict[str, list[str]]


class Store(InMemoryExecutionStore):
    """ランナーの置き場。実行が誰の目にも触れないうちに、本物の形の ARN を与える。"""

    def __init__(self, region: str, report: Callable[[str], None]) -> None:
        super().__init__()
        self.region, self.report = region, report
        self.ended: dict[str, threading.Event] = {}

    def save(self, execution: Execution) -> None:
        if not execution.durable_execution_arn.startswith("arn:"):
            # SDK は ARN の最後の部分を EXECUTION 操作の ID と見て、入力をそこから読む。
            start = execution.start_input
            path = f"/durable-execution/{start.execution_name}/{start.invocation_id}"
            execution.durable_execution_arn = execution.function_arn(self.region) + path
            self.ended[execution.durable_execution_arn] = threading.Event()
        super().save(execution)
        ended = self.ended[execution.durable_execution_arn]
        if execution.is_complete and not ended.is_set():
            ended.set()
            start = execution.start_input
            where = f"{start.function_name}:{start.function_qualifier}"
            self.report(f"{where}  {start.execution_name}  実行終了 {status(execution)}")

    update = save


class ProcessInvoker(LambdaInvoker):
    """ランナーがハンドラーを呼ぶところ。HTTP で呼び返さず、ワーカープロセスへ直に渡す。"""

    def __init__(self, region: str, store: Store, workers: Workers) -> None:
        super().__init__(lambda_client=None)
        self.region, self.store, self.workers = region, store, workers

    def invoke(
        self, function_name: str, input: DurableExecutionInvocationInput, *_: Any, **__: Any
    ) -> InvokeResponse:
        start = self.store.load(input.durable_execution_arn).start_input
        try:
            function = find_function(self.region, start.function_name, start.function_qualifier)
        except AwsError as error:
            raise ResourceNotFoundException(error.message) from error
        if function.identity != owner(start):
            raise ResourceNotFoundException(f"Function not found: {function_name}")
        event = json.dumps(input.to_json_dict())
        try:
            answer, request_id = self.workers.invoke(function, event, start.execution_name)
        except FunctionError as error:
            # ランナーは例外のクラス名を ErrorType にする。組み込みならモジュール名は付かない。
            kind = type(error.payload["errorType"], (Exception,), {"__module__": "builtins"})
            raise kind(str(error)) from error
        return InvokeResponse.from_payload(answer.encode(), request_id)


class Dispatcher:
    """context.invoke の行き先: durable なら子の実行、そうでなければ一度の呼び出し。"""

    def __init__(self, region: str, workers: Workers) -> None:
        self.region, self.workers = region, workers

    def preflight(self, target: FunctionTarget) -> ChildOutcome | None:
        try:
            function = find_function(self.region, target.name, target.qualifier)
        except AwsError as error:
            return failed_to_start(error.message, error.code).outcome
        if function.durable_config and target.qualifier is None:
            return failed_to_start(UNQUALIFIED, "InvalidParameterValueException").outcome
        return None

    def dispatch(self, request: ChainedInvokeRequest) -> DispatchResult:
        function = find_function(self.region, request.function_name, request.qualifier)
        if function.durable_config:
            return StartChild(start_input(function, str(uuid.uuid4()), request.payload or "{}"))
        return RunInvocation(lambda: self._run(function, request.payload))

    def _run(self, function: Function, payload: str | None) -> ChildOutcome:
        try:
            return ChildOutcome(result=self.workers.invoke(function, payload or "{}", "-")[0])
        except FunctionError as error:
            kind = error.payload["errorType"]
            return ChildOutcome(error=ErrorObject(str(error), kind, None, None))


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
        self.invoker = ProcessInvoker(region, self.store, workers)
        self.executor = SteadyExecutor(
            store=self.store,
            scheduler=self.scheduler,
            invoker=self.invoker,
            checkpoint_processor=processor,
            # 関数の Timeout はワーカーの側で守る。ここは順番待ちの時間も数えるので長く取る。
            invocation_timeout_seconds=86_400,
            registry=self.registry,
            clock=clock,
            child_dispatcher=Dispatcher(region, workers),
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
        self.executor.shutdown()
        self.registry.shutdown()
        self.scheduler.stop()  # type: ignore[no-untyped-call]

    def start(self, function: Function, name: str, payload: str) -> Execution:
        """同じ名前と同じ入力は同じ実行。名前が同じで入力が違えば断る。"""
        key = (function.identity, name)
        with self.lock:
            if key not in self.names:
                arn = self.executor.start_execution(
                    start_input(function, name, payload)
                ).execution_arn
                self.names[key] = self.store.load(str(arn))
            execution = self.names[key]
        if execution.start_input.input != payload:
            message = f"A durable execution named {name} was already started with another payload"
            raise AwsError(409, "DurableExecutionAlreadyStartedException", message)
        return execution

    def wait(self, execution: Execution, seconds: float) -> None:
        self.store.ended[execution.durable_execution_arn].wait(seconds)

    def describe(self, arn: str, query: Query) -> dict[str, Any]:
        """GetDurableExecution。ランナーの答えに、AWS が文書にしている残りの項目を足す。"""
        answer = self.executor.get_execution_details(arn).to_dict()
        start = self.store.load(arn).start_input
        answer["DurableConfig"] = {
            "ExecutionTimeout": start.execution_timeout_seconds,
            "RetentionPeriodInDays": start.execution_retention_period_days,
        }
        if "EndTimestamp" not in answer:
            end = answer["StartTimestamp"].timestamp() + start.execution_timeout_seconds
            answer["ExpectedExecutionTimeoutTimestamp"] = end
        answer["ExecutionDataIncluded"] = query.get("IncludeExecutionData") != ["false"]
        if not answer["ExecutionDataIncluded"]:
            for key in ("InputPayload", "Result", "Error"):
                answer.pop(key, None)
        return answer

    def list(self, function: Function, version: str | None, query: Query) -> dict[str, Any]:
        """ランナーの一覧は版も複数の状態も見ないので、並べ方も含めてここで選ぶ。"""

        def first(key: str, default: str = "") -> str:
            return query.get(key, [default])[0]

        def chosen(execution: Execution) -> bool:
            start = execution.start_input
            return (
                owner(start) == function.identity
                and version in (None, start.function_qualifier)
                and first("DurableExecutionName", start.execution_name) == start.execution_name
                and status(execution) in query.get("Statuses", [status(execution)])
            )

        every = [
            ExecutionSummary.from_execution(e, status(e), self.region).to_dict()
            for e in self.store.list_all()
            if chosen(e)
        ]
        for key, keep in (("StartedAfter", operator.ge), ("StartedBefore", operator.le)):
            if key in query:
                moment = datetime.fromisoformat(first(key))
                every = [e for e in every if keep(e["StartTimestamp"], moment)]
        every.sort(key=lambda e: e["StartTimestamp"], reverse=first("ReverseOrder") != "true")
        begin = int(first("Marker", "0"))
        end = begin + int(first("MaxItems", "100"))
        following = {"NextMarker": str(end)} if end < len(every) else {}
        return {"DurableExecutions": every[begin:end], **following}

    def require_open_callback(self, callback_id: str) -> None:
        """知らないコールバックと、もう答えの要らないコールバックを断る。"""
        try:
            execution = self.store.load(CallbackToken.from_str(callback_id).execution_arn)
            _, operation = execution.find_callback_operation(callback_id)
        except (ValueError, KeyError, AwsApiException) as error:
            message = "The callback does not exist."
            raise AwsError(404, "ResourceNotFoundException", message) from error
        if execution.is_complete or operation.status.value != "STARTED":
            message = "The callback has already been closed."
            raise AwsError(400, "CallbackTimeoutException", message)


def start_input(function: Function, name: str, payload: str) -> StartDurableExecutionInput:
    config = function.durable_config or {}
    return StartDurableExecutionInput(
        account_id=ACCOUNT,
        function_name=function.function_name,
        function_qualifier=str(function.version),
        execution_name=name,
        execution_timeout_seconds=config["ExecutionTimeout"],
        execution_retention_period_days=config["RetentionPeriodInDays"],
        trace_fields={"owner": function.identity},
        input=payload,
    )


def owner(start: StartDurableExecutionInput) -> str:
    return str((start.trace_fields or {}).get("owner"))


def status(execution: Execution) -> str:
    return execution.current_status().value
