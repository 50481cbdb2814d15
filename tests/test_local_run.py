"""`python app.py` を、参加者と同じくターミナルから動かす。何度止めても、注文は続きから再開する。"""

import ast
import contextlib
import io
import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.local_run import README_ORDER, order, record
from tests.local_run.record import UnusableOrderError, open_record
from tests.support.flows import ANSWERS, DECLINED, OUT_OF_STOCK, TO_APPROVE, order_of
from tests.support.terminal import APP, FAST, QUESTION, WAITING, Terminal, read_to, result_in

STOPPED = "\n中断しました。同じコマンドをもう一度実行すると、続きから再開します。\n"


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


def test_screen_says_how_long_the_order_was_and_how_little_ran(terminal: Terminal) -> None:
    out = completed(terminal)
    waits = [int(seconds) for seconds in re.findall(r"(\d+) 秒(?:待ちます|後に再試行)", out)]
    assert 5 <= waits[0] <= 10
    times = [float(time) for time in re.findall(r"^ *(\d+\.\d) 秒  ", out, re.MULTILINE)]
    again = float(re.findall(r"^ *(\d+\.\d) 秒  呼び出し 2 回目", out, re.MULTILINE)[0])
    total, ran = re.findall(r"回。(\d+\.\d) 秒のうち、動いていたのは (\d+\.\d) 秒でした\n", out)[0]
    assert times == sorted(times)
    assert 10 <= again <= float(total) - 1  # 再試行は 1 秒以上後
    assert times[-1] == pytest.approx(float(total), abs=0.2)
    assert 0 < float(ran) <= float(total) - sum(waits) + len(waits)  # 秒数は切り上げてある


def test_order_is_read_from_a_file_and_only_its_record_is_deleted(terminal: Terminal) -> None:
    """app.py のファイル名が何でも、ターミナルが日本語を表示できなくても。"""
    (terminal.folder / "order.json").write_text(json.dumps(OUT_OF_STOCK))
    (terminal.folder / "app.py").rename(terminal.folder / "app.bak")
    terminal.orders.mkdir()
    others = {terminal.orders / f"order-123{end}" for end in (".db.bak", ".txt", "4.db")}
    for other in others:
        other.touch()
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    code, out, _ = terminal.run("order.json", program=["app.bak"], env=ascii_only)
    assert (code, result_in(out)["status"]) == (0, "OUT_OF_STOCK")
    assert "1 回目\n".encode("ascii", "backslashreplace").decode() in out
    assert set(terminal.orders.iterdir()) == others


@pytest.mark.parametrize(
    ("typed", "approved", "approver"),
    [
        ("\n sato \n\nyes please\nYES\n", True, "sato"),
        ("sato\nNo", False, "sato"),
        ("sato\nyes please\n", False, None),
    ],
)
def test_only_a_clear_answer_decides_and_end_of_input_is_no_approval(
    monkeypatch: pytest.MonkeyPatch, typed: str, approved: bool, approver: str | None
) -> None:
    keyboard = io.BytesIO(typed.encode())
    monkeypatch.setattr("os.isatty", lambda _: False)
    monkeypatch.setattr("os.read", lambda _, size: keyboard.read(size))
    monkeypatch.setattr("select.select", lambda *_: ([0], [], []))
    answer = json.loads(order.ask_approver(lambda: True) or "")
    assert (answer["approved"], answer.get("approver")) == (approved, approver)


def test_order_goes_on_as_recorded_though_the_clock_is_set_back(terminal: Terminal) -> None:
    terminal.later = 86_400
    assert terminal.stop_at(WAITING, signal.SIGTERM) == (-signal.SIGTERM, "")
    terminal.later = 0
    assert "内容の異なる" in one_sentence(*terminal.run(order_of(price=1)))
    out = completed(terminal, dict(reversed(README_ORDER.items())))
    assert out.startswith("前回の続きから、注文の処理を再開します。\n")
    assert "記録済み: accept_order, check_stock, short_wait\n" in out
    assert "受け付けました" not in out
    assert 0 < int(re.findall(WAITING + r"あと (\d+) 秒", out)[0]) <= 10


@pytest.mark.parametrize("limit", ["timeout", "heartbeat_timeout"])
def test_question_ends_at_its_time_after_going_on(terminal: Terminal, limit: str) -> None:
    terminal.edit("CallbackConfig(timeout=", f"CallbackConfig({limit}=")
    terminal.stop_at(QUESTION, signal.SIGKILL, TO_APPROVE)
    terminal.later = 560
    keyboard, controller = os.pipe()
    os.write(controller, b"sato")
    out, _ = terminal.start(TO_APPROVE, stdin=keyboard).communicate(timeout=120)
    os.close(controller)
    assert "\n回答の期限が過ぎました。\n" in out.partition(QUESTION)[2]
    assert result_in(out)["status"] == "APPROVAL_TIMED_OUT"
    assert terminal.services.done("charge") == {}


def test_going_on_gets_the_rest_of_the_timeout_and_not_all_of_it(terminal: Terminal) -> None:
    """待機は 390 秒後に、実行タイムアウトは 400 秒後に来る。支払いには、時計で 100 秒かかる。"""
    terminal.edit("SHORT_WAIT = Duration.from_seconds(10", "SHORT_WAIT = Duration.from_seconds(390")
    terminal.edit("Duration.from_minutes(20)", "Duration.from_seconds(400)")
    slow = order_of(simulate={"payment_timeouts": 0, "payment_seconds": 20})
    terminal.stop_at(WAITING, signal.SIGKILL, slow)
    terminal.later = 380
    code, out, err = terminal.run(slow)
    assert (code, "呼び出し 2 回目" in out) == (1, True)
    assert re.search("動いていたのは (?:9|1[0-9])[.][0-9] 秒\n", out)  # 途中で切られた分も
    reason = "開始から 6 分の実行タイムアウト（ExecutionTimeout）を超えました"
    assert err == f"注文は失敗しました: {reason}。\n"
    assert list(terminal.orders.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "order", "status"),
    [
        (WAITING, ANSWERS, "COMPLETED"),
        ("  呼び出し 2 回目", ANSWERS, "COMPLETED"),
        (QUESTION, TO_APPROVE, "APPROVAL_TIMED_OUT"),
    ],
)
def test_time_in_which_nothing_could_run_is_like_the_time_between_kill_and_going_on(
    terminal: Terminal, words: str, order: Any, status: str
) -> None:
    """Ctrl-Z やスリープの間に、実行タイムアウトが過ぎ、入力が終わる。"""
    process = terminal.start(order, freeze=words, jump=86_400)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert "前回の続きから、注文の処理を再開します。\n" in out
    assert result_in(out)["status"] == status
    assert list(terminal.services.done("notice")) == [f"order-123-{status}"]
    assert int(re.findall(r"終了: 呼び出しは \d 回。(\d+)\.\d 秒のうち", out)[0]) >= 86_400


# fmt: off
START, TOTAL = "    # 注文受付\n", "    total = sum("
TIMEOUT = '"approval", CallbackConfig(timeout=APPROVAL_TIMEOUT)'
BRANCHES = '[lambda c, s=s: c.wait(Duration.from_seconds(s), name="w") for s in (40, 2, 30)]'
DECORATED = """from functools import wraps
def decorated(f):
    return wraps(f)(lambda e, c: f(e, c) | {"status": "DECORATED"})
@durable_execution
@decorated
"""
TWO = """    ask = lambda name: lambda c: c.create_callback(name).result()
    context.parallel([ask("boss"), ask("legal")])
"""
NAMES = ("RETRY", "POLICY", "EXECUTION_TIMEOUT", "LIMIT", "validate", "check", "InvalidO", "WrongO")
MAP = "    context.map(range(50), lambda *_: 1)\n"
FINALLY = """    try:
        context.wait(SHORT_WAIT)
        context.step(lambda _: 1, "work")
    finally:
        context.step(lambda _: 2, "clean")
"""
WRITTEN = [  # 書き換え、注文、結果、画面
    (NAMES, README_ORDER, "COMPLETED", "pay            1 回目は失敗: 決済代行会社から応答"),
    (("不足 {len(shortages)} 件", "%d", '%d")', '%d", "x")'),
     DECLINED, "PAYMENT_DECLINED", "%d（%d.* 秒    pay            失敗: カードが拒否されました\n"),
    (("@durable_execution\n", DECORATED, START, MAP + START), OUT_OF_STOCK, "DECORATED", ""),
    ((TIMEOUT, ""), TO_APPROVE, "COMPLETED", "Callback への回答.*（期限なし）.*, Callback, ask"),
    ((START, f'    context.wait_for_callback(lambda i, c: None, "boss")\n{START}'), OUT_OF_STOCK,
     "OUT_OF_STOCK", "boss: 承認者の.*boss への回答.*記録済み: boss/create callback id, boss/sub"),
    ((START, TWO + START), OUT_OF_STOCK, "OUT_OF_STOCK",
     "parallel-branch-0/boss への回答.*parallel-branch-1/legal への回答"),
    ((START, f'    context.parallel({BRANCHES}, "all")\n    context.wait(SHORT_WAIT)\n{START}'),
     OUT_OF_STOCK, "OUT_OF_STOCK", r"all/parallel-branch-1/w: あと \d 秒待ちます.*"
     r"all/parallel-branch-2/w: あと \d+ 秒待ちます.* Wait: あと \d+ 秒.*記録済み: all, Wait\n"),
]
MISTAKES = [  # 書き換え、画面の最後。MISTAKE と書かれた行が示される
    ((START, "    ordr  # MISTAKE\n"), "NameError: name 'ordr' is not defined（{}）。\n"),
    (("wanted: dict[str, int] = {}\n", 'wanted = {}["customer"]  # MISTAKE\n'),
     "KeyError: 'customer'（{}）。\n"),
    (("context.step(accept_order(event), config=STEP)", "accept_order(event)",
      "THRESHOLD:\n", "THRESHOLD:  # MISTAKE\n"),
     "TypeError: 'function' object is not subscriptable"
     "（{}。ステップは context.step() で実行してください）。\n"),
    (("\ndef accept_order", "\nasync def accept_order"), "async def ではなく def にしてください）"),
    ((START, '    raise KeyError("function")  # MISTAKE\n'), "KeyError: 'function'（{}）。\n"),
    (("import re\n", "import re\nordr  # MISTAKE\n"),
     "app.py を読み込めません: NameError: name 'ordr' is not defined（{}）。\n"),
    ((START, f"    __import__('sys').exit()  # MISTAKE\n{START}"),
     "SystemExit で呼び出しが異常終了しました（{}。"),
    ((TOTAL, f"    raise KeyboardInterrupt  # MISTAKE\n{TOTAL}"),
     "KeyboardInterrupt で呼び出しが異常終了しました（{}。"),
    (('"accepted_at": accepted_at}', '"x": "x" * 800_000}'),
     "accept_order の結果が大きすぎます（781 KB。上限は 256 KB です）"),
    ((START, FINALLY + START), "処理の流れが、処理途中の注文の記録と一致しません"
     "（記録では Step clean、今回は Step work）。app.py を変更したなら、元に戻すか、"),
]
# fmt: on


@pytest.mark.parametrize(("edits", "order", "status", "words"), WRITTEN)
def test_whatever_is_written_with_the_sdk_runs_and_is_shown(
    terminal: Terminal, edits: tuple[str, ...], order: Any, status: str, words: str
) -> None:
    terminal.edit(*edits)
    code, out, err = terminal.run(order, stdin="sato\nyes\nito\nyes\n")
    assert (code, err, "None" in out, "実行中" in out) == (0, "", False, False)
    assert result_in(out)["status"] == status
    assert re.search(words, out, re.DOTALL), out


@pytest.mark.parametrize(("edits", "words"), MISTAKES)
def test_mistake_is_told_with_its_type_and_its_line(
    terminal: Terminal, edits: tuple[str, ...], words: str
) -> None:
    terminal.edit(*edits)
    before = (terminal.folder / "app.py").read_text("utf-8").partition("MISTAKE")[0]
    line = f"app.py の {before.count(chr(10)) + 1} 行目"
    program = APP if "読み込めません" in words else FAST
    code, out, err = terminal.run(program=program)
    assert (code, "Traceback" in out + err) == (1, False)
    assert words.format(line) in err
    assert terminal.record.exists() == ("order_id を変えて" in err or "再開できます。" in err)
    if "SystemExit" in words or "大きすぎます" in words:  # 直さずに再開しても、同じ
        assert terminal.run(program=program)[::2] == (1, err)


def test_terminal_that_is_closed_loses_nothing_and_decides_nothing(terminal: Terminal) -> None:
    controller, keyboard = pty.openpty()
    process = terminal.start(TO_APPROVE, freeze=QUESTION, stdin=keyboard)
    os.close(keyboard)
    os.close(controller)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, "ターミナルが閉じられました" in err) == (1, True)
    assert terminal.services.done("notice") == {}
    completed(terminal, TO_APPROVE)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="macOS にはない")
def test_failure_that_cannot_be_shown_is_shown_by_the_next_command(terminal: Terminal) -> None:
    terminal.services.lose_answers("order-123-notice", "NNNN")
    with open("/dev/full", "w") as full:
        code, _, err = terminal.run(stdout=full)
        assert err.startswith("表示できません（No space left on device）。")
        one_sentence(code, "", err)
        assert terminal.run(stderr=full)[0] == 1
    assert "order-123-notice の依頼が届かない。\n" in terminal.run()[2]


INTERRUPTED = """
import os, runpy, signal, sys
class Order:  # 残りを import する間に、Ctrl-C が押される
    def __getattr__(self, name):
        os.kill(os.getpid(), signal.SIGINT)
sys.modules["tests.local_run.order"] = Order()
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        (["-S", "app.py"], 1, "aws_durable_execution_sdk_python を使えません。Python 3.11 以降"),
        (["-c", INTERRUPTED], 130, STOPPED),
        (["-c", f"import sys; sys.stdout = None\n{INTERRUPTED}"], 1, "出力先が閉じています"),
        ([*APP, "[]"], 1, "注文: "),
        ([*APP, "{broken"], 1, "line 1 column 2"),
        ([*APP, "no-such-file.json"], 1, "No such file or directory: 'no-such-file.json'"),
    ],
)
def test_unusable_environment_or_order_is_one_sentence_and_nothing_is_touched(
    terminal: Terminal, program: list[str], code: int, words: str
) -> None:
    ended, out, err = terminal.run(program=program)
    assert (ended, out, err.strip().count("\n"), terminal.orders.exists()) == (code, "", 0, False)
    assert words in err


def test_what_says_so_can_be_read_by_an_old_python() -> None:
    for name in ("app.py", "tests/local_run/__init__.py", "tests/local_run/screen.py"):
        ast.parse((Path(__file__).parents[1] / name).read_text("utf-8"), feature_version=(3, 9))


def test_only_the_process_that_has_the_record_goes_on(terminal: Terminal) -> None:
    """2 つ目は拒否される。.orders を削除して破棄すれば、進まずに終わる。"""
    first = terminal.start(TO_APPROVE)
    read_to(QUESTION, first)
    assert "別のプロセスで処理中" in one_sentence(*terminal.run(TO_APPROVE))
    shutil.rmtree(terminal.orders)
    _, err = first.communicate("sato\nyes\n", timeout=120)
    assert (first.returncode, "unable to open database file" in err) == (1, True)
    assert terminal.services.done("charge") == {}


FOREIGN = "このデモの記録ではないか、破損しています"
UNREADABLE = f"""
    PRAGMA application_id = {int.from_bytes(record.MARK)}; PRAGMA journal_mode = WAL;
    CREATE TABLE executions (durable_execution_arn, data);
    INSERT INTO executions VALUES ('arn', '{{}}');
"""
TORN = f"""{UNREADABLE} CREATE INDEX found ON executions (data);
    PRAGMA writable_schema = ON;
    UPDATE sqlite_master SET sql = sql || ' WHERE 0' WHERE name = 'found';
"""


@pytest.mark.parametrize(
    ("ending", "write", "why"),
    [
        (".db", Path.touch, FOREIGN),
        (".db", "CREATE TABLE notes (text)", FOREIGN),
        (".db", UNREADABLE, "'StartInput'"),
        (".db", TORN, "wrong # of entries in index found"),
        (".lock", lambda file: file.write_bytes(bytes(99)), FOREIGN),
        (".lock", Path.mkdir, "Is a directory"),
    ],
)
def test_file_that_is_damaged_or_not_from_this_demo_is_named_and_left_as_it_is(
    terminal: Terminal, ending: str, write: Any, why: str
) -> None:
    terminal.orders.mkdir()
    file = terminal.record.with_suffix(ending)
    if isinstance(write, str):
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.executescript(write)
    else:
        write(file)
    before = file.is_file() and file.read_bytes()
    with pytest.raises(UnusableOrderError, match=f"^.orders/order-123{ending} を使えません（{why}"):
        open_record(terminal.record, 1)
    assert (file.is_file() and file.read_bytes()) == before


def test_disk_that_is_full_midway_is_called_full(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_record(terminal.record, 1)
    connect = store._get_connection  # 非公開 API。ここでしか上限を決められない

    def full() -> sqlite3.Connection:
        database = connect()
        database.execute("PRAGMA max_page_count = 1")
        return database

    monkeypatch.setattr(store, "_get_connection", full)
    monkeypatch.setattr(record, "stop", mock.Mock(side_effect=lambda text, _: sys.exit(text)))
    why = "^.orders/order-123.db を使えません（database or disk is full）"
    with pytest.raises(SystemExit, match=why):
        all(store.began() for _ in range(1000))
