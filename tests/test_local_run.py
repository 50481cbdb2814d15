"""`python app.py` を、参加者と同じく端末から動かす。"""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import app
from tests import local_run
from tests.conftest import README_ORDER, order_of

ROOT = Path(app.__file__).parent
NO_TIMEOUTS = {"payment_timeouts": 0}


def start(*arguments: str, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "app.py", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, **{**pipes, **options})


def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(stdin, timeout=30)
    return process.returncode, out, err


def result_in(out: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(out[out.index("\n{") :])
    return result


def test_default_order_is_the_readme_order() -> None:
    assert json.loads(local_run.README_ORDER) == README_ORDER


@pytest.mark.parametrize("form", ["text", "file"])
def test_order_is_taken_as_text_or_file(tmp_path: Path, form: str) -> None:
    order = json.dumps(order_of(quantity=5000))
    path = tmp_path / "order.json"
    path.write_text(order)
    code, out, err = run(order if form == "text" else str(path))
    assert (code, err) == (0, "")
    assert result_in(out)["status"] == "OUT_OF_STOCK"


@pytest.mark.parametrize(
    ("stdin", "status"),
    [
        ("sato\nyes\n", "COMPLETED"),
        ("sato\nyes please\n", "REJECTED"),
        ("sato\ny\n", "REJECTED"),
        ("sato\n\n", "REJECTED"),
        ("sato\n", "REJECTED"),
        ("", "REJECTED"),
    ],
)
def test_only_an_explicit_yes_approves(stdin: str, status: str) -> None:
    order = order_of(price=50_000, simulate=NO_TIMEOUTS)
    code, out, err = run(json.dumps(order), stdin=stdin)
    assert (code, err) == (0, "")
    assert result_in(out)["status"] == status


def test_ctrl_c_at_the_question_is_no_approval() -> None:
    controller, terminal = pty.openpty()
    process = start(json.dumps(order_of(price=50_000)), stdin=terminal)
    assert process.stdout is not None
    seen = ""
    while "だれが決めますか" not in seen:
        seen += process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    os.close(controller)
    os.close(terminal)
    assert (process.returncode, err) == (0, "")
    assert result_in(out)["status"] == "REJECTED"


def test_ctrl_c_while_waiting_ends_at_once_with_one_sentence() -> None:
    process = start()
    assert process.stdout is not None
    while "short_wait" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=5)
    assert (process.returncode, err) == (1, "中断しました。\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["{broken"],
        ["no-such-file.json"],
        [str(ROOT)],
        ["[" * 100_000],
        ['{"order_id": "order-1"}'],
        ["[]"],
        ["null"],
        [""],
        ["one", "two"],
    ],
)
def test_unusable_order_gives_one_sentence_and_exit_code_1(arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.endswith("。\n")
