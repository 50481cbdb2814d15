"""注文 1 件を、記録があればその続きから、実時間で処理する。"""

import json
import logging
import math
import os
import re
import select
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from aws_durable_execution_sdk_python import lambda_service as service
from aws_durable_execution_sdk_python.config import Duration
from aws_durable_execution_sdk_python.execution import durable_execution
from aws_durable_execution_sdk_python.state import ExecutionState
from aws_durable_execution_sdk_python_testing.execution import Execution, ExecutionStatus

from tests.timeline import draw

from . import README_ORDER
from .progress import Progress, described, tell
from .record import FOREVER, OrderStore, UnusableOrderError, Wait, open_record, waits_of
from .runner import LocalRunner
from .screen import say, stop


def process(app: ModuleType, arguments: list[str], speed: float = 1) -> None:
    """引数の注文を処理し、結果を表示してプロセスを終える。speed（倍）は、テストの時計の速さ。"""
    folder = Path(str(app.__file__)).resolve().parent / ".orders"
    try:
        order = read_order(arguments)
        getattr(app, "validate", lambda _: None)(order)
        name = str(order.get("order_id")) if isinstance(order, dict) else ""
        name = name if re.fullmatch("[A-Za-z0-9_-]{1,64}", name) else "order"
        store = open_record(folder / f"{name}.db", speed)
        failed = run(app, order, name, store)
    except Exception as error:  # noqa: BLE001 validate が示す理由か、app.py の間違いもある
        ours = isinstance(error, UnusableOrderError) or type(error).__module__ == app.__name__
        stop(f"{error if ours and str(error) else tell(app, error)}。", 1)
    store.delete()  # 表示できずに止まれば、記録は残り、次のコマンドが表示する
    stop(None, 1 if failed else 0)


def load(program: str) -> ModuleType:
    """ファイル名が何でも、モジュール app として読み込む。"""
    app = sys.modules["app"] = ModuleType("app")
    app.__file__ = program
    try:
        SourceFileLoader("app", program).exec_module(app)
    except BaseException as error:  # noqa: BLE001
        stop(f"{Path(program).name} を読み込めません: {tell(app, error)}。", 1)
    return app


def read_order(arguments: list[str]) -> Any:
    """引数の JSON か JSON ファイルを読む。読めなければ UnusableOrderError。"""
    if not arguments:
        return README_ORDER
    text = arguments[0]
    try:
        if not text.lstrip().startswith(("{", "[")):
            text = Path(text).read_text("utf-8-sig")
        return json.loads(text)
    except (ValueError, OSError) as error:
        raise UnusableOrderError(f"注文の JSON を読めません（{error!s:.200}）") from error


def run(app: ModuleType, order: Any, name: str, store: OrderStore) -> bool:
    """注文を完了まで処理し、図と、結果か失敗の理由を表示する。失敗したなら True。"""
    execution, clock = store.recorded, store.clock
    text = json.dumps(order, sort_keys=True)
    if execution and execution.start_input.input != text:
        raise UnusableOrderError(
            f"注文 {name} には、内容の異なる処理途中の記録があります。"
            "元の内容で実行するか、order_id を変えてください"
        )
    progress = Progress(app, store)
    logging.root.addHandler(progress)
    logging.root.setLevel(logging.INFO)
    # 結果を送る前に大きさを調べる公開 API はない
    measure = partial(progress.check_size, ExecutionState._calculate_operation_size)
    setattr(ExecutionState, "_calculate_operation_size", staticmethod(measure))  # noqa: B010
    # 何も動けなかった間の時間は、止めている間の時間と同じように扱う
    clock.jumped = lambda: os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    # __wrapped__ は、@durable_execution のすぐ下に書かれたもの。デコレーターも含む
    handler = durable_execution(app.handler.__wrapped__, plugins=[progress])
    with LocalRunner(handler, clock=clock, store=store) as runner:
        if execution is None:
            say("AWS に接続せず、手元の Python で注文を処理します。")
            timeout = getattr(app, "EXECUTION_TIMEOUT", Duration.from_minutes(20)).to_seconds()
            arn = runner.run_async(text, timeout, execution_name=name)
        else:
            say("前回の続きから、注文の処理を再開します。")
            arn = execution.durable_execution_arn
            if not execution.is_complete:
                resume(runner, store, execution)

        def is_open(wait: Wait) -> bool:
            return wait.due > clock.now() and wait in waits_of(store.load(arn))

        while not (execution := store.load(arn)).is_complete:
            waits = waits_of(execution) if progress.running is False else []
            for callback in [wait for wait in waits if wait.callback_id and is_open(wait)][:1]:
                left = f"あと {(callback.due - clock.now()).total_seconds():.0f} 秒"
                limit = left if callback.due < FOREVER else "期限なし"
                say(f"{callback.label} への回答を入力してください（{limit}）。")
                if answer := ask_approver(partial(is_open, callback)):
                    runner.send_callback_success(callback.callback_id, answer)
            time.sleep(0.1)
        if progress.running:  # 呼び出しの途中で、実行タイムアウトが来た
            store.ended()
        # ランナーの公開 API は、先頭の 100 件しか返さない
        history = runner._executor.get_execution_history(arn, max_items=2**31)
    events = [event.to_dict() for event in history.events]
    say(f"\n{draw(events, clock.now(), store.invocations())}\n")
    assert execution.result
    if execution.current_status() is ExecutionStatus.TIMED_OUT:
        minutes = execution.start_input.execution_timeout_seconds // 60
        reason = f"開始から {minutes} 分の実行タイムアウト（ExecutionTimeout）を超えました"
    elif error := execution.result.error:
        reason = progress.failure or described(error.type, error.message)
    else:
        result = json.loads(execution.result.result or "null")
        say(json.dumps(result, ensure_ascii=False, indent=2))
        return False
    say(f"注文は失敗しました: {reason}。", file=sys.stderr)
    return True


def resume(runner: LocalRunner, store: OrderStore, execution: Execution) -> None:
    """前のプロセスが残した実行を再開する。待機、再試行、期限の時刻は元のまま引き継ぐ。

    実行タイムアウトは、止まっていた時間のうち、次の期限が過ぎた後を数えない。AWS なら、その間に
    処理が進んでいるからである。ランナーには、記録から再開する公開 API がない。
    """
    executor, arn = runner._executor, execution.durable_execution_arn
    now, waits = store.clock.now(), waits_of(execution)
    start = execution.get_operation_execution_started().start_timestamp or now
    last = store.last_time or start
    left = start - min(now, max(last, waits[0].due if waits else last))
    left += timedelta(seconds=execution.start_input.execution_timeout_seconds)
    if left <= timedelta(0):
        execution.complete_timeout(service.ErrorObject.from_message("ExecutionTimeout"), now)
    execution.complete_due_operations(now)
    callbacks = [wait for wait in waits if wait.callback_id]
    for callback in callbacks:
        if callback.due <= now:
            error = service.ErrorObject.from_message("Callback.Timeout")
            execution.complete_callback_timeout(callback.callback_id, error, now)
    store.update(execution)
    if execution.is_complete:
        return
    executor._launch_execution(execution, math.ceil(left.total_seconds()))
    for callback in callbacks:
        if now < callback.due < FOREVER:
            seconds = math.ceil((callback.due - now).total_seconds())
            options = service.CallbackOptions(timeout_seconds=seconds)
            executor._schedule_callback_timeouts(arn, options, callback.callback_id)


def ask_approver(is_open: Callable[[], bool]) -> bytes | None:
    """承認するかどうかを尋ねる。is_open でなくなれば None。入力が終われば（EOF）却下とする。"""
    at_terminal = os.isatty(0)
    try:
        approver = word = ""
        while not approver:
            approver = ask("承認者の名前: ", is_open)
        while word not in ("yes", "no"):
            word = ask("承認しますか（yes か no）: ", is_open).casefold()
    except TimeoutError:
        say("\n回答の期限が過ぎました。")
        return None
    except (EOFError, OSError):
        if at_terminal and not os.isatty(0):  # 閉じることは、回答ではない
            stop("\nターミナルが閉じられました。記録は残るので、再開できます。", 1)
        say("\n入力がないため、却下します。")
        return b'{"approved": false}'
    return json.dumps({"approved": word == "yes", "approver": approver}).encode()


def ask(question: str, is_open: Callable[[], bool]) -> str:
    """ターミナルから回答を 1 行読み取る。締め切られれば TimeoutError、入力が終われば EOFError。"""
    say(question, end="")
    line = b""
    while not line.endswith(b"\n"):
        ready = select.select([0], [], [], 0.2)[0]
        char = os.read(0, 1) if ready else b""  # 次の回答を先読みしない
        if not is_open():  # 届いてから確認する。止められていた間に締め切られたかもしれない
            raise TimeoutError
        if ready and not char and not line:
            raise EOFError
        line += char or (b"\n" if ready else b"")
    return line.decode(errors="replace").strip()
