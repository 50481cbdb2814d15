"""注文の図: どの結果も、そのとおりに 80 桁以内で描けること。"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock

import boto3
import pytest
from botocore.stub import Stubber

import deploy
from tests.local_aws.gateway import LocalAws
from tests.support.account import Account
from tests.support.flows import APPROVE, order_of
from tests.timeline import __main__ as command
from tests.timeline import draw, duration, width

START = datetime(2026, 1, 1, tzinfo=UTC)
Event = dict[str, Any]


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def event(seconds: float, kind: str, name: str | None = None, **details: Any) -> Event:
    return {
        "EventType": kind,
        "EventTimestamp": after(seconds),
        "Id": name or kind,
        "Name": name,
        f"{kind}Details": details,
    }


def step(seconds: float, name: str) -> list[Event]:
    return [event(seconds, f"Step{change}", name) for change in ("Started", "Succeeded")]


def ran(begin: float, end: float, **error: Any) -> Event:
    times: Event = {"StartTimestamp": after(begin), "EndTimestamp": after(end)}
    return event(end, "InvocationCompleted", **times, **error)


FAILED_ONCE = event(20, "StepFailed", "pay", RetryDetails={"NextAttemptDelaySeconds": 2})
PAYING = [
    event(0, "ExecutionStarted"),
    *step(0, "accept_order"),
    *step(0.1, "check_stock"),
    event(0.1, "WaitStarted", "short_wait"),
    ran(0, 0.2),
    event(10.1, "WaitSucceeded", "short_wait"),
    event(10.1, "StepStarted", "pay"),
]
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


@pytest.mark.parametrize("status", ["FAILED", "TIMED_OUT", "STOPPED"])
def test_order_that_ended_without_a_result_says_how(status: str) -> None:
    end = event(24, f"Execution{status.title().replace('_', '')}")
    events = [*PAYING, FAILED_ONCE, ran(18, 20.1), end]
    scale, *_, pay, invocations = draw(events, START).splitlines()
    assert scale.endswith(f"24.0 秒   {status} で終了")
    assert pay.endswith("#x-------")  # 再試行を待つ間に終わった
    assert invocations.endswith(" ###           動いていたのは 2.3 秒")


def test_length_is_said_in_a_fitting_unit() -> None:
    lengths = [duration(timedelta(seconds=s)) for s in (0.04, 12.2, 600, 9000, 365 * 86400)]
    assert lengths == ["0.0 秒", "12.2 秒", "10.0 分", "2.5 時間", "365.0 日"]


def test_running_step_is_drawn_up_to_now() -> None:
    picture = draw(PAYING, after(12))
    assert picture == draw(PAYING, after(12), [(after(0), after(0.2)), (after(10.1), None)])
    *_, pay, invocations = picture.splitlines()
    assert pay == f"pay{' ' * 46}#######"
    assert invocations.endswith(f"{' ' * 33}#######   動いていたのは 2.1 秒")


def test_invocations_of_two_processes_show_the_gap_and_the_one_that_was_cut_off() -> None:
    known = [(after(0), after(0.2)), (after(10.1), None), (after(18), after(20.1))]
    *_, pay, _, invocations = draw([*PAYING, FAILED_ONCE, *PAID], START, known).splitlines()
    assert pay == f"pay{' ' * 28}#------------###x---*"
    assert invocations.endswith(f"#{' ' * 16}x            ####       動いていたのは 2.3 秒以上")


@pytest.mark.parametrize("kind", ["Callback", "ChainedInvoke", "Context", "Step", "Wait"])
@pytest.mark.parametrize("change", ["Succeeded", "Failed", "TimedOut", "Stopped", "Cancelled"])
def test_each_operation_ends_as_it_ended(kind: str, change: str) -> None:
    events = [event(0, f"{kind}Started", "it"), event(5, f"{kind}{change}", "it"), ran(0, 9)]
    before, mark = "#+" if kind == "Step" else r"\|-+", "*" if change == "Succeeded" else "x"
    assert re.fullmatch(f"it +{before}[{mark}]", draw(events, after(9)).splitlines()[1])


def test_success_stays_visible_beside_the_attempts_that_failed_just_before() -> None:
    late = event(86400, "ExecutionSucceeded")
    assert draw([FAILED_ONCE, *step(12, "pay"), late], START).splitlines()[1] == "pay       x*"


def test_names_that_are_missing_long_or_unprintable_fit() -> None:
    odd = [event(0, "StepFailed", name) for name in ("a" * 99, "承認" * 9, "\x1b[31m\n")]
    nameless = event(0, "WaitStarted") | {"Id": "1"}
    lines = draw([*odd, nameless], START).splitlines()
    assert max(map(width, lines)) <= 80
    labels = [line[:20].split()[0] for line in lines[1:-1]]
    assert labels == ["a" * 18 + "..", "承認承認承認承認承..", "?[31m?", "Wait"]
    alike = [event(0, "WaitStarted", "same") | {"Id": number} for number in "12"]
    assert draw(alike, START).count("same") == 2


# ---- python -m tests.timeline ------------------------------------------------------


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with LocalAws(speed=5) as server, pytest.MonkeyPatch.context() as monkeypatch:
        account = Account(server.endpoint, server.access_key)
        for name, value in account.environment.items():
            monkeypatch.setenv(name, value)
        yield account


def test_command_draws_an_order_whatever_the_terminal(account: Account) -> None:
    """承認された後、支払いに失敗し続ける注文。日本語を表示できなくても、図は表示する。"""
    order = order_of(price=50_000, simulate={"payment_timeouts": 10})
    arn = account.start(account.create(deploy.build_zip()), order)
    account.send(account.callback(arn), APPROVE)
    account.ended(arn)
    run = [sys.executable, "-m", "tests.timeline", arn]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(run, env=environment, capture_output=True, check=True, text=True)
    rows = [(line.split()[0], line[-1]) for line in done.stdout.splitlines()[1:-1]]
    names = ["accept_order", "check_stock", "approval", "ask_approver", "pay"]
    names += ["cancel_payment", "notify"]
    assert rows == [(name, "x" if name == "pay" else "*") for name in names]
    assert done.stderr == ""

    closed = subprocess.run(run, preexec_fn=lambda: os.dup2(os.pipe()[1], 1), capture_output=True)
    assert (closed.returncode, closed.stderr) == (-signal.SIGPIPE, b"")


NOBODY = "arn:aws:lambda:ap-northeast-1:123456789012:function:f:1/durable-execution/n/n"
HOW, UNKNOWN = "実行の ARN を 1 つ指定してください: ", "その ARN の実行が見つかりません。"


@pytest.mark.parametrize(
    ("arguments", "changed", "sentence"),
    [
        ([], {}, HOW),
        ([NOBODY, NOBODY], {}, HOW),
        ([""], {}, UNKNOWN),
        ([NOBODY], {}, UNKNOWN),
        ([NOBODY], {"AWS_ENDPOINT_URL": "localhost"}, "AWS から結果を"),
        ([NOBODY], {"AWS_PROFILE": "nobody"}, "AWS から結果を"),
    ],
)
def test_failure_of_the_command_is_one_sentence(
    account: Account, monkeypatch: Any, arguments: list[str], changed: Any, sentence: str
) -> None:
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setattr(signal, "signal", Mock())
    monkeypatch.setattr(sys, "argv", ["timeline", *arguments])
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=f"^{sentence}.+$"):
        command.main()


def test_history_is_read_to_its_last_page(monkeypatch: pytest.MonkeyPatch) -> None:
    client = boto3.client("lambda", "us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    monkeypatch.setattr(boto3, "client", lambda *_, **__: client)
    with Stubber(client) as stub:
        for page in ({"Events": [{"Id": "1"}], "NextMarker": "1"}, {"Events": [{"Id": "2"}]}):
            stub.add_response("get_durable_execution_history", page)
        assert [event["Id"] for event in command.history(NOBODY)] == ["1", "2"]
