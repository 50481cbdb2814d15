"""clone したばかりのフォルダーで、参加者と同じように `python app.py` を実行する。"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.outside import OutsideServices

FAST = ["-m", "tests.support.outside"]  # 5 倍速で、外部サービスはスタブ
APP = ["app.py"]
WAITING, QUESTION = "short_wait: ", "承認者の名前"  # 待機に入った、承認を尋ねた


class Terminal:
    def __init__(self, folder: Path, services: OutsideServices) -> None:
        self.folder, self.services = folder, services
        self.orders = folder / ".orders"
        self.record = self.orders / "order-123.db"
        self.later = 0  # 次のプロセスの時計を進める秒数

    def start(self, *orders: Any, **options: Any) -> "subprocess.Popen[str]":
        """注文の処理を始める。freeze を表示すると止まり、動かすと、時計が jump 秒進んでいる。"""
        texts = [order if isinstance(order, str) else json.dumps(order) for order in orders]
        program, freeze = options.pop("program", FAST), options.pop("freeze", "")
        fast = {"BOOKS": str(self.services.books), "LATER": str(self.later)}
        fast |= {"FREEZE": freeze, "JUMP": str(options.pop("jump", ""))}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            [sys.executable, *program, *texts],
            cwd=self.folder,
            text=True,
            **{**streams, "env": os.environ | fast, **options},
        )
        if freeze:
            assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        return process

    def run(self, *orders: Any, stdin: str = "", **options: Any) -> tuple[int, str, str]:
        """注文を処理し、終了コード、標準出力、標準エラー出力を返す。"""
        process = self.start(*orders, **options)
        out, err = process.communicate(stdin, timeout=120)
        return process.returncode, out, err

    def stop_at(self, words: str, number: int, *orders: Any, **options: Any) -> tuple[int, str]:
        """words を表示した所でシグナルを送り、終了コードと標準エラー出力を返す。"""
        process = self.start(*orders, freeze=words, **options)
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate(timeout=120)
        return process.returncode, err

    def edit(self, *edits: str) -> None:
        program = self.folder / "app.py"
        for old, new in zip(edits[::2], edits[1::2], strict=True):
            text = program.read_text("utf-8")
            assert old in text
            program.write_text(text.replace(old, new), "utf-8")


def read_to(words: str, process: "subprocess.Popen[str]") -> str:
    """words が表示されるまで読み、読んだものを返す。"""
    assert process.stdout is not None
    seen = ""
    while words not in seen:
        char = process.stdout.read(1)
        assert char, seen
        seen += char
    return seen


def result_in(out: str) -> dict[str, Any]:
    result: dict[str, Any] = json.JSONDecoder().raw_decode(out[out.index("\n{") + 1 :])[0]
    return result
