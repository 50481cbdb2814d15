"""`python app.py` を、参加者と同じく端末から動かす。何度止めても、注文は続きから進む。"""

import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import order_of
from tests.local_run import README_ORDER

NO_TIMEOUTS = {"payment_timeouts": 0}
TO_APPROVE = order_of(price=50_000, simulate=NO_TIMEOUTS)
OUT_OF_STOCK = order_of(quantity=5000)
STOPPED = "\n中断しました。同じコマンドで、続きから始まります。\n"


class Terminal:
    """clone したばかりのフォルダーで `python app.py` を実行する。"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.orders = folder / ".orders"
        self.record = self.orders / "order-123.db"

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, *(options.pop("program", ["app.py"])), *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options = {**pipes, **options}
        return subprocess.Popen(command, cwd=self.folder, text=True, **options)

    def run(self, *orders: Any, stdin: str = "", **options: Any) -> tuple[int, str, str]:
        """注文を実行し、終了コードと標準出力と標準エラーを返す。"""
        texts = [order if isinstance(order, str) else json.dumps(order) for order in orders]
        process = self.start(*texts, **options)
        out, err = process.communicate(stdin, timeout=60)
        return process.returncode, out, err

    def stop_at(self, words: str, number: int, *orders: Any, **options: Any) -> tuple[int, str]:
        """words が出たらシグナルを送り、終了コードと標準エラーを返す。"""
        process = self.start(*map(json.dumps, orders), **options)
        read_to(words, process)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        return process.returncode, err

    def let_time_pass(self, seconds: int) -> None:
        """止めている間に seconds 秒が過ぎたことにする。記録の時刻をすべて、前にずらす。"""

        def earlier(found: re.Match[str]) -> str:
            return f"{found[1]}{int(found[2]) - seconds * 1000}"

        database = sqlite3.connect(self.record)
        (data,) = database.execute("SELECT data FROM executions").fetchone()
        data, found = re.subn(r'(Timestamp": )(\d{13})', earlier, data)
        assert found
        with database:
            database.execute("UPDATE executions SET data = ?", [data])
        database.close()

    def edit(self, old: str, new: str) -> None:
        program = self.folder / "app.py"
        text = program.read_text("utf-8")
        assert old in text
        program.write_text(text.replace(old, new), "utf-8")


@pytest.fixture
def terminal(folder: Path) -> Terminal:
    return Terminal(folder)


def read_to(words: str, process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    seen = ""
    while words not in seen:
        char = process.stdout.read(1)
        assert char, seen
        seen += char


def result_in(out: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(out[out.index("\n{") :])
    return result


def one_sentence(code: int, out: str, err: str) -> str:
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.endswith("。\n")
    return err


# ---- 終わりまで ------------------------------------------------------------------


@pytest.mark.parametrize("form", ["text", "file"])
def test_order_is_taken_as_text_or_file_and_leaves_nothing_behind(
    terminal: Terminal, form: str
) -> None:
    (terminal.folder / "order.json").write_text(json.dumps(OUT_OF_STOCK))
    for _ in range(2):
        code, out, err = terminal.run(OUT_OF_STOCK if form == "text" else "order.json")
        assert (code, err) == (0, "")
        assert "起動 1 回目\n" in out
        assert result_in(out)["status"] == "OUT_OF_STOCK"
        assert list(terminal.orders.iterdir()) == []


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
def test_only_an_explicit_yes_approves(terminal: Terminal, stdin: str, status: str) -> None:
    code, out, err = terminal.run(TO_APPROVE, stdin=stdin)
    assert (code, err) == (0, "")
    result = result_in(out)
    assert result["status"] == status
    assert result.get("approver") == ("sato" if stdin.count("\n") == 2 else None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["{broken"],
        ["no-such-file.json"],
        ["tests"],
        ["[" * 100_000],
        ['{"order_id": "order-1"}'],
        ["[]"],
        ["null"],
        [""],
        ["one", "two"],
    ],
)
def test_unusable_order_gets_one_sentence(terminal: Terminal, arguments: list[str]) -> None:
    one_sentence(*terminal.run(*arguments))


# ---- 止めて、続ける ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "ending"),
    [
        (signal.SIGINT, (130, STOPPED)),
        (signal.SIGTERM, (-signal.SIGTERM, "")),
        (signal.SIGHUP, (-signal.SIGHUP, "")),
        (signal.SIGKILL, (-signal.SIGKILL, "")),
    ],
)
def test_order_stopped_in_the_wait_goes_on_and_runs_no_recorded_step_again(
    terminal: Terminal, number: int, ending: tuple[int, str]
) -> None:
    assert terminal.stop_at("short_wait", number) == ending
    terminal.let_time_pass(60)
    code, out, err = terminal.run()
    assert (code, err) == (0, "")
    assert out.startswith("途中まで済んだ注文を、続きから実行します。\n")
    assert "記録済み: accept_order, check_stock, short_wait\n" in out
    assert "受け付けました" not in out
    assert "待ちます" not in out
    assert result_in(out)["status"] == "COMPLETED"
    elapsed = re.search(
        r"終了: 起動は 3 回。(\d+)\.\d 秒のうち、動いていたのは 0\.\d 秒でした\n", out
    )
    assert elapsed
    assert 60 <= int(elapsed[1]) < 120


def test_wait_ends_when_it_would_have_ended(terminal: Terminal) -> None:
    terminal.stop_at("short_wait", signal.SIGKILL)
    terminal.let_time_pass(5)
    _, out, _ = terminal.run()
    assert re.search(r"short_wait: あと [1-5] 秒待ちます", out)
    assert re.search(r" 1[0-4]\.\d 秒    pay ", out)  # 待ち直せば、早くても 15 秒になる


def test_leaving_the_question_is_no_answer_and_it_is_asked_again(terminal: Terminal) -> None:
    controller, keyboard = pty.openpty()
    for question in ("だれが決めますか", "承認しますか"):
        os.write(controller, b"sato\n" if question == "承認しますか" else b"")
        ending = terminal.stop_at(question, signal.SIGINT, TO_APPROVE, stdin=keyboard)
        assert ending == (130, STOPPED)
    os.close(controller)
    os.close(keyboard)
    code, out, _ = terminal.run(TO_APPROVE, stdin="sato\nyes\n")
    assert code == 0
    assert "承認を頼みました" not in out
    assert result_in(out)["status"] == "COMPLETED"


def test_approval_whose_time_is_over_times_out_without_a_question(terminal: Terminal) -> None:
    terminal.stop_at("だれが決めますか", signal.SIGKILL, TO_APPROVE)
    terminal.let_time_pass(601)
    code, out, _ = terminal.run(TO_APPROVE, stdin="sato\nyes\n")
    assert code == 0
    assert "だれが決めますか" not in out
    assert result_in(out)["status"] == "APPROVAL_TIMED_OUT"


def test_approval_times_out_at_its_time_after_going_on(terminal: Terminal) -> None:
    terminal.stop_at("だれが決めますか", signal.SIGKILL, TO_APPROVE)
    terminal.let_time_pass(590)
    controller, keyboard = pty.openpty()  # 開いたまま、何も答えない
    out, _ = terminal.start(json.dumps(TO_APPROVE), stdin=keyboard).communicate(timeout=30)
    os.close(controller)
    os.close(keyboard)
    assert "だれが決めますか" in out
    assert result_in(out)["status"] == "APPROVAL_TIMED_OUT"


def test_half_an_answer_does_not_outlive_the_deadline(terminal: Terminal) -> None:
    terminal.stop_at("だれが決めますか", signal.SIGKILL, TO_APPROVE)
    terminal.let_time_pass(590)
    keyboard, controller = os.pipe()
    os.write(controller, b"sato")  # 改行も、入力の終わりもない
    out, _ = terminal.start(json.dumps(TO_APPROVE), stdin=keyboard).communicate(timeout=30)
    os.close(controller)
    os.close(keyboard)
    assert result_in(out)["status"] == "APPROVAL_TIMED_OUT"


def test_closed_input_is_no_approval(terminal: Terminal) -> None:
    process = terminal.start(json.dumps(TO_APPROVE), preexec_fn=lambda: os.close(0))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert result_in(out)["status"] == "REJECTED"


def test_character_that_the_terminal_does_not_know_is_no_obstacle(terminal: Terminal) -> None:
    unknown = OUT_OF_STOCK | {"items": [{"product_id": "\ud800", "price": 1, "quantity": 1}]}
    code, out, err = terminal.run(unknown)
    assert (code, err) == (0, "")
    assert "\\ud800" in out
    assert list(terminal.orders.iterdir()) == []


def test_execution_timeout_runs_from_the_start_of_the_order(terminal: Terminal) -> None:
    terminal.stop_at("short_wait", signal.SIGKILL)
    terminal.let_time_pass(1201)
    code, out, err = terminal.run()
    assert code == 1
    assert "起動" not in out
    assert err == "注文は、始めてから 20 分の ExecutionTimeout を過ぎたので失敗しました。\n"
    assert list(terminal.orders.iterdir()) == []


def test_execution_timeout_is_armed_again_for_what_is_left_of_it(terminal: Terminal) -> None:
    slow = order_of(simulate=NO_TIMEOUTS | {"payment_seconds": 20})
    terminal.stop_at("short_wait", signal.SIGKILL, slow)
    terminal.let_time_pass(1190)
    code, out, err = terminal.run(slow)
    assert code == 1
    assert "起動 2 回目" in out
    assert "ExecutionTimeout" in err


def test_result_that_nobody_has_seen_is_shown(terminal: Terminal) -> None:
    program = (
        "import os; from tests import local_run; "
        "local_run.show_result = lambda _: os.kill(os.getpid(), 9); local_run.main()"
    )
    assert terminal.run(OUT_OF_STOCK, program=["-c", program])[0] == -signal.SIGKILL
    code, out, _ = terminal.run(OUT_OF_STOCK)
    assert code == 0
    assert "起動" not in out
    assert result_in(out)["status"] == "OUT_OF_STOCK"
    assert list(terminal.orders.iterdir()) == []


def test_reader_that_leaves_ends_the_process_quietly(terminal: Terminal) -> None:
    with terminal.start(stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        read_to("short_wait", process)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == -signal.SIGPIPE
    assert result_in(terminal.run()[1])["status"] == "COMPLETED"


# ---- 続けられない ----------------------------------------------------------------


def test_other_content_under_an_unfinished_id_is_refused_and_nothing_is_lost(
    terminal: Terminal,
) -> None:
    terminal.stop_at("short_wait", signal.SIGKILL)
    assert "別の内容" in one_sentence(*terminal.run(order_of(price=1)))
    assert terminal.record.exists()
    reordered = dict(reversed(README_ORDER.items()))
    code, out, _ = terminal.run(reordered)
    assert (code, result_in(out)["status"]) == (0, "COMPLETED")


def test_order_in_a_second_terminal_is_refused_until_the_first_ends(terminal: Terminal) -> None:
    with terminal.start() as first:
        assert first.stdout is not None
        read_to("short_wait", first)
        assert "別の端末" in one_sentence(*terminal.run())
        assert terminal.run(OUT_OF_STOCK | {"order_id": "order-456"})[0] == 0
        assert result_in("\n" + first.stdout.read())["status"] == "COMPLETED"
    assert first.returncode == 0


def test_folder_that_cannot_be_written_gets_one_sentence(terminal: Terminal) -> None:
    terminal.orders.write_text("a file")
    assert ".orders/order-123.db" in one_sentence(*terminal.run())
    assert terminal.orders.read_text() == "a file"


def test_record_that_is_lost_on_the_way_gets_one_sentence(terminal: Terminal) -> None:
    process = terminal.start()
    read_to("short_wait: あと", process)
    shutil.rmtree(terminal.orders)
    _, err = process.communicate(timeout=60)
    assert ".orders/" in one_sentence(process.returncode, "", err)
    assert result_in(terminal.run()[1])["status"] == "COMPLETED"


@pytest.mark.parametrize("damage", ["garbage", "data"])
def test_record_that_cannot_be_read_gets_one_sentence_and_is_kept(
    terminal: Terminal, damage: str
) -> None:
    terminal.stop_at("short_wait", signal.SIGKILL)
    if damage == "garbage":
        terminal.record.write_bytes(b"garbage " * 1000)
    else:
        with sqlite3.connect(terminal.record) as database:
            database.execute("UPDATE executions SET data = '{}'")
        database.close()
    before = terminal.record.read_bytes()
    assert ".orders/order-123.db" in one_sentence(*terminal.run())
    assert terminal.record.read_bytes() == before


def test_handler_that_no_longer_fits_gets_one_sentence_and_nothing_is_lost(
    terminal: Terminal,
) -> None:
    terminal.stop_at("short_wait", signal.SIGKILL)
    line = '    shortages = step(check_stock(event["items"]))\n'
    terminal.edit(line, f'    step(pay(order, "x", {{"payment_timeouts": 0}}))\n{line}')
    code, out, err = terminal.run()
    assert (code, err.count("\n")) == (1, 1)
    assert "app.py を元に戻す" in err
    assert "請求しました" not in out
    terminal.edit('    step(pay(order, "x", {"payment_timeouts": 0}))\n', "")
    assert result_in(terminal.run()[1])["status"] == "COMPLETED"


def test_edit_that_fits_takes_effect_on_going_on(terminal: Terminal) -> None:
    terminal.stop_at("short_wait", signal.SIGKILL)
    terminal.edit("お客様に通知しました", "お客様にお知らせしました")
    assert "お客様にお知らせしました: COMPLETED" in terminal.run()[1]
