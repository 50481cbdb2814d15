"""`python app.py` の中身: 注文 1 件を公式ローカルランナーで実行し、進み具合を見せる。"""

import contextlib
import inspect
import json
import logging
import os
import select
import sys
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from aws_durable_execution_sdk_python.execution import durable_execution
from aws_durable_execution_sdk_python.lambda_service import OperationStatus
from aws_durable_execution_sdk_python.plugin import (
    DurableInstrumentationPlugin,
    InvocationEndInfo,
    InvocationStartInfo,
    InvocationStatus,
    UserFunctionEndInfo,
    UserFunctionOutcome,
)
from aws_durable_execution_sdk_python_testing.exceptions import ResourceNotFoundException
from aws_durable_execution_sdk_python_testing.runner import DurableFunctionTestRunner

import app

README_ORDER = """{"order_id": "order-123", "items": [
    {"product_id": "prod-001", "name": "Widget", "price": 1000, "quantity": 2}]}"""
WAITS_FOR_CALLBACK, ENDED = "waits_for_callback", "ended"


class Progress(DurableInstrumentationPlugin, logging.Handler):
    """ハンドラーの起動、リプレイ、待ち、ステップのログを、起きたときに 1 行ずつ表示する。

    pauses には、人の答えを待つたびに WAITS_FOR_CALLBACK、終わると ENDED が入る。
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner: DurableFunctionTestRunner | None = None
        self.pauses: SimpleQueue[str] = SimpleQueue()
        self.invocations = 0
        self.started = time.monotonic()

    def show(self, text: str) -> None:
        print(f"{time.monotonic() - self.started:5.1f} 秒  {text}", flush=True)

    def create_plugin(self, info: InvocationStartInfo) -> "Progress":
        return self

    def on_invocation_start(self, info: InvocationStartInfo) -> None:
        self.invocations += 1
        self.show(
            f"起動 {self.invocations} 回目" + ("" if info.is_first_invocation else ": リプレイ")
        )
        done = [
            operation.name
            for operation in info.operations.values()
            if operation.status is OperationStatus.SUCCEEDED and operation.name
        ]
        if done:
            self.show(f"  記録済み: {', '.join(done)}")

    def emit(self, record: logging.LogRecord) -> None:
        step = getattr(record, "operationName", None)
        if step or record.name == app.__name__:
            self.show(f"  {step or '':13} {record.getMessage()}")

    def on_user_function_end(self, info: UserFunctionEndInfo) -> None:
        if info.outcome is UserFunctionOutcome.FAILED and info.error:
            self.show(f"  {info.name:13} {info.attempt} 回目は失敗: {info.error.message}")

    def on_invocation_end(self, info: InvocationEndInfo) -> None:
        if info.status is not InvocationStatus.PENDING:
            self.show(f"終了: 起動は全部で {self.invocations} 回でした")
            self.pauses.put(ENDED)
            return
        assert self.runner is not None
        assert info.execution_arn is not None
        for event in reversed(self.runner.get_execution_history(info.execution_arn).events):
            if event.wait_started_details:
                seconds = event.wait_started_details.duration
                self.show(f"{event.name}: {seconds} 秒待ちます。その間は何も動きません")
            elif event.step_failed_details and event.step_failed_details.retry_details:
                seconds = event.step_failed_details.retry_details.next_attempt_delay_seconds
                self.show(f"{event.name}: {seconds} 秒後に再試行します。その間は何も動きません")
            elif event.callback_started_details:
                self.show(f"{event.name}: 人の答えを待ちます。その間は何も動きません")
                self.pauses.put(WAITS_FOR_CALLBACK)
            else:
                continue
            return


def main() -> None:
    """引数の注文（なければ README の注文）を実行し、結果を表示する。

    注文を読めない、または正しくないときは、1 文で知らせて終了コード 1 で終わる。
    """
    try:
        order = read_order(sys.argv[1:])
        app.validate(order)
        run(order)
    except (UnreadableOrderError, app.InvalidOrderError) as error:
        sys.exit(f"{error}。")
    except KeyboardInterrupt:
        sys.exit("中断しました。")


class UnreadableOrderError(Exception):
    """引数から注文を読み取れない。"""


def read_order(arguments: list[str]) -> Any:
    """引数の JSON か JSON ファイルを読む。読めなければ UnreadableOrderError。"""
    if len(arguments) > 1:
        raise UnreadableOrderError("注文は、JSON かファイル名で 1 つだけ渡してください")
    text = arguments[0] if arguments else README_ORDER
    try:
        if os.path.isfile(text):
            text = Path(text).read_text("utf-8-sig")
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{error.lineno} 行 {error.colno} 文字目"
        raise UnreadableOrderError(
            f"注文が JSON でも、あるファイルの名前でもありません（{place}）"
        ) from error
    except (ValueError, RecursionError, OSError) as error:
        raise UnreadableOrderError("注文のファイルか JSON を読めません") from error


def run(order: Any) -> None:
    """注文を実時間で実行し、進み具合と結果を表示する。承認は端末で尋ねる。"""
    progress = Progress()
    logging.root.addHandler(progress)
    logging.root.setLevel(logging.INFO)
    for library in ("aws_durable_execution_sdk_python", "aws_durable_execution_sdk_python_testing"):
        logging.getLogger(library).setLevel(logging.CRITICAL)

    handler = durable_execution(inspect.unwrap(app.handler), plugins=[progress])
    with DurableFunctionTestRunner(handler, skip_time=False, poll_interval=0.1) as runner:
        progress.runner = runner
        print("注文を、AWS に接続せずこの端末で実行します。", flush=True)
        timeout = app.EXECUTION_TIMEOUT.to_seconds()
        arn = runner.run_async(input=json.dumps(order), execution_timeout=timeout)
        while progress.pauses.get() == WAITS_FOR_CALLBACK:
            callback_id = runner.wait_for_callback(arn)
            answer = ask_person()
            if answer is not None:
                with contextlib.suppress(ResourceNotFoundException):  # 期限のあとの答えは届かない
                    runner.send_callback_success(callback_id, answer)
        result = runner.wait_for_result(arn)
    if result.error:
        sys.exit(f"注文は失敗しました: {result.error.message}")
    print(json.dumps(json.loads(result.result or "null"), ensure_ascii=False, indent=2))


def ask_person() -> bytes | None:
    """承認するかを端末で尋ね、コールバックに送る答えを返す。期限までに答えがなければ None。

    yes のほかはすべて却下になる。入力の終わりと Ctrl-C も却下である。
    """
    try:
        print("だれが決めますか（名前）: ", end="", flush=True)
        if not select.select([sys.stdin], [], [], app.APPROVAL_TIMEOUT.to_seconds())[0]:
            print("期限が過ぎました。", flush=True)
            return None
        approver = input().strip()
        approved = input("承認しますか（yes のほかは却下）: ").strip() == "yes"
    except (EOFError, KeyboardInterrupt):
        print("\n答えがないので、承認しません。", flush=True)
        return b'{"approved": false}'
    return json.dumps({"approved": approved, "approver": approver}).encode()
