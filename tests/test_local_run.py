"""`python app.py` を、参加者と同じくターミナルから動かす。何度止めても、注文は続きから再開する。"""

import ast
import contextlib
import json
import os
import pty
import random
import re
import shutil
import signal
import sqlite3
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.local_run import README_ORDER, order, record
from tests.local_run.record import UnusableOrderError, open_record
from tests.local_run.runner import OrderClock
from tests.support.flows import DECLINED, OUT_OF_STOCK, TO_APPROVE, order_of
from tests.support.terminal import APP, QUESTION, WAITING, Terminal, read_to, result_in

ROOT = Path(__file__).parents[1]
STOPPED = "\n中断しました。同じコマンドをもう一度実行すると、続きから再開します。\n"
NEEDS_DEV_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="macOS にはない")


def one_sentence(code: int, out: str, err: str) -> str:
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.endswith("。\n")
    return err


def completed(terminal: Terminal, *orders: Any) -> str:
    """再開すると COMPLETED になり、請求も通知も 1 回だけであること。画面を返す。"""
    code, out, err = terminal.run(*orders, stdin="sato\nyes\n")
    assert (code, err) == (0, "")
    assert result_in(out)["status"] == "COMPLETED"
    assert list(terminal.services.done("charge")) == ["order-123-payment"]
    assert list(terminal.services.done("notice")) == ["order-123-COMPLETED"]
    assert list(terminal.orders.iterdir()) == []
    return out


def out_of_stock(ended: tuple[int, str, str]) -> str:
    code, out, err = ended
    assert (code, err) == (0, "")
    assert result_in(out)["status"] == "OUT_OF_STOCK"
    return out


# ---- 完了まで --------------------------------------------------------------------


def test_order_is_taken_as_text_or_file_and_only_its_own_record_is_deleted(
    terminal: Terminal,
) -> None:
    (terminal.folder / "order.json").write_text(json.dumps(OUT_OF_STOCK))
    terminal.orders.mkdir()
    others = [terminal.orders / f"order-123{end}" for end in (".db.bak", ".txt", "4.db")]
    for other in others:
        other.touch()
    for form in (OUT_OF_STOCK, "order.json"):
        assert "呼び出し 1 回目\n" in out_of_stock(terminal.run(form, program=APP))
        assert set(terminal.orders.iterdir()) == set(others)


def test_file_of_another_name_is_run(terminal: Terminal) -> None:
    (terminal.folder / "app.py").rename(terminal.folder / "app.bak")
    out_of_stock(terminal.run(OUT_OF_STOCK, program=["app.bak"]))


def test_character_that_the_terminal_does_not_know_is_no_obstacle(terminal: Terminal) -> None:
    unknown = OUT_OF_STOCK | {"items": [{"product_id": "\ud800", "price": 1, "quantity": 1}]}
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert "\\ud800" in out_of_stock(terminal.run(unknown, program=APP, env=environment))


def test_declined_card_does_not_read_like_the_first_of_several_attempts(terminal: Terminal) -> None:
    _, out, _ = terminal.run(DECLINED)
    assert "pay            失敗: カードが拒否されました\n" in out
    assert "回目は失敗" not in out


class Keyboard:
    """標準入力に打たれた文字。None は、標準入力が閉じていることを示す。"""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, typed: str | None) -> None:
        self.left, self.closed = (typed or "").encode(), typed is None
        for name, replacement in (("isatty", lambda _: False), ("read", self.read)):
            monkeypatch.setattr(f"os.{name}", replacement)
        monkeypatch.setattr("select.select", lambda *_: ([0], [], []))

    def read(self, file: int, size: int) -> bytes:
        if self.closed:
            raise OSError
        char, self.left = self.left[:1], self.left[1:]
        return char


@pytest.mark.parametrize(
    ("typed", "approved", "approver"),
    [
        ("sato\nyes\n", True, "sato"),
        ("sato\n ＹＥＳ \n", True, "sato"),
        ("\n\nsato\n\nyes please\nはい\n", True, "sato"),
        ("sato\nY\n", True, "sato"),
        ("sato\nNo\n", False, "sato"),
        ("sato\nｎ\n", False, "sato"),
        ("sato\n\nえ\nいいえ\n", False, "sato"),
        ("sato\nyes please\n", False, None),
        ("", False, None),
        (None, False, None),
    ],
)
def test_only_a_clear_answer_decides_and_end_of_input_is_no_approval(
    monkeypatch: pytest.MonkeyPatch, typed: str | None, approved: bool, approver: str | None
) -> None:
    Keyboard(monkeypatch, typed)
    clock = OrderClock()
    answer = json.loads(order.ask_approver(clock, clock.now() + timedelta(minutes=1)) or "")
    assert (answer["approved"], answer.get("approver")) == (approved, approver)


def test_terminal_that_can_no_longer_be_read_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """`& disown` でターミナルから切り離されると、読み取りだけが OSError になる。"""
    Keyboard(monkeypatch, None)
    monkeypatch.setattr("os.isatty", lambda _: True)
    monkeypatch.setattr(order, "stop", mock.Mock(side_effect=SystemExit))
    with pytest.raises(SystemExit):
        order.ask_approver(OrderClock(), datetime.now(UTC) + timedelta(minutes=1))


@pytest.mark.parametrize(("looks", "late"), [(4, True), (5, False)])
def test_answer_that_comes_after_its_deadline_is_none(
    monkeypatch: pytest.MonkeyPatch, looks: int, late: bool
) -> None:
    """Ctrl-Z やスリープで止まっている間に期限が過ぎ、その後で yes が届く。"""
    Keyboard(monkeypatch, "yes\n")
    clock = OrderClock()
    monkeypatch.setattr(clock, "arm", mock.Mock(side_effect=[9.0] * looks + [0.0]))
    with pytest.raises(TimeoutError) if late else contextlib.nullcontext():
        assert order.ask("", clock, datetime.now(UTC)) == "yes"


# ---- 止めて、再開する --------------------------------------------------------------


def test_order_stopped_for_a_day_goes_on_and_runs_no_recorded_step_again(
    terminal: Terminal,
) -> None:
    """待機の終わりは、実行タイムアウトより先に来ている。"""
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)}  # nohup でも
    assert terminal.stop_at(WAITING, signal.SIGHUP, **heard) == (-signal.SIGHUP, "")
    terminal.later = 86_400
    out = completed(terminal)
    assert out.startswith("前回の続きから、注文の処理を再開します。\n")
    assert "記録済み: accept_order, check_stock, short_wait\n" in out
    assert "受け付けました" not in out
    assert WAITING not in out
    elapsed = re.search(r"終了: 呼び出しは 3 回。(\d+)\.\d 秒のうち", out)
    assert elapsed
    assert int(elapsed[1]) >= 86_400


def test_wait_ends_when_it_would_have_ended_though_the_clock_is_set_back(
    terminal: Terminal,
) -> None:
    """待機の終わる時刻は、再開しても、最初に記録したままである。"""
    ends = []
    for later in (86_400, 0):
        terminal.later = later
        terminal.stop_at(WAITING, signal.SIGKILL)
        store = open_record(terminal.record, 1)
        assert store.recorded
        ends += [o.wait_details for o in store.recorded.operations if o.wait_details]
        store.claim.file.close()
    assert ends[0] == ends[1]
    seconds = re.findall(r"あと (\d+) 秒", completed(terminal))
    assert {0 < int(number) <= 10 for number in seconds} == {True}


def test_leaving_the_question_is_no_answer_and_it_is_asked_again(terminal: Terminal) -> None:
    controller, keyboard = pty.openpty()
    os.write(controller, b"sato\n")
    ending = terminal.stop_at("承認しますか", signal.SIGINT, TO_APPROVE, stdin=keyboard)
    assert ending == (130, STOPPED)
    os.close(controller)
    os.close(keyboard)
    assert "承認を依頼しました" not in completed(terminal, TO_APPROVE)


@pytest.mark.parametrize(("passed", "asked"), [(86_400, False), (560, True)])
def test_approval_times_out_at_its_time_after_going_on(
    terminal: Terminal, passed: int, asked: bool
) -> None:
    """期限は、実行タイムアウトより先に来ている。改行のない回答は、まだ回答でない。"""
    terminal.stop_at(QUESTION, signal.SIGKILL, TO_APPROVE)
    terminal.later = passed
    keyboard, controller = os.pipe()
    os.write(controller, b"sato")
    out, _ = terminal.start(TO_APPROVE, stdin=keyboard).communicate(timeout=120)
    os.close(controller)
    os.close(keyboard)
    assert (QUESTION in out) is asked
    assert result_in(out)["status"] == "APPROVAL_TIMED_OUT"
    assert terminal.services.done("charge") == {}


def test_execution_timeout_is_armed_again_after_going_on(terminal: Terminal) -> None:
    terminal.edit("Duration.from_minutes(20)", "Duration.from_seconds(40)")
    slow = order_of(simulate={"payment_timeouts": 0, "payment_seconds": 20})
    terminal.stop_at(WAITING, signal.SIGKILL, slow)
    code, out, err = terminal.run(slow)
    assert code == 1
    assert "呼び出し 2 回目" in out
    assert "実行タイムアウト（ExecutionTimeout）を超えました。\n" in err
    assert list(terminal.orders.iterdir()) == []


# ---- 表示できない ------------------------------------------------------------------

GONE = [("terminal", 9), ("terminal", 15), ("reader", 1)]
LINES = [(gone, line) for gone in ("terminal", "reader") for line in range(1, 18)]
SWEPT = [pytest.param(*row, marks=pytest.mark.sweep) for row in LINES if row not in GONE]
IGNORING_HANGUP = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}


@pytest.mark.parametrize(("gone", "lines"), [*GONE, *SWEPT])
def test_order_survives_a_terminal_that_is_gone_after_any_line(
    terminal: Terminal, gone: str, lines: int
) -> None:
    """`& disown` したプロセスのターミナルが閉じられるか、`| head` が先に終わる。"""
    reader, screen = pty.openpty() if gone == "terminal" else os.pipe()
    pipes = {"stdin": screen, "stdout": screen, "stderr": screen}
    process = terminal.start(freeze=f"line {lines}", **pipes, **IGNORING_HANGUP)
    os.close(screen)
    os.close(reader)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=120) != 0
    assert terminal.record.exists()
    completed(terminal)


def test_terminal_that_is_gone_at_the_question_decides_nothing(
    terminal: Terminal, tmp_path: Path
) -> None:
    """標準出力はファイルなので、ターミナルがなくなったことは、入力からしか分からない。"""
    controller, keyboard = pty.openpty()
    with (tmp_path / "log").open("w+") as log:
        pipes = {"stdin": keyboard, "stdout": log, "stderr": log}
        process = terminal.start(TO_APPROVE, **pipes, **IGNORING_HANGUP)
        os.close(keyboard)
        while QUESTION not in (tmp_path / "log").read_text("utf-8"):
            assert process.poll() is None
        os.close(controller)
        assert process.wait(timeout=120) == 1
    assert terminal.services.done("notice") == {}
    completed(terminal, TO_APPROVE)


def test_closed_output_is_one_sentence(terminal: Terminal) -> None:
    assert "閉じています" in one_sentence(*terminal.run(preexec_fn=lambda: os.close(1)))


@NEEDS_DEV_FULL
def test_full_output_is_one_sentence(terminal: Terminal) -> None:
    with open("/dev/full", "w") as full:
        code, _, err = terminal.run(stdout=full)
    assert err.startswith("表示できません（No space left on device）。")
    one_sentence(code, "", err)
    assert terminal.record.exists()


@NEEDS_DEV_FULL
def test_failure_that_cannot_be_shown_is_shown_by_the_next_command(terminal: Terminal) -> None:
    terminal.services.lose_answers("order-123-notice", "NNNN")
    with open("/dev/full", "w") as full:
        assert terminal.run(stderr=full)[0] == 1
    assert "order-123-notice の依頼が届かない" in terminal.run()[2]


# ---- 始められない、再開できない ------------------------------------------------------

RUN_APP = "import runpy; sys.argv[0] = 'app.py'; runpy.run_path('app.py', run_name='__main__')"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (["-S", "app.py"], "aws-durable-execution-sdk-python がインストールされていません"),
        (["-c", f"import sys; sys.modules['fcntl'] = None; {RUN_APP}"], "WSL か AWS CloudShell"),
        (["-c", f"import sys; sys.version_info = (3, 9); {RUN_APP}"], "以降が必要です（これは 3.9"),
        (APP, "requirements.txt の 2.0.0 と違います"),
    ],
)
def test_unusable_environment_is_one_sentence_and_nothing_is_touched(
    terminal: Terminal, program: list[str], words: str
) -> None:
    if program == APP:
        pins = terminal.folder / "requirements.txt"
        pins.write_text(re.sub(r"(sdk-python==)\S+", r"\g<1>2.0.0", pins.read_text("utf-8")))
    assert words in one_sentence(*terminal.run(program=program))
    assert not terminal.orders.exists()


def test_what_says_so_can_be_read_by_an_old_python() -> None:
    for name in ("app.py", "tests/local_run/__init__.py", "tests/local_run/screen.py"):
        ast.parse((ROOT / name).read_text("utf-8"), feature_version=(3, 9))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{broken"], "1 行 2 文字目"),
        (["no-such-file.json"], "no-such-file.json がありません"),
        (["broken.json"], "2 行 1 文字目"),
        (["folder"], "読み取れません"),
        (["[" * 100_000], "読み取れません"),
        (['{"order_id": NaN}'], "読み取れません"),
        ([""], "読み取れません"),
        (["one", "two"], "1 つだけ"),
        (["--help"], "1 つだけ"),
    ],
)
def test_unusable_order_says_what_is_wrong_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnusableOrderError, match=words):
        order.read_order(arguments)


def test_unusable_order_is_one_sentence(terminal: Terminal) -> None:
    assert "注文: " in one_sentence(*terminal.run("[]", program=APP))


def test_what_no_longer_fits_the_record_is_refused_and_nothing_is_lost(terminal: Terminal) -> None:
    terminal.stop_at(WAITING, signal.SIGKILL)
    assert "内容の異なる" in one_sentence(*terminal.run(order_of(price=1)))
    line = '    shortages = step(check_stock(event["items"]))\n'
    terminal.edit(line, f'    step(pay(order, "x", {{"payment_timeouts": 0}}))\n{line}')
    code, out, err = terminal.run()
    assert (code, err.count("\n")) == (1, 1)
    assert "app.py を元に戻す" in err
    assert "請求しました" not in out
    terminal.edit('    step(pay(order, "x", {"payment_timeouts": 0}))\n', "")
    completed(terminal, dict(reversed(README_ORDER.items())))


BSD_LOCKS = """
import fcntl, struct, sys
def flock(file, flags):  # BSD と macOS では、flock も fcntl のロックと衝突する
    lock = struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0)
    return fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
fcntl.flock = flock
import runpy
runpy.run_module("tests.support.outside", run_name="__main__")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ほかの OS では、本物のロックで試される")
def test_lock_does_not_shut_the_process_itself_out_on_bsd_and_macos(terminal: Terminal) -> None:
    program = ["-c", BSD_LOCKS]
    terminal.stop_at("在庫を確認しました", signal.SIGKILL, OUT_OF_STOCK, program=program)
    out_of_stock(terminal.run(OUT_OF_STOCK, program=program))


def test_only_the_process_that_has_the_record_goes_on(terminal: Terminal) -> None:
    """2 つ目は拒否される。記録が消されて始め直されれば、回答は後の方だけに効く。"""
    keyboards = [pty.openpty() for _ in range(2)]
    first = terminal.start(TO_APPROVE, stdin=keyboards[0][1])
    read_to(QUESTION, first)
    assert "別のプロセスで処理中" in one_sentence(*terminal.run(TO_APPROVE))
    shutil.rmtree(terminal.orders)
    second = terminal.start(TO_APPROVE, stdin=keyboards[1][1])
    read_to(QUESTION, second)
    os.write(keyboards[0][0], b"sato\nyes\n")
    _, err = first.communicate(timeout=120)
    assert "削除されたか" in one_sentence(first.returncode, "", err)
    os.write(keyboards[1][0], b"sato\nno\n")
    out, _ = second.communicate(timeout=120)
    assert result_in(out)["status"] == "REJECTED"
    assert terminal.services.done("charge") == {}


def test_full_disk_is_called_full_not_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = record.OrderStore._get_connection  # 非公開 API。ここでしか上限を決められない

    def small(self: record.OrderStore) -> sqlite3.Connection:
        database = connect(self)
        database.execute("PRAGMA max_page_count = 2")
        return database

    monkeypatch.setattr(record.OrderStore, "_get_connection", small)
    (tmp_path / "file").touch()
    for folder, why in ((".orders", "database or disk is full"), ("file", "File exists")):
        with pytest.raises(UnusableOrderError, match=f"書き込めません（{why}）"):
            open_record(tmp_path / folder / "order-123.db", 1)


DAMAGE = [
    "UPDATE executions SET data = replace(data, '2000', '2001')",
    "UPDATE invocations SET began = NULL",
    "UPDATE seal SET time = 1.8e9",
    "DELETE FROM executions",
    "DELETE FROM seal",
]


def test_record_that_is_damaged_anywhere_is_refused_and_kept_or_still_the_same(
    terminal: Terminal,
) -> None:
    terminal.stop_at(WAITING, signal.SIGKILL)
    whole, randomly = terminal.record.read_bytes(), random.Random(14)

    def is_refused() -> bool:
        try:
            store = open_record(terminal.record, 1)
        except UnusableOrderError:
            return True
        assert store.recorded
        assert store.invocations()
        store.claim.file.close()
        return False

    for change in DAMAGE:
        terminal.record.write_bytes(whole)
        with contextlib.closing(sqlite3.connect(terminal.record)) as database, database:
            database.execute(change)
        assert is_refused(), change
    refused = 0
    for _ in range(200):
        place, size = randomly.randrange(len(whole)), randomly.choice([1, 8])
        damaged = whole[:place] + randomly.randbytes(size) + whole[place + size :]
        terminal.record.write_bytes(damaged)
        refused += is_refused()
    assert refused > 10  # 使われていない場所なら、傷んでも同じ

    terminal.record.write_bytes(b"garbage")
    assert ".orders/order-123.db を注文の記録として" in one_sentence(*terminal.run())
    assert terminal.record.read_bytes() == b"garbage"
