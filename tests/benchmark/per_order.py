"""注文 1 件の費用: 課金される durable オペレーション、呼び出し、バイト数など。"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from aws_durable_execution_sdk_python.execution import DurableExecutionInvocationInputWithClient
from aws_durable_execution_sdk_python.lambda_service import (
    CheckpointOutput,
    DurableServiceClient,
    OperationAction,
    StateOutput,
)

from tests.local_run import README_ORDER
from tests.local_run.runner import LocalRunner

# 結果を入力から計算し直せず、残すほかないステップ
IRREPLACEABLE = {"check_stock", "pay"}


@dataclass
class Meter(DurableServiceClient):
    """ハンドラーとランナーの間に入り、通るものを記録する。"""

    handler: Callable[[Any, Any], Any]
    calls: list[list[dict[str, Any]]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    service: DurableServiceClient | None = None

    def __call__(self, event: DurableExecutionInvocationInputWithClient, context: Any) -> Any:
        self.service = event.service_client
        began = time.perf_counter()
        try:
            return self.handler(replace(event, service_client=self), context)
        finally:
            self.seconds.append(time.perf_counter() - began)

    def checkpoint(self, *_: Any, **call: Any) -> CheckpointOutput:
        assert self.service
        self.calls.append([dict(update.to_dict()) for update in call["updates"]])
        return self.service.checkpoint(**call)

    def get_execution_state(self, *_: Any, **call: Any) -> StateOutput:
        assert self.service
        return self.service.get_execution_state(**call)


@dataclass(frozen=True)
class Cost:
    """注文 1 件の費用。バイト数は botocore が送る JSON の長さ。"""

    operations: int  # 課金されるもの
    calls: int
    invocations: int
    written: int
    written_floor: int
    stored: int  # 書き込みと、入力と、結果
    seconds: list[float]  # 呼び出しごと
    status: str


def measure(
    handler: Callable[[Any, Any], Any], order: dict[str, Any], answer: bytes | None = None
) -> Cost:
    """待ち時間を飛ばして 1 件を完了まで実行し、費用を数える。"""
    meter = Meter(handler)
    entered = json.dumps(order)
    with LocalRunner(meter, poll_interval=0.01) as runner:
        arn = runner.run_async(input=entered, execution_timeout=30)
        if answer is not None:
            runner.send_callback_success(runner.wait_for_callback(arn), answer)
        result = runner.wait_for_result(arn, timeout=30).result or "{}"
    updates = [update for call in meter.calls for update in call]
    written = sum(map(size, meter.calls))
    return Cost(
        # START は、ステップの試行、待機、コールバック、子コンテキストごとに 1 つ
        operations=1 + sum(update["Action"] == OperationAction.START.value for update in updates),
        calls=len(meter.calls),
        invocations=len(meter.seconds),
        written=written,
        written_floor=sum(size([least(update) for update in call]) for call in meter.calls),
        stored=written + len(entered) + len(result.encode()),
        seconds=meter.seconds,
        status=json.loads(result).get("status", ""),
    )


def order_of_lines(lines: int) -> dict[str, Any]:
    """合計の同じ、lines 行の注文。合計の桁数でバイト数が変わらないように。"""
    line = {"product_id": "prod-001", "name": "Widget", "price": 10_000 // lines, "quantity": 2}
    return README_ORDER | {"items": [line] * lines}


def size(value: object) -> int:
    return len(json.dumps(value))


def least(update: dict[str, Any]) -> dict[str, Any]:
    """残すほかない値だけを、空白のない JSON で持つ同じ操作。"""
    if "Payload" not in update:
        return update
    value = json.loads(update["Payload"]) if update["Name"] in IRREPLACEABLE else None
    return update | {"Payload": json.dumps(value, ensure_ascii=False, separators=(",", ":"))}
