"""ターミナルへの表示。表示できなければ、注文を進めずにプロセスを終え、記録を残す。"""

import contextlib
import io
import os
import signal
import sys

TYPE_CHECKING = False  # typing の import は遅く、その間の Ctrl-C はトレースバックになる
if TYPE_CHECKING:
    from typing import NoReturn, TextIO

INTERRUPTED = "\n中断しました。同じコマンドをもう一度実行すると、続きから再開します。"


def prepare() -> None:
    """シグナルと、表示できない文字の扱いを決める。"""
    signal.signal(signal.SIGINT, lambda *_: stop(INTERRUPTED, 130))
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            stop("出力先が閉じています。表示できるようにして、もう一度実行してください。", 1)
        stream.reconfigure(errors="backslashreplace")


def say(text: str, end: str = "\n", file: "TextIO | None" = None) -> None:
    """表示する。できなければ、ステップの途中でもプロセスを終える。"""
    try:
        print(text + end, end="", file=file, flush=True)  # 1 度に書き、並行するブランチと混ざらない
    except OSError as error:
        stop(f"表示できません（{error.strerror}）。記録は残るので、再開できます。", 1)


def stop(sentence: "str | None", code: int) -> "NoReturn":
    """ステップの途中でも、ただちにプロセスを終了する。"""
    if sentence:
        with contextlib.suppress(OSError):
            print(sentence, file=sys.stderr, flush=True)
    os._exit(code)
