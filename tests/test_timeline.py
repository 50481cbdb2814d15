"""実行の図: どの履歴も、そのとおりに 80 桁以内で描けること。"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call, patch

import boto3
import pytest
from aws_durable_execution_sdk_python import DurableContext, durable_execution
from aws_durable_execution_sdk_python.config import Duration, WaitForCallbackConfig

import deploy
from tests.local_aws.gateway import LocalAws
from tests.local_run.runner import LocalRunner, OrderClock
from tests.support.account import Account
from tests.support.flows import APPROVE, order_of
from tests.timeline import __main__ as command
from tests.timeline import draw, duration, width

Event = dict[str, Any]


def after(seconds: float) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def event(seconds: float, kind: str, name: str = "", **details: Any) -> Event:
    known = {"EventType": kind, "EventTimestamp": after(seconds), f"{kind}Details": details}
    return known | {"Id": name or kind, "Name": name}


def step(seconds: float, name: str) -> list[Event]:
    return [event(seconds, f"Step{change}", name) for change in ("Started", "Succeeded")]


def ran(begin: float, end: float, **error: Any) -> Event:
    times: Event = {"StartTimestamp": after(begin), "EndTimestamp": after(end)}
    return event(end, "InvocationCompleted", **times, **error)


ORDERED = [event(0, "ExecutionStarted"), *step(0, "accept_order"), *step(0.1, "check_stock")]
WAITING = [*ORDERED, event(0.1, "WaitStarted", "short_wait"), ran(0, 0.2)]
WAITED = event(10.1, "WaitSucceeded", "short_wait")
PAYING = [*WAITING, WAITED, event(10.1, "StepStarted", "pay")]
FAILED_ONCE = event(20, "StepFailed", "pay", RetryDetails={"NextAttemptDelaySeconds": 2})
RETRYING = [*PAYING, FAILED_ONCE, ran(18, 20.1)]
PAID = [*step(22, "pay"), *step(22, "notify"), event(22.1, "ExecutionSucceeded")]
PICTURE = """\
              0 秒                               22.1 秒
accept_order  *
check_stock   *
short_wait    |------------------*
pay                              #####---------####x---*
notify                                                 *
呼び出し      #                  #####x        ####    #   動いていたのは 5.3 秒"""


def test_order_that_was_killed_while_it_paid_and_refused_once_is_drawn_as_that() -> None:
    killed = ran(10.1, 13, Error={})
    events = [*PAYING, killed, FAILED_ONCE, ran(18, 20.1), *PAID, ran(22, 22.1)]
    assert draw(events, after(95)) == PICTURE


ENDS = ("Succeeded", "Failed", "TimedOut", "Stopped")
SUCCEEDED, FAILED, TIMED_OUT, STOPPED = (event(24, f"Execution{end}") for end in ENDS)
PAUSED, RESUMED = event(5, "ExecutionPaused"), event(14, "ExecutionResumed")
KILLED = [(after(0), after(0.2)), (after(10.1), None)]  # 終わりが分からない
GONE_ON = [*KILLED, (after(18), after(20.1))]
WORK, RETRY, UNKNOWN = "#" * 24, "#-------------###x-------", "#---------------------"


@pytest.mark.parametrize(
    ("events", "known", "status", "total", "pay"),
    [
        (PAYING, None, "実行中", "#14.1 秒", [WORK]),
        (PAYING, KILLED, "実行中", "#14.1 秒", [WORK]),
        ([*PAYING, TIMED_OUT], None, "TIMED_OUT で終了", "#14.1 秒", [WORK]),
        ([*PAYING, TIMED_OUT], KILLED, "TIMED_OUT で終了", " 0.2 秒以上", [UNKNOWN]),
        ([*PAYING, STOPPED], None, "STOPPED で終了", "#14.1 秒", [WORK]),
        # 7 MB の結果は SDK がチェックポイントで書くので、呼び出しより先に、実行が終わる
        ([*PAYING, SUCCEEDED], None, "", "#14.1 秒", [WORK]),
        ([*PAYING, SUCCEEDED], KILLED, "", "#14.1 秒", [WORK]),
        ([*RETRYING, FAILED], None, "FAILED で終了", " 2.3 秒", [RETRY]),
        ([*PAYING, FAILED_ONCE, *PAID], GONE_ON, "", " 2.3 秒以上", ["#------------###x---*"]),
        # 一時停止中は、待機が完了しても動かない
        ([*WAITING, PAUSED, WAITED], None, "一時停止中", " 0.2 秒", []),
        ([*WAITING, PAUSED, WAITED, RESUMED], None, "実行中", "#10.2 秒", []),
        ([*WAITING, PAUSED, STOPPED], None, "STOPPED で終了", " 0.2 秒", []),
    ],
)
def test_work_is_shown_as_it_was(
    events: Any, known: Any, status: str, total: str, pay: Any
) -> None:
    scale, *rows, invocations = draw(events, after(24), known).splitlines()
    assert scale.endswith(f" 秒   {status}".rstrip())
    assert invocations.endswith(f"{total[0]}   動いていたのは {total[1:]}")
    assert [row.split(maxsplit=1)[1] for row in rows if row.startswith("pay")] == pay


@pytest.mark.parametrize("kind", ["Callback", "Context", "Step", "Wait"])
@pytest.mark.parametrize("change", [*ENDS, "Cancelled"])
def test_each_operation_ends_as_it_ended(kind: str, change: str) -> None:
    events = [event(0, f"{kind}Started", "it"), event(5, f"{kind}{change}", "it"), ran(0, 9)]
    before, mark = "#+" if kind == "Step" else r"\|-+", "*" if change == "Succeeded" else "x"
    assert re.fullmatch(f"it +{before}[{mark}]", draw(events, after(9)).splitlines()[1])


def test_odd_lengths_marks_and_names_fit() -> None:
    lengths = [duration(timedelta(seconds=s)) for s in (0.04, 12.2, 600, 9000, 365 * 86400)]
    assert lengths == ["0.0 秒", "12.2 秒", "10.0 分", "2.5 時間", "365.0 日"]
    late = event(86400, "ExecutionSucceeded")  # 直前の失敗と並んでも、完了は見える
    assert draw([FAILED_ONCE, *step(12, "pay"), late], after(0)).splitlines()[1] == "pay       x*"
    odd = [event(0, "StepFailed", name) for name in ("a" * 99, "承認" * 9, "a\n", "a")]
    lines = draw(odd, after(0)).splitlines()
    labels = [line[:20].split()[0] for line in lines[1:-1]]
    assert labels == ["a" * 18 + "..", "承認承認承認承認承..", "a?", "a"]
    assert max(map(width, lines)) <= 80


@durable_execution
def every_kind(_: Any, context: DurableContext) -> None:
    context.map([3, 1], lambda c, seconds, *_: c.wait(Duration(seconds)), name="deliver")
    context.parallel([lambda c: c.step(lambda _: 1, name="one"), lambda c: c.step(lambda _: 2)])
    context.run_in_child_context(lambda c: c.wait(Duration(1)))
    context.wait_for_callback(lambda *_: None, "ask", WaitForCallbackConfig(Duration(1)))


def test_children_stand_below_their_parent_and_side_by_side_in_time() -> None:
    with LocalRunner(every_kind, clock=OrderClock(10), poll_interval=0.01) as runner:
        runner.wait_for_result(arn := runner.run_async("{}", 60))
        events = [event.to_dict() for event in runner.get_execution_history(arn).events]
    lines = draw(events, after(0), []).splitlines()[1:-1]
    assert [re.sub(r"  [-#|*x ]*(?=.$)", " ", line) for line in lines] == [
        *("deliver *", "  map-item-0 *", "    Wait *", "  map-item-1 *", "    Wait *"),
        *("Parallel *", "  parallel-branch-0 *", "    one *", "  parallel-branch-1 *"),
        *("    Step *", "RunInChildContext *", "  Wait *"),
        *("ask x", "  ask create callb.. x", "  ask submitter *"),
    ]
    (before, longer), (alike, shorter) = (lines[number].split("|") for number in (2, 4))
    assert (abs(len(before) - len(alike)) < 5, len(longer) > 2 * len(shorter)) == (True, True)


def test_rows_that_do_not_fit_are_counted() -> None:
    events = [*step(0, "first"), event(0, "ContextStarted", "all"), *step(9, "last")]
    for n in range(50):
        for name, parent in ((f"b{n}", "all"), (f"w{n}", f"b{n}"), (f"more{n}", "b20")):
            events.append(event(1, "ContextStarted", name) | {"ParentId": parent})
    lines = draw(events, after(9)).splitlines()
    names = [line[:12].rstrip() for line in lines[1:-1]]
    assert names[:4] + names[-3:] == ["first", "all", "  b0", "    w0", "  b49", "    w49", "last"]
    [left_out] = re.findall(r"  … ほか (\d+) 行\n", "\n".join(lines))
    assert (max(map(width, lines)), int(left_out) + len(names) - 1) == (80, 153)
    assert len(names) <= 40


# ---- python -m tests.timeline ------------------------------------------------------


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with LocalAws(speed=5) as server:
        account = Account(server.endpoint, server.access_key)
        with patch.dict(os.environ, account.environment):
            yield account


def test_command_draws_an_order_to_its_end(account: Account, tmp_path: Path) -> None:
    """承認された後、支払いに失敗し続ける注文。Ctrl-C で終わり、もう一度実行する。"""
    order = order_of(price=50_000, simulate={"payment_timeouts": 10})
    arn = account.start(account.create(deploy.build_zip()), order)
    callback, (screen, terminal) = account.callback(arn), os.openpty()
    command = [sys.executable, "-m", "tests.timeline", arn, "--watch"]
    run = partial(subprocess.run, command, stderr=subprocess.PIPE, text=True)
    watching = subprocess.Popen(command, stdout=terminal, stderr=subprocess.PIPE)
    while b"\x1b" not in os.read(screen, 9999):
        pass
    watching.send_signal(signal.SIGINT)
    assert (watching.communicate()[1], watching.returncode) == (b"", -signal.SIGINT)
    account.send(callback, APPROVE)
    done = run(stdout=subprocess.PIPE)
    ends = [line.split()[0] + line[-1] for line in done.stdout.splitlines()[1:-1]]
    assert (len(ends), [end for end in ends if end[-1] == "x"]) == (7, ["payx"])
    assert (done.returncode, done.stderr) == (0, "")
    full = run(stdout=os.open("/dev/full", os.O_WRONLY))
    assert re.fullmatch("図を表示できません（No space.+）。\n", full.stderr)
    (tmp_path / "boto3.py").write_text("raise ModuleNotFoundError('No boto3')")
    without = run(env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert re.fullmatch(".+（ModuleNotFoundError: No boto3）\n", without.stderr)
    assert (full.returncode, without.returncode) == (1, 1)


@pytest.mark.parametrize("terminal", [True, False])
def test_watch_draws_in_place_or_at_the_end(monkeypatch: Any, capsys: Any, terminal: bool) -> None:
    news, client = [*step(24, "notify"), STOPPED], Mock()
    pages = [[{"Events": WAITING}], [{"Events": PAYING}], [{"Events": PAYING}, {"Events": news}]]
    client.get_paginator.return_value.paginate.side_effect = pages
    monkeypatch.setattr(boto3, "client", lambda *_, **__: client)
    monkeypatch.setattr(os, "isatty", lambda _: terminal)
    monkeypatch.setattr(time, "sleep", client.sleep)
    monkeypatch.setenv("LINES", "8")
    command.show("arn", watch=True)
    *drawn, last = re.split(r"\x1b\[(\d+)A\x1b\[J", capsys.readouterr().out)
    assert client.sleep.call_args_list == [call(1), call(1)]
    assert drawn[1::2] == [str(text.count("\n")) for text in drawn[::2]] == ["5", "6"] * terminal
    assert last == draw([*PAYING, *news], after(0), most_rows=4 if terminal else 40) + "\n"


NO_SUCH = r"その ARN の実行が見つかりません。ARN（\$ARN が空や None でないか）と.+。"


@pytest.mark.usefixtures("account")
def test_failure_of_the_command_is_one_sentence(monkeypatch: Any) -> None:
    for arguments, sentence in (
        ([], "実行の ARN を 1 つ指定してください: .+"),
        ([""], f"{NO_SUCH}（ParamValidationError: .{{100}}…）"),
        (["None"], f"{NO_SUCH}（ResourceNotFoundException: .+）"),
    ):
        monkeypatch.setattr(sys, "argv", ["timeline", *arguments])
        with pytest.raises(SystemExit, match=f"^{sentence}$"):
            command.main()
