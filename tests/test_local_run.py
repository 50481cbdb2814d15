"""`python app.py` を、参加者と同じくターミナルから動かす。何度止めても、注文は続きから再開する。"""

import ast
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
from tests.support.terminal import APP, QUESTION, WAITING, Terminal, read_to, result_in

ROOT = Path(__file__).parents[1]
STOPPED = "\n中断しました。同じコマンドをもう一度実行すると、続きから再開します。\n"
HEARD = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)}  # nohup でも
IGNORED = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}


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
    waits = [int(seconds) for seconds in re.findall(r"(\d+) 秒(?:待ちます|後に再試行)", out)]
    assert 5 <= waits[0] <= 10
    times = [float(time) for time in re.findall(r"^ *(\d+\.\d) 秒  ", out, re.MULTILINE)]
    again = float(re.findall(r"^ *(\d+\.\d) 秒  呼び出し 2 回目", out, re.MULTILINE)[0])
    total, ran = re.findall(r"回。(\d+\.\d) 秒のうち、動いていたのは (\d+\.\d) 秒でした\n", out)[0]
    assert times == sorted(times)
    assert 10 <= again <= float(total) - 1  # 再試行は 1 秒以上後
    assert times[-1] == pytest.approx(float(total), abs=0.2)
    assert 0 < float(ran) <= float(total) - sum(waits) + len(waits)  # 秒数は切り上げてある


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
        code, out, _ = terminal.run(form, program=["app.bak"], env=environment)
        assert (code, result_in(out)["status"]) == (0, "OUT_OF_STOCK")
        assert "1 回目\n".encode(encoding, "backslashreplace").decode() in out
        assert set(terminal.orders.iterdir()) == set(others)


def test_declined_card_does_not_read_like_the_first_of_several_attempts(terminal: Terminal) -> None:
    _, out, _ = terminal.run(DECLINED)
    assert "pay            失敗: カードが拒否されました\n" in out
    assert "回目は失敗" not in out


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    typed = io.BytesIO(text.encode())
    monkeypatch.setattr("os.isatty", lambda _: False)
    monkeypatch.setattr("os.read", lambda _, size: typed.read(size))
    monkeypatch.setattr("select.select", lambda *_: ([0], [], []))


@pytest.mark.parametrize(
    ("typed", "approved", "approver"),
    [
        ("sato\n ＹＥＳ \n", True, "sato"),
        ("\n\nsato\n\nyes please\nはい\n", True, "sato"),
        ("sato\nY\n", True, "sato"),
        ("sato\n\nえ\nいいえ\n", False, "sato"),
        ("sato\nNo", False, "sato"),
        ("sato\nyes please\n", False, None),
        ("", False, None),
    ],
)
def test_only_a_clear_answer_decides_and_end_of_input_is_no_approval(
    monkeypatch: pytest.MonkeyPatch, typed: str, approved: bool, approver: str | None
) -> None:
    type_in(monkeypatch, typed)
    answer = json.loads(order.ask_approver(lambda: True) or "")
    assert (answer["approved"], answer.get("approver")) == (approved, approver)


@pytest.mark.parametrize("typed", ["yes\n", ""])
def test_what_comes_after_the_deadline_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    """止まっている間に期限が過ぎ、その後で回答か、入力の終わりが届く。"""
    type_in(monkeypatch, typed)
    looks = iter([True] * (len(typed) - 1) + [False])
    with pytest.raises(TimeoutError):
        order.ask("", lambda: next(looks))


# ---- 止めて、再開する --------------------------------------------------------------


def test_order_goes_on_and_its_wait_ends_as_recorded_though_the_clock_is_set_back(
    terminal: Terminal,
) -> None:
    terminal.later = 86_400
    assert terminal.stop_at(WAITING, signal.SIGHUP, **HEARD) == (-signal.SIGHUP, "")
    terminal.later = 0
    out = completed(terminal)
    assert out.startswith("前回の続きから、注文の処理を再開します。\n")
    assert "記録済み: accept_order, check_stock, short_wait\n" in out
    assert "受け付けました" not in out
    assert 0 < int(re.findall(WAITING + r"あと (\d+) 秒", out)[0]) <= 10


def test_leaving_the_question_is_no_answer_and_it_is_asked_again(terminal: Terminal) -> None:
    keyboard, controller = os.pipe()
    os.write(controller, b"sato\n")
    ending = terminal.stop_at("承認しますか", signal.SIGINT, TO_APPROVE, stdin=keyboard)
    assert ending == (130, STOPPED)
    assert "承認を依頼しました" not in completed(terminal, TO_APPROVE)


@pytest.mark.parametrize("limit", ["timeout", "heartbeat_timeout"])
def test_question_ends_at_its_time_after_going_on(terminal: Terminal, limit: str) -> None:
    """改行のない回答は、まだ回答でない。"""
    terminal.edit("CallbackConfig(timeout=", f"CallbackConfig({limit}=")
    terminal.stop_at(QUESTION, signal.SIGKILL, TO_APPROVE)
    terminal.later = 560
    keyboard, controller = os.pipe()
    os.write(controller, b"sato")
    out, _ = terminal.start(TO_APPROVE, stdin=keyboard).communicate(timeout=120)
    os.close(controller)
    assert f"{QUESTION}: \n回答の期限が過ぎました。\n" in out
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


# ---- 参加者が書き換えた app.py -----------------------------------------------------

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
TWO = """    def ask(name):
        return lambda c: c.create_callback(name).result()
    context.parallel([ask("boss"), ask("legal")])
"""
NAMES = ("RETRY", "POLICY", "EXECUTION_TIMEOUT", "LIMIT", "validate", "check", "InvalidO", "WrongO")
FINALLY = """    try:
        context.wait(SHORT_WAIT)
        context.step(lambda _: 1, "work")
    finally:
        context.step(lambda _: 2, "clean")
"""
WRITTEN = [  # 書き換え、注文、結果、画面
    (NAMES, README_ORDER, "COMPLETED", "pay            1 回目は失敗: 決済代行会社から応答"),
    (("@durable_execution\n", DECORATED), OUT_OF_STOCK, "DECORATED", ""),
    ((TIMEOUT, '"approval"'), TO_APPROVE, "COMPLETED", "approval への回答を.*（期限なし）"),
    ((f"create_callback({TIMEOUT})", "create_callback()"), TO_APPROVE, "COMPLETED",
     r"Callback への回答.*記録済み: accept_order, check_stock, Callback, ask_approver\n"),
    ((START, f'    context.wait_for_callback(lambda i, c: None, "boss")\n{START}'), OUT_OF_STOCK,
     "OUT_OF_STOCK", "boss: 承認者の.*boss への回答.*記録済み: boss/create callback id, boss/sub"),
    ((START, TWO + START), OUT_OF_STOCK, "OUT_OF_STOCK",
     "parallel-branch-0/boss への回答.*parallel-branch-1/legal への回答"),
    ((START, f'    context.parallel({BRANCHES}, "all")\n    context.wait(SHORT_WAIT)\n{START}'),
     OUT_OF_STOCK, "OUT_OF_STOCK", r"all/parallel-branch-1/w: あと 2 秒待ちます.*"
     r"all/parallel-branch-2/w: あと 2\d 秒待ちます.* Wait: あと 10 秒.*記録済み: all, Wait\n"),
]
MISTAKES = [  # 書き換え、最後の文。MISTAKE と書かれた行が示される
    (("    # 注文受付\n", "    ordr  # MISTAKE\n"), "NameError: name 'ordr' is not defined（{}）"),
    (("wanted: dict[str, int] = {}\n", 'wanted = {}["customer"]  # MISTAKE\n'),
     "KeyError: 'customer'（{}）"),
    ((START, "    raise CardDeclinedError  # MISTAKE\n"), "CardDeclinedError（{}）"),
    (("context.step(accept_order(event), config=STEP)", "accept_order(event)",
      "THRESHOLD:\n", "THRESHOLD:  # MISTAKE\n"),
     "TypeError: 'function' object is not subscriptable"
     "（{}。ステップは context.step() で実行してください）"),
    (("\ndef accept_order", "\nasync def accept_order"), "async def ではなく def にしてください）"),
    ((TOTAL, f"    return {{1}}\n{TOTAL}"), "結果には JSON にできる値だけを使ってください）"),
]
DEADLY = [
    ((START, f"    __import__('sys').exit()  # MISTAKE\n{START}"),
     "SystemExit で呼び出しが異常終了しました（{}。"),
    ((TOTAL, f"    raise KeyboardInterrupt  # MISTAKE\n{TOTAL}"),
     "KeyboardInterrupt で呼び出しが異常終了しました（{}。"),
    (('"accepted_at": accepted_at}', '"x": "x" * 800_000}'),
     "accept_order の結果が大きすぎます（781 KB。上限は 256 KB です）"),
    ((START, FINALLY + START),
     "処理の流れが、処理途中の注文の記録と一致しません（記録では Step clean、今回は Step work）。"),
]
# fmt: on


def edited(terminal: Terminal, edits: tuple[str, ...]) -> str:
    """app.py を書き換え、MISTAKE と書かれた行を返す。"""
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        terminal.edit(old, new)
    before = (terminal.folder / "app.py").read_text("utf-8").partition("MISTAKE")[0]
    return f"app.py の {before.count(chr(10)) + 1} 行目"


@pytest.mark.parametrize(("edits", "order", "status", "words"), WRITTEN)
def test_whatever_is_written_with_the_sdk_runs_and_is_shown(
    terminal: Terminal, edits: tuple[str, ...], order: Any, status: str, words: str
) -> None:
    edited(terminal, edits)
    code, out, err = terminal.run(order, stdin="sato\nyes\nito\nyes\n")
    assert (code, err, "None" in out) == (0, "", False)
    assert result_in(out)["status"] == status
    assert re.search(words, out, re.DOTALL), out


@pytest.mark.parametrize(("edits", "words"), MISTAKES)
def test_mistake_is_told_with_its_type_and_its_line(
    terminal: Terminal, edits: tuple[str, ...], words: str
) -> None:
    line = edited(terminal, edits)
    code, out, err = terminal.run()
    last = err.splitlines()[-1]
    assert (code, last[:11], "Traceback" in out + err) == (1, "注文は失敗しました: ", False)
    assert last.endswith(words.format(line) + "。")


@pytest.mark.parametrize(("edits", "words"), DEADLY)
def test_nothing_hangs_and_the_same_is_said_again(
    terminal: Terminal, edits: tuple[str, ...], words: str
) -> None:
    line = edited(terminal, edits)
    first, second = terminal.run(), terminal.run()
    assert first[0] == second[0] == 1
    assert first[2] == second[2]
    assert first[2].startswith(words.format(line)), first
    assert terminal.record.exists()


@pytest.mark.parametrize("mistake", ["NameError: name 'ordr'", "ModuleNotFoundError: No module"])
def test_app_that_cannot_be_imported_is_one_sentence(terminal: Terminal, mistake: str) -> None:
    wrong = "ordr" if "Name" in mistake else "import ordr"
    line = edited(terminal, ("import re\n", f"import re\n{wrong}  # MISTAKE\n"))
    err = one_sentence(*terminal.run(program=APP))
    assert err.startswith(f"app.py を読み込めません: {mistake}")
    assert err.endswith(f"（{line}）。\n")


# ---- 表示できない ------------------------------------------------------------------


def test_terminal_that_is_closed_loses_nothing_and_decides_nothing(
    terminal: Terminal, tmp_path: Path
) -> None:
    """標準出力はファイルなので、ターミナルが閉じられたことは、入力からしか分からない。"""
    controller, keyboard = pty.openpty()
    with (tmp_path / "log").open("w+") as log:
        pipes = {"stdin": keyboard, "stdout": log, "stderr": log}
        process = terminal.start(TO_APPROVE, freeze=QUESTION, **pipes, **IGNORED)
        os.close(keyboard)
        os.close(controller)
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=120) == 1
    assert "ターミナルが閉じられました" in (tmp_path / "log").read_text("utf-8")
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
    assert "NoAnswerError: order-123-notice の依頼が届かない（app.py の" in terminal.run()[2]


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
        ([*APP, "[]"], "注文: "),
    ],
)
def test_unusable_environment_or_order_is_one_sentence_and_nothing_is_touched(
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
        (["[" * 100_000], "読み取れません"),
        (['{"order_id": NaN}'], "読み取れません"),
        (["one", "two"], "1 つだけ"),
        (["--help"], "1 つだけ"),
    ],
)
def test_unusable_order_says_what_is_wrong_with_it(arguments: list[str], words: str) -> None:
    with pytest.raises(UnusableOrderError, match=words):
        order.read_order(arguments)


def test_what_no_longer_fits_the_record_is_refused_and_nothing_is_lost(terminal: Terminal) -> None:
    terminal.stop_at(WAITING, signal.SIGKILL)
    assert "内容の異なる" in one_sentence(*terminal.run(order_of(price=1)))
    line, added = "    # 在庫確認\n", '    context.step(pay(order, "x", {"payment_timeouts": 0}))\n'
    terminal.edit(line, added)
    code, out, err = terminal.run()
    assert (code, err.count("\n")) == (1, 1)
    assert "（記録では Step check_stock、今回は Step pay）。app.py を変更したなら、元に戻す" in err
    assert "請求しました" not in out
    terminal.edit(added, line)
    completed(terminal, dict(reversed(README_ORDER.items())))


def test_only_the_process_that_has_the_record_goes_on(terminal: Terminal) -> None:
    """2 つ目は拒否される。記録が消されて始め直されれば、回答は後の方だけに効く。"""
    keyboards = [os.pipe() for _ in range(2)]
    first = terminal.start(TO_APPROVE, stdin=keyboards[0][0])
    read_to(QUESTION, first)
    assert "別のプロセスで処理中" in one_sentence(*terminal.run(TO_APPROVE))
    shutil.rmtree(terminal.orders)
    second = terminal.start(TO_APPROVE, stdin=keyboards[1][0])
    read_to(QUESTION, second)
    os.write(keyboards[0][1], b"sato\nyes\n")
    _, err = first.communicate(timeout=120)
    assert "記録が削除されました" in one_sentence(first.returncode, "", err)
    os.write(keyboards[1][1], b"sato\nno\n")
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
        (".lock", lambda file: file.write_bytes(bytes(99)), FOREIGN),
        (".lock", Path.mkdir, "Is a directory"),
    ],
)
def test_file_that_this_demo_did_not_write_or_that_was_cut_is_named_and_left_as_it_is(
    terminal: Terminal, ending: str, write: Any, why: str
) -> None:
    terminal.orders.mkdir()
    file = terminal.record.with_suffix(ending)
    write(file)
    before = file.is_file() and file.read_bytes()
    with pytest.raises(UnusableOrderError, match=f"^.orders/order-123{ending} を使えません（{why}"):
        open_record(terminal.record, 1)
    assert (file.is_file() and file.read_bytes()) == before
    assert not terminal.record.with_suffix(".db-new").exists()


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

    def fill(store: record.OrderStore) -> None:
        for _ in range(1000):
            store.began()

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
    assert ".orders/order-123.db を使えません" in one_sentence(*terminal.run(ANSWERS))
    index = "SELECT 4096 * (rootpage - 1) FROM sqlite_master WHERE name = 'idx_status'"
    (place,) = database.execute(index).fetchone()
    with database:
        database.execute("UPDATE executions SET data = ?", [data])
    database.close()
    whole = terminal.record.read_bytes()
    damaged = whole[:place] + bytes(4096) + whole[place + 4096 :]
    terminal.record.write_bytes(damaged)
    assert ".orders/order-123.db を使えません" in one_sentence(*terminal.run(ANSWERS))
    assert terminal.record.read_bytes() == damaged
