"""`python app.py` を、参加者と同じくターミナルから動かす。何度止めても、注文は続きから再開する。"""

import ast
import json
import os
import pty
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
from tests.support.flows import ANSWERS, DECLINED, OUT_OF_STOCK, TO_APPROVE, order_of
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


# ---- 完了まで --------------------------------------------------------------------


def test_screen_says_how_long_the_order_was_and_how_little_of_it_anything_ran(
    terminal: Terminal,
) -> None:
    out = completed(terminal)
    assert "short_wait: あと 10 秒待ちます" in out
    times = [float(time) for time in re.findall(r"^ *(\d+\.\d) 秒  ", out, re.MULTILINE)]
    closing = re.search(r"回。(\d+\.\d) 秒のうち、動いていたのは (\d+\.\d) 秒でした\n", out)
    again = re.search(r"^ *(\d+\.\d) 秒  呼び出し 2 回目", out, re.MULTILINE)
    assert closing
    assert again
    total, ran = map(float, closing.groups())
    assert times == sorted(times)
    assert 10 <= float(again[1]) <= total - 1  # 再試行は 1 秒以上後
    assert times[-1] == pytest.approx(total, abs=0.2)
    assert 0 < ran <= total - 11


def test_order_is_taken_as_text_or_file_and_only_its_own_record_is_deleted(
    terminal: Terminal,
) -> None:
    """app.py のファイル名が何でも、ターミナルが日本語を表示できなくても。"""
    (terminal.folder / "order.json").write_text(json.dumps(OUT_OF_STOCK))
    (terminal.folder / "app.py").rename(terminal.folder / "app.bak")
    terminal.orders.mkdir()
    others = [terminal.orders / f"order-123{end}" for end in (".db.bak", ".txt", "4.db")]
    for other in others:
        other.touch()
    for form, encoding in ((OUT_OF_STOCK, "utf-8"), ("order.json", "ascii")):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        ended = terminal.run(form, program=["app.bak"], env=environment)
        assert ended[0] == 0
        assert "1 回目\n".encode(encoding, "backslashreplace").decode() in ended[1]
        assert result_in(ended[1])["status"] == "OUT_OF_STOCK"
        assert set(terminal.orders.iterdir()) == set(others)


def test_declined_card_does_not_read_like_the_first_of_several_attempts(terminal: Terminal) -> None:
    _, out, _ = terminal.run(DECLINED)
    assert "pay            失敗: カードが拒否されました\n" in out
    assert "回目は失敗" not in out


class Keyboard:
    """標準入力に打たれた文字。"""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
        self.left = typed.encode()
        for name, replacement in (("isatty", lambda _: False), ("read", self.read)):
            monkeypatch.setattr(f"os.{name}", replacement)
        monkeypatch.setattr("select.select", lambda *_: ([0], [], []))

    def read(self, file: int, size: int) -> bytes:
        char, self.left = self.left[:1], self.left[1:]
        return char


@pytest.mark.parametrize(
    ("typed", "approved", "approver"),
    [
        ("sato\n ＹＥＳ \n", True, "sato"),
        ("\n\nsato\n\nyes please\nはい\n", True, "sato"),
        ("sato\nY\n", True, "sato"),
        ("sato\nNo\n", False, "sato"),
        ("sato\n\nえ\nいいえ\n", False, "sato"),
        ("sato\nyes please\n", False, None),
        ("", False, None),
    ],
)
def test_only_a_clear_answer_decides_and_end_of_input_is_no_approval(
    monkeypatch: pytest.MonkeyPatch, typed: str, approved: bool, approver: str | None
) -> None:
    Keyboard(monkeypatch, typed)
    clock = OrderClock()
    answer = json.loads(order.ask_approver(clock, clock.now() + timedelta(minutes=1)) or "")
    assert (answer["approved"], answer.get("approver")) == (approved, approver)


@pytest.mark.parametrize("typed", ["yes\n", ""])
def test_what_comes_after_the_deadline_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    """Ctrl-Z やスリープで止まっている間に期限が過ぎ、その後で回答か、入力の終わりが届く。"""
    Keyboard(monkeypatch, typed)
    clock = OrderClock()
    looks = [9.0] * max(2 * len(typed) - 1, 1)  # 1 文字読む前と後
    monkeypatch.setattr(clock, "arm", mock.Mock(side_effect=[*looks, 0.0]))
    with pytest.raises(TimeoutError):
        order.ask("", clock, datetime.now(UTC))
    Keyboard(monkeypatch, "yes\n")
    monkeypatch.setattr(clock, "arm", mock.Mock(return_value=9.0))
    assert order.ask("", clock, datetime.now(UTC)) == "yes"


# ---- 止めて、再開する --------------------------------------------------------------


HEARD = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)}  # nohup でも


@pytest.mark.parametrize(("before", "after"), [(0, 86_400), (86_400, 0)])
def test_order_stopped_for_a_day_or_with_its_clock_set_back_goes_on(
    terminal: Terminal, before: int, after: int
) -> None:
    """待機の終わりは、実行タイムアウトより先に来ていて、最初に記録したまま変わらない。"""
    terminal.later = before
    assert terminal.stop_at(WAITING, signal.SIGHUP, **HEARD) == (-signal.SIGHUP, "")
    terminal.later = after
    out = completed(terminal)
    assert out.startswith("前回の続きから、注文の処理を再開します。\n")
    assert "記録済み: accept_order, check_stock, short_wait\n" in out
    assert "受け付けました" not in out
    waits = [int(seconds) for seconds in re.findall(WAITING + r"あと (\d+) 秒", out)]
    total = re.search(r"終了: 呼び出しは \d 回。(\d+)\.\d 秒のうち", out)
    assert total
    assert all(0 < seconds <= 10 for seconds in waits)
    assert (bool(waits), int(total[1]) >= 86_400) == (not after, bool(after))


def test_leaving_the_question_is_no_answer_and_it_is_asked_again(terminal: Terminal) -> None:
    keyboard, controller = os.pipe()
    os.write(controller, b"sato\n")
    ending = terminal.stop_at("承認しますか", signal.SIGINT, TO_APPROVE, stdin=keyboard)
    assert ending == (130, STOPPED)
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


def test_going_on_gets_the_rest_of_the_timeout_and_not_all_of_it(terminal: Terminal) -> None:
    """待機は 390 秒後に、実行タイムアウトは 400 秒後に来る。支払いには、時計で 100 秒かかる。"""
    terminal.edit(
        "SHORT_WAIT = Duration.from_seconds(10)", "SHORT_WAIT = Duration.from_seconds(390)"
    )
    terminal.edit("Duration.from_minutes(20)", "Duration.from_seconds(400)")
    slow = order_of(simulate={"payment_timeouts": 0, "payment_seconds": 20})
    terminal.stop_at(WAITING, signal.SIGKILL, slow)
    terminal.later = 380
    code, out, err = terminal.run(slow)
    assert (code, "呼び出し 2 回目" in out) == (1, True)
    reason = "開始から 6 分の実行タイムアウト（ExecutionTimeout）を超えました"
    assert err == f"注文は失敗しました: {reason}。\n"
    assert list(terminal.orders.iterdir()) == []


# ---- 表示できない ------------------------------------------------------------------


def test_terminal_that_is_closed_loses_nothing_and_decides_nothing(
    terminal: Terminal, tmp_path: Path
) -> None:
    """標準出力はファイルなので、ターミナルが閉じられたことは、入力からしか分からない。"""
    controller, keyboard = pty.openpty()
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    with (tmp_path / "log").open("w+") as log:
        pipes = {"stdin": keyboard, "stdout": log, "stderr": log}
        process = terminal.start(TO_APPROVE, freeze=QUESTION, **pipes, **ignoring)
        os.close(keyboard)
        os.close(controller)
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=120) == 1
    assert "ターミナルが閉じられました" in (tmp_path / "log").read_text("utf-8")
    assert terminal.services.done("notice") == {}
    completed(terminal, TO_APPROVE)


@pytest.mark.parametrize("line", ["呼び出し 1 回目", "請求しました"])
def test_reader_that_is_gone_ends_the_process_and_the_record_stays(
    terminal: Terminal, line: str
) -> None:
    """`| head` が先に終わる。"""
    process = terminal.start(freeze=line)
    assert process.stdout
    process.stdout.close()
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=120) == -signal.SIGPIPE
    completed(terminal)


def test_closed_output_is_one_sentence(terminal: Terminal) -> None:
    assert "閉じています" in one_sentence(*terminal.run(preexec_fn=lambda: os.close(1)))


@NEEDS_DEV_FULL
def test_failure_that_cannot_be_shown_is_shown_by_the_next_command(terminal: Terminal) -> None:
    terminal.services.lose_answers("order-123-notice", "NNNN")
    with open("/dev/full", "w") as full:
        code, _, err = terminal.run(stdout=full)
        assert err.startswith("表示できません（No space left on device）。")
        one_sentence(code, "", err)
        assert terminal.run(stderr=full)[0] == 1
    assert "order-123-notice の依頼が届かない" in terminal.run()[2]


# ---- 始められない、再開できない ------------------------------------------------------

RUN_APP = "import runpy; sys.argv[0] = 'app.py'; runpy.run_path('app.py', run_name='__main__')"
INTERRUPTING = """
import os, signal, sys
class Finder:  # この後の最初の import の間に、Ctrl-C が押される
    def find_spec(self, name, *_):
        if hasattr(sys.modules.get("tests.local_run.screen"), "stop") and "tests" not in name:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (["-S", "app.py"], "aws_durable_execution_sdk_python がインストールされていない"),
        (["-c", f"import sys; sys.modules['fcntl'] = None; {RUN_APP}"], "WSL か AWS CloudShell"),
        (["-c", f"import sys; sys.version_info = (3, 9); {RUN_APP}"], "以降が必要です（これは 3.9"),
    ],
)
def test_unusable_environment_is_one_sentence_and_nothing_is_touched(
    terminal: Terminal, program: list[str], words: str
) -> None:
    assert words in one_sentence(*terminal.run(program=program))
    assert not terminal.orders.exists()


def test_what_says_so_can_be_read_by_an_old_python() -> None:
    for name in ("app.py", "tests/local_run/__init__.py", "tests/local_run/screen.py"):
        ast.parse((ROOT / name).read_text("utf-8"), feature_version=(3, 9))


def test_interrupted_while_it_is_imported_it_says_so(terminal: Terminal) -> None:
    assert terminal.run(program=["-c", f"{INTERRUPTING}{RUN_APP}"]) == (130, "", STOPPED)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{broken"], "1 行目の 2 文字目"),
        (["no-such-file.json"], "No such file or directory: 'no-such-file.json'"),
        (["broken.json"], "2 行目の 1 文字目"),
        (["[" * 100_000], "読み取れません"),
        (['{"order_id": NaN}'], "読み取れません"),
        (["one", "two"], "1 つだけ"),
        (["--help"], "1 つだけ"),
    ],
)
def test_unusable_order_says_what_is_wrong_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{\n")
    with pytest.raises(UnusableOrderError, match=words):
        order.read_order(arguments)


def test_what_no_longer_fits_the_record_is_refused_and_nothing_is_lost(terminal: Terminal) -> None:
    assert "注文: " in one_sentence(*terminal.run("[]", program=APP))
    terminal.stop_at(WAITING, signal.SIGKILL)
    assert "内容の異なる" in one_sentence(*terminal.run(order_of(price=1)))
    line, added = "    # 在庫確認\n", '    context.step(pay(order, "x", {"payment_timeouts": 0}))\n'
    terminal.edit(line, added)
    code, out, err = terminal.run()
    assert (code, err.count("\n")) == (1, 1)
    assert "app.py を元に戻す" in err
    assert "請求しました" not in out
    terminal.edit(added, line)
    completed(terminal, dict(reversed(README_ORDER.items())))


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
    assert "記録が削除されました" in one_sentence(first.returncode, "", err)
    os.write(keyboards[1][0], b"sato\nno\n")
    out, _ = second.communicate(timeout=120)
    assert result_in(out)["status"] == "REJECTED"
    assert terminal.services.done("charge") == {}


FOREIGN = "このデモの記録ではないか、破損しています"


def sqlite_of_another_program(file: Path) -> None:
    database = sqlite3.connect(file)
    database.execute("CREATE TABLE notes (text)")
    database.close()


@pytest.mark.parametrize(
    ("ending", "write", "why"),
    [
        (".db", Path.touch, FOREIGN),
        (".db", lambda file: file.write_bytes(b"S"), FOREIGN),
        (".db", sqlite_of_another_program, FOREIGN),
        (".db", lambda file: file.write_bytes(bytes(68) + record.MARK), "file is not a database"),
        (".db", Path.mkdir, "Is a directory"),
        (".lock", lambda file: file.write_bytes(bytes(99)), FOREIGN),
        (".lock", Path.mkdir, "Is a directory"),
    ],
)
def test_file_that_this_demo_did_not_write_is_named_and_left_as_it_is(
    terminal: Terminal, ending: str, write: Any, why: str
) -> None:
    """切り詰められた記録も。"""
    terminal.orders.mkdir()
    file = terminal.record.with_suffix(ending)
    write(file)
    before = file.is_file() and file.read_bytes()
    with pytest.raises(
        UnusableOrderError, match=f"^.orders/order-123{ending} を使えません（{why}）"
    ):
        open_record(terminal.record, 1)
    assert (file.is_file() and file.read_bytes()) == before
    assert not terminal.record.with_suffix(".db-new").exists()


def fill(store: record.OrderStore) -> None:
    for _ in range(1000):
        store.began()


def test_disk_that_is_full_is_called_full_at_the_start_and_midway(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, pages = (
        record.OrderStore._get_connection,
        [2],
    )  # 非公開 API。ここでしか上限を決められない

    def small(self: record.OrderStore) -> sqlite3.Connection:
        database = connect(self)
        database.execute(f"PRAGMA max_page_count = {pages[0]}")
        return database

    monkeypatch.setattr(record.OrderStore, "_get_connection", small)
    monkeypatch.setattr(record, "stop", mock.Mock(side_effect=lambda text, _: sys.exit(text)))
    why = "^.orders/order-123.db を使えません（database or disk is full）"
    with pytest.raises(UnusableOrderError, match=why):
        open_record(terminal.record, 1)
    pages[0] = 999
    store = open_record(terminal.record, 1)
    pages[0] = 1
    with pytest.raises(SystemExit, match=why):
        fill(store)


def test_damaged_record_is_refused_and_kept(terminal: Terminal) -> None:
    terminal.stop_at(WAITING, signal.SIGKILL, ANSWERS)
    database = sqlite3.connect(terminal.record)
    (data,) = database.execute("SELECT data FROM executions").fetchone()
    with database:
        database.execute("UPDATE executions SET data = ?", [data.replace("Operations", "O")])
    database.close()
    assert ".orders/order-123.db を使えません" in one_sentence(*terminal.run(ANSWERS))
    half = terminal.record.read_bytes()[: terminal.record.stat().st_size // 2]
    terminal.record.write_bytes(half)
    assert "malformed" in one_sentence(*terminal.run(ANSWERS))
    assert terminal.record.read_bytes() == half
