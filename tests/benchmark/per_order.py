"""注文 1 件を待ち時間なしで処理し、料金のもとになるものを数える。"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aws_durable_execution_sdk_python.lambda_service import CheckpointOutput

from tests.local_run.runner import LocalRunner
from tests.support.client import Client, is_early_start


@dataclass
class Meter(Client):
    """ハンドラーとランナーの間を通るものを数える。"""

    operations: int = 1  # 実行の開始の 1 と、START（試行、待機、コールバック）ごとに 1
    calls: int = 0  # チェックポイント API の呼び出し
    invocations: int = 0
    stored: int = 0  # 入力、記録、結果のバイト数

    def __call__(self, event: Any, context: Any) -> Any:
        self.invocations += 1
        return super().__call__(event, context)

    def checkpoint(self, *_: Any, **call: Any) -> CheckpointOutput:
        updates = call["updates"]
        self.calls += not is_early_start(updates)
        self.stored += sum(len(json.dumps(update.to_dict())) for update in updates)
        self.operations += sum(update.action.value == "START" for update in updates)
        return super().checkpoint(**call)


def measure(
    handler: Callable[[Any, Any], Any], order: dict[str, Any], answer: bytes | None = None
) -> Meter:
    """注文を完了まで処理する。answer は、承認者の回答。"""
    meter, entered = Meter(handler), json.dumps(order)
    with LocalRunner(meter, poll_interval=0.01) as runner:
        arn = runner.run_async(input=entered, execution_timeout=30)
        if answer is not None:
            runner.send_callback_success(runner.wait_for_callback(arn), answer)
        result = runner.wait_for_result(arn, timeout=30).result or ""
    meter.stored += len(entered) + len(result.encode())
    return meter
