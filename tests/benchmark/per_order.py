"""注文 1 件の費用: 課金操作、チェックポイント、起動、書き込み、リプレイ。公式ランナーで数える。"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from aws_durable_execution_sdk_python.execution import (
    DurableExecutionInvocationInputWithClient,
    InitialExecutionState,
)
from aws_durable_execution_sdk_python.lambda_service import (
    CheckpointOutput,
    DurableServiceClient,
    OperationAction,
    OperationUpdate,
    StateOutput,
)

from tests.local_run import README_ORDER
from tests.support.runner import LocalRunner

LARGE_ORDER: dict[str, Any] = {
    "order_id": "order-200",
    "items": [{"product_id": "prod-001", "price": 50000, "quantity": 2}],
}
YES = b'{"approved": true, "approver": "sato"}'
NO = b'{"approved": false, "approver": "sato", "reason": "over budget"}'


@dataclass(frozen=True)
class Flow:
    """注文と承認者の答えと、下限。下限の理由は FLOORS。"""

    title: str
    order: dict[str, Any]
    answer: bytes | None
    billed: int
    calls: int
    invocations: int


FLOWS = [
    Flow("README の注文", README_ORDER, None, billed=7, calls=6, invocations=3),
    Flow("承認された注文", LARGE_ORDER, YES, billed=8, calls=7, invocations=3),
    Flow("却下された注文", LARGE_ORDER, NO, billed=6, calls=5, invocations=2),
    Flow(
        "カードが断られた注文",
        README_ORDER | {"simulate": {"card_declined": True}},
        None,
        billed=6,
        calls=5,
        invocations=2,
    ),
]
FLOORS = [
    "課金操作の下限: 開始 1 + 段階ごとに 1 + 再試行ごとに 1。承認待ちは、コールバックと依頼で 2",
    "チェックポイントの下限: 残すまで次へ進めない事実の数。段階ごとに 1、再試行ごとに 1",
    "起動の下限: 1 + 止まる回数。待ち、答え待ち、再試行の間は何も動かさない",
    "バイトの下限: 値は入力から計算し直せないものだけ、空白のない JSON で。ほかは SDK の決めた形",
    "下限を超える分: 注文の合計と通知の中身。履歴を読む人のために、値のまま残している",
]
# 入力から計算し直せず、残すほかない値。注文の合計と通知の中身は、履歴で読めるように残している。
IRREPLACEABLE = {"check_stock", "pay"}


@dataclass
class Meter(DurableServiceClient):
    """ハンドラーと記録先の間に入り、通るものを数える。"""

    handler: Callable[[Any, Any], Any]
    calls: list[list[dict[str, Any]]] = field(default_factory=list)
    states: list[list[dict[str, Any]]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    service: DurableServiceClient | None = None

    def __call__(self, event: DurableExecutionInvocationInputWithClient, context: Any) -> Any:
        self.service = event.service_client
        self.remember(event.initial_execution_state)
        began = time.perf_counter()
        try:
            return self.handler(replace(event, service_client=self), context)
        finally:
            self.seconds.append(time.perf_counter() - began)

    def remember(self, state: InitialExecutionState) -> None:
        self.states.append([dict(operation.to_json_dict()) for operation in state.operations])

    def checkpoint(
        self,
        durable_execution_arn: str,
        checkpoint_token: str,
        updates: list[OperationUpdate],
        client_token: str | None,
    ) -> CheckpointOutput:
        assert self.service
        self.calls.append([dict(update.to_dict()) for update in updates])
        return self.service.checkpoint(
            durable_execution_arn, checkpoint_token, updates, client_token
        )

    def get_execution_state(
        self,
        durable_execution_arn: str,
        checkpoint_token: str,
        next_marker: str,
        max_items: int = 1000,
    ) -> StateOutput:
        raise AssertionError("状態が 1 ページに収まらず、リプレイのバイト数を数えられません")


@dataclass(frozen=True)
class Cost:
    """注文 1 件の費用。バイト数は botocore が送る JSON の長さ。"""

    billed: int
    calls: int
    invocations: int
    written: int
    replayed: int
    replayed_input: int
    written_floor: int
    replayed_floor: int
    stored: int  # 書き込みと、入力と、結果
    seconds: list[float]  # 起動ごと
    status: str


def measure(
    handler: Callable[[Any, Any], Any], order: dict[str, Any], answer: bytes | None = None
) -> Cost:
    """待ち時間を飛ばして 1 件を終わりまで実行し、費用を数える。"""
    meter = Meter(handler)
    entered = json.dumps(order)
    with LocalRunner(meter, poll_interval=0.01) as runner:
        arn = runner.run_async(input=entered, execution_timeout=30)
        if answer is not None:
            runner.send_callback_success(runner.wait_for_callback(arn), answer)
        result = runner.wait_for_result(arn, timeout=30).result or "{}"
    updates = [update for call in meter.calls for update in call]
    replays = meter.states[1:]
    written = sum(map(size, meter.calls))
    return Cost(
        # START は、ステップの試行、待ち、コールバック、子コンテキストのそれぞれに一つ
        billed=1 + sum(update["Action"] == OperationAction.START.value for update in updates),
        calls=len(meter.calls),
        invocations=len(meter.states),
        written=written,
        replayed=sum(map(size, replays)),
        replayed_input=sum(size(state[0]) for state in replays),
        written_floor=sum(size([least(update) for update in call]) for call in meter.calls),
        replayed_floor=sum(size([least(operation) for operation in state]) for state in replays),
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


def least(operation: dict[str, Any]) -> dict[str, Any]:
    """同じ操作を、残すほかない値だけを空白のない JSON で持つ形にする。"""
    kept = operation.get("Name") in IRREPLACEABLE
    if "Payload" in operation:
        operation = operation | {"Payload": compact(operation["Payload"]) if kept else "null"}
    details = operation.get("StepDetails", {})
    if "Result" in details:
        value = compact(details["Result"]) if kept else "null"
        operation = operation | {"StepDetails": details | {"Result": value}}
    return operation


def compact(value: str) -> str:
    return json.dumps(json.loads(value), ensure_ascii=False, separators=(",", ":"))
