"""注文の経過を、起きたときに 1 行ずつ表示する。app.py のエラーは、起きた行とともに 1 文にする。"""

import logging
import math
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from aws_durable_execution_sdk_python import plugin
from aws_durable_execution_sdk_python.exceptions import SuspendExecution
from aws_durable_execution_sdk_python.lambda_service import OperationStatus

from .record import OrderStore, label, waits_of
from .screen import say, stop

HINTS = {  # エラーのメッセージの正規表現と、対処方法
    "'coroutine' object|type coroutine": "。async def ではなく def にしてください",
    "'function' object|type function": "。ステップは context.step() で実行してください",
}


class Progress(plugin.DurableInstrumentationPlugin, logging.Handler):
    """ハンドラーの呼び出し、リプレイ、待機、ステップのログを、注文の開始からの秒数とともに示す。

    running は、呼び出しが動いているか。最初の呼び出しの前は None。
    """

    def __init__(self, app: ModuleType, store: OrderStore) -> None:
        super().__init__()
        self.app, self.store, self.clock = app, store, store.clock
        self.running: bool | None = None
        self.started = self.clock.now()
        self.operations: dict[str, plugin.OperationInfo] = {}
        self.failures: dict[str, tuple[int | None, str]] = {}  # まだ表示していない失敗
        self.failure: str | None = None  # ハンドラーの失敗

    def show(self, text: str) -> None:
        say(f"{(self.clock.now() - self.started).total_seconds():5.1f} 秒  {text}")

    def show_of(self, operation: Any, text: str) -> None:
        name = label(operation, self.operations) if operation else ""
        self.show(f"  {name:14} {text}")

    def create_plugin(self, info: plugin.InvocationStartInfo) -> "Progress":
        return self

    def on_invocation_start(self, info: plugin.InvocationStartInfo) -> None:
        assert info.execution_start_time
        self.running, self.started, self.failure = True, info.execution_start_time, None
        self.operations = every = dict(info.operations)
        number = self.store.began()
        self.show(f"呼び出し {number} 回目" + ("" if info.is_first_invocation else ": リプレイ"))
        ids = {key for key in every if every[key].status is OperationStatus.SUCCEEDED}
        done = [label(every[k], every) for k in every if k in ids and every[k].parent_id not in ids]
        if done:
            self.show(f"  記録済み: {', '.join(done)}")

    def on_operation_start(self, info: plugin.OperationStartInfo) -> None:
        self.operations[info.operation_id] = info

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:  # 最後に来るのは、SDK が記録するハンドラーの失敗
            self.failure = tell(self.app, record.exc_info[1])
        if hasattr(record, "executionArn") or record.name == self.app.__name__:
            found = getattr(record, "operationId", None) or getattr(record, "parentId", None)
            try:
                message = record.getMessage()
            except (TypeError, ValueError) as error:  # ログの書き間違いで、注文を失敗させない
                message = f"{record.msg}（{error}）"
            self.show_of(self.operations.get(found or ""), message)

    def on_user_function_end(self, info: plugin.UserFunctionEndInfo) -> None:
        error = sys.exception()  # SDK は、例外が伝わる間に呼び出す
        self.stop_if_it_kills(error)
        if isinstance(error, Exception) and not hasattr(error, "error_type"):
            ours = type(error).__module__ == self.app.__name__ and str(error)
            self.failures[info.operation_id] = (info.attempt, ours or tell(self.app, error))

    def on_operation_end(self, info: plugin.OperationEndInfo) -> None:
        if info.status is OperationStatus.FAILED and info.error and not info.is_replayed:
            unknown = (None, described(info.error.type, info.error.message))
            _, reason = self.failures.pop(info.operation_id, unknown)
            self.show_of(info, f"失敗: {reason}")

    def on_operation_change(self, info: plugin.OperationChangeInfo) -> None:
        for key, operation in info.updated_operations.items():
            if operation.status is OperationStatus.PENDING and key in self.failures:
                attempt, reason = self.failures.pop(key)
                self.show_of(operation, f"{attempt} 回目は失敗: {reason}")

    def stop_if_it_kills(self, error: BaseException | None) -> None:
        """SystemExit などなら、プロセスを終える。ランナーは、その先へ進めなくなる。"""
        sdk = SuspendExecution.__module__
        if error and not isinstance(error, Exception) and type(error).__module__ != sdk:
            what = f"{type(error).__name__} で呼び出しが異常終了しました"
            where = line_of(self.app, error)
            self.give_up(f"{what}（{where}。Lambda では Runtime.ExitError になります）")

    def check_size(self, measure: Callable[[Any], int], item: Any) -> int:
        """上限を超えた結果は、AWS では拒否される。SDK は、750 KB を超えると永久に送り直す。"""
        update = item.operation_update
        size = len((update and update.payload) or "")
        if size > 256 * 1024:
            what = f"{label(update, self.operations)} の結果が大きすぎます"
            self.give_up(f"{what}（{size / 1024:,.0f} KB。上限は 256 KB です）")
        return measure(item)

    def give_up(self, what: str) -> None:
        stop(f"{what}。記録は残るので、app.py を修正して再開できます。", 1)

    def on_invocation_end(self, info: plugin.InvocationEndInfo) -> None:
        self.stop_if_it_kills(sys.exception())
        if info.error and str(info.error.type).endswith(".NonDeterministicExecutionError"):
            message, operations = str(info.error.message), self.operations
            recorded = next(operations[key] for key in operations if f"'{key}'" in message)
            stop(
                "処理の流れが、処理途中の注文の記録と一致しません"
                f"（{mismatch(message, recorded)}）。"
                "app.py を変更したなら、元に戻すか、order_id を変えてください。"
                "変更していないなら、時刻、乱数、外部の値、finally などで、流れが変わっています。",
                1,
            )
        self.store.ended()
        if info.status is plugin.InvocationStatus.PENDING:
            self.show_wait(str(info.execution_arn))
        elif info.status is not plugin.InvocationStatus.RETRY:
            self.show_end()
        self.running = False

    def show_end(self) -> None:
        invocations = self.store.invocations()
        ran = [(end - begin).total_seconds() for begin, end in invocations if end]
        cut_off = len(invocations) - len(ran)
        but = f"（中断した {cut_off} 回は除く）" if cut_off else ""
        total = (self.clock.now() - self.started).total_seconds()
        what = f"{total:.1f} 秒のうち、動いていたのは {sum(ran):.1f} 秒でした{but}"
        self.show(f"終了: 呼び出しは {len(invocations)} 回。{what}")

    def show_wait(self, arn: str) -> None:
        for wait in waits_of(self.store.load(arn))[:1]:
            left = max(math.ceil((wait.due - self.clock.now()).total_seconds()), 0)
            what = f"{left} 秒後に再試行します" if wait.retry else f"あと {left} 秒待ちます"
            what = "承認者の回答を待ちます" if wait.callback_id else what
            self.show(f"{wait.label}: {what}。その間、ハンドラーは動きません")


def tell(app: ModuleType, error: BaseException) -> str:
    """型、メッセージ、app.py の行。ステップなどのエラーなら、元のエラーのもの。"""
    while getattr(error, "error_type", None) and error.__context__:
        error = error.__context__
    kind = getattr(error, "error_type", None) or type(error).__name__
    return described(kind, str(error), line_of(app, error))


def described(kind: str | None, message: str | None, place: str = "") -> str:
    hint = next((HINTS[form] for form in HINTS if re.search(form, message or "")), "")
    inside = (place + hint).removeprefix("。")
    name = (kind or "").rpartition(".")[2]
    return ": ".join(filter(None, (name, message))) + (f"（{inside}）" if inside else "")


def line_of(app: ModuleType, error: BaseException) -> str:
    """エラーが起きた所から最も近い、app.py の行。"""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == app.__file__]
    return f"{Path(str(app.__file__)).name} の {lines[-1]} 行目" if lines else ""


def mismatch(message: str, recorded: Any) -> str:
    """記録にあったもの（recorded はそのオペレーション）と、今回来たもの。"""
    was = {"subtype": repr(recorded.sub_type), "name": repr(recorded.name)}
    came = re.findall(r"(subtype|name) checkpoint=.*? current=(None|'.*?')(?:,|$)", message)
    first, second = (" ".join(it.values()).replace("'", "") for it in (was, was | dict(came)))
    return f"記録では {first}、今回は {second}"
