"""注文 1 件を、記録があればその続きから、実時間で処理する。"""

import contextlib
import inspect
import json
import logging
import math
import os
import select
import sys
import time
import unicodedata
from datetime import datetime, timedelta
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from aws_durable_execution_sdk_python.execution import durable_execution
from aws_durable_execution_sdk_python.lambda_service import (
    CallbackOptions,
    CallbackTimeoutType,
    ErrorObject,
    OperationStatus,
)
from aws_durable_execution_sdk_python_testing.exceptions import ResourceNotFoundException
from aws_durable_execution_sdk_python_testing.execution import Execution, ExecutionStatus

from tests.timeline import draw

from . import README_ORDER
from .progress import Progress
from .record import OrderStore, UnusableOrderError, open_record
from .runner import LocalRunner, OrderClock
from .screen import say, stop

DECISIONS = {"yes": True, "y": True, "はい": True, "no": False, "n": False, "いいえ": False}


def process(app: ModuleType, arguments: list[str], speed: float = 1) -> None:
    """app.py の handler で引数の注文を処理し、結果を表示してプロセスを終える。

    speed は時計の速さ（倍）。テストが使う。
    """
    folder = Path(str(app.__file__)).resolve().parent / ".orders"
    try:
        order = read_order(arguments)
        app.validate(order)
        store = open_record(folder / f"{order['order_id']}.db", speed)
        execution, picture = run(app, order, store)
    except (app.InvalidOrderError, UnusableOrderError) as error:
        stop(f"{error}。", 1)
    say(f"\n{picture}\n")
    failed = show_result(execution)
    store.delete()  # 表示できずに止まれば、記録は残り、次のコマンドが表示する
    stop(None, 1 if failed else 0)


def load(program: str) -> ModuleType:
    """ファイル名が何でも、モジュール app として読み込む。"""
    loader = SourceFileLoader("app", program)
    app = sys.modules["app"] = ModuleType("app")
    app.__file__ = program
    loader.exec_module(app)
    return app


def read_order(arguments: list[str]) -> Any:
    """引数の JSON か JSON ファイルを読む。読めなければ UnusableOrderError。"""
    if not arguments:
        return README_ORDER
    text, *more = arguments
    if more or text.startswith("-"):
        raise UnusableOrderError("注文の JSON か JSON ファイルの名前を 1 つだけ指定してください")
    try:
        if not text.lstrip().startswith(("{", "[")):
            text = Path(text).read_text("utf-8-sig")
        return json.loads(text, parse_constant=int)  # NaN や Infinity は ValueError
    except json.JSONDecodeError as error:
        place = f"{error.lineno} 行目の {error.colno} 文字目"
        problem = f"注文を JSON として読み取れません（{place}）。JSON の書き方を確認してください"
    except (ValueError, RecursionError, OSError) as error:
        problem = f"注文を読み取れません（{error!s:.200}）"
    raise UnusableOrderError(problem)


def run(app: ModuleType, order: Any, store: OrderStore) -> tuple[Execution, str]:
    """注文を完了まで処理し、その実行と図を返す。承認はターミナルで尋ねる。"""
    execution, clock = store.recorded, store.clock
    text = json.dumps(order, sort_keys=True)
    if execution and execution.start_input.input != text:
        raise UnusableOrderError(
            f"注文 {order['order_id']} には、内容の異なる処理途中の記録があります。"
            "元の内容で実行するか、order_id を変えてください"
        )
    progress = Progress(app, store)
    logging.root.addHandler(progress)
    logging.root.setLevel(logging.INFO)

    handler = durable_execution(inspect.unwrap(app.handler), plugins=[progress])
    with LocalRunner(handler, clock=clock, store=store) as runner:
        if execution is None:
            say("AWS に接続せず、手元の Python で注文を処理します。")
            timeout = app.EXECUTION_TIMEOUT.to_seconds()
            arn = runner.run_async(text, timeout, execution_name=order["order_id"])
        else:
            say("前回の続きから、注文の処理を再開します。")
            arn = execution.durable_execution_arn
            resume(runner, store, execution)
        while not (execution := store.load(arn)).is_complete:
            callback = open_callback(execution)
            if callback and progress.idle and callback[1] > clock.now():
                answer = ask_approver(clock, callback[1])
                if answer is not None:
                    with contextlib.suppress(ResourceNotFoundException):  # 期限が先に来た
                        runner.send_callback_success(callback[0], answer)
            time.sleep(0.1)
        events = [event.to_dict() for event in runner.get_execution_history(arn).events]
    return execution, draw(events, clock.now(), store.invocations())


def resume(runner: LocalRunner, store: OrderStore, execution: Execution) -> None:
    """前のプロセスが残した実行を再開する。待機、再試行、期限の時刻は元のまま引き継ぐ。

    実行タイムアウトは、止まっていた時間のうち、次の期限が過ぎた後を数えない。AWS なら、その間に
    処理が進んでいるからである。
    """
    if execution.is_complete:
        return
    # ランナーには、記録から再開する公開 API がない。次の 3 つの非公開 API は、ここだけで使う。
    executor = runner._executor
    now = store.clock.now()
    start = execution.get_operation_execution_started().start_timestamp
    assert start
    last = store.last_time or start
    callback = open_callback(execution)
    due = callback[1] if callback else executor._earliest_pending_timestamp(execution)
    left = start - min(now, max(last, due or last))
    left += timedelta(seconds=execution.start_input.execution_timeout_seconds)
    if left <= timedelta(0):
        execution.complete_timeout(ErrorObject.from_message("ExecutionTimeout"), now)
    execution.complete_due_operations(now)
    if callback and callback[1] <= now:
        kind = CallbackTimeoutType.TIMEOUT.value
        execution.complete_callback_timeout(callback[0], ErrorObject(kind, kind, None, None), now)
        callback = None
    store.update(execution)
    if execution.is_complete:
        return
    executor._launch_execution(execution, math.ceil(left.total_seconds()))
    if callback:
        options = CallbackOptions(math.ceil((callback[1] - now).total_seconds()))
        executor._schedule_callback_timeouts(execution.durable_execution_arn, options, callback[0])


def open_callback(execution: Execution) -> tuple[str, datetime] | None:
    """回答を待っているコールバックの ID と期限。"""
    for operation in execution.operations:
        if operation.callback_details and operation.status is OperationStatus.STARTED:
            assert operation.start_timestamp
            seconds = next(
                update.callback_options.timeout_seconds
                for update in execution.updates
                if update.callback_options and update.operation_id == operation.operation_id
            )
            expiry = operation.start_timestamp + timedelta(seconds=seconds)
            return operation.callback_details.callback_id, expiry
    return None


def show_result(execution: Execution) -> bool:
    """結果か、結果がないまま終わった理由を表示する。後者なら True。"""
    assert execution.result
    if execution.current_status() is ExecutionStatus.TIMED_OUT:
        minutes = execution.start_input.execution_timeout_seconds // 60
        reason = f"開始から {minutes} 分の実行タイムアウト（ExecutionTimeout）を超えました"
    elif execution.result.error:
        reason = str(execution.result.error.message)
    else:
        result = json.loads(execution.result.result or "null")
        say(json.dumps(result, ensure_ascii=False, indent=2))
        return False
    say(f"注文は失敗しました: {reason}。", file=sys.stderr)
    return True


def ask_approver(clock: OrderClock, expiry: datetime) -> bytes | None:
    """承認するかどうかを尋ね、コールバックに送る回答を返す。期限を過ぎていれば None。

    入力が終われば（EOF）却下とする。ターミナルが閉じられたときは回答とせず、プロセスを終える。
    """
    at_terminal = os.isatty(0)
    try:
        approver = word = ""
        while not approver:
            approver = ask("承認者の名前: ", clock, expiry)
        while word not in DECISIONS:
            word = ask("承認しますか（yes か no）: ", clock, expiry).casefold()
    except TimeoutError:
        say("\n期限が過ぎました。")
        return None
    except (EOFError, OSError) as error:
        if isinstance(error, OSError) or (at_terminal and not os.isatty(0)):
            stop("\nターミナルが閉じられました。記録は残るので、再開できます。", 1)
        say("\n入力がないため、却下します。")
        return b'{"approved": false}'
    return json.dumps({"approved": DECISIONS[word], "approver": approver}).encode()


def ask(question: str, clock: OrderClock, expiry: datetime) -> str:
    """ターミナルから回答を 1 行読み取る。期限を過ぎれば TimeoutError、入力が終われば EOFError。"""
    say(question, end="")
    line = b""
    while not line.endswith(b"\n"):
        left = clock.arm(expiry)
        if left and not select.select([0], [], [], min(left / clock.speed, 1))[0]:
            continue
        char = os.read(0, 1) if left else b""  # 次の回答を先読みしない
        if not clock.arm(expiry):  # 届いてから時計を見る。止められていた間に過ぎたかもしれない
            raise TimeoutError
        if not char and not line:
            raise EOFError
        line += char or b"\n"
    return unicodedata.normalize("NFKC", line.decode(errors="replace")).strip()
