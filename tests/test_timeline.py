"""注文の図: どの結果も、そのとおりに 80 桁以内で描けること。"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from hypothesis import given, settings
from hypothesis import strategies as st

import app
import deploy
from tests.local_aws.gateway import LocalAws
from tests.local_aws.history import as_aws_writes
from tests.support.account import REGION, Account
from tests.support.flows import FLOWS, Flow, order_of
from tests.support.outside import OutsideServices
from tests.support.runner import LocalRunner, OrderClock
from tests.timeline import draw, duration, width
from tests.timeline.__main__ import history

START = datetime(2026, 1, 1, tzinfo=UTC)
Event = dict[str, Any]


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def event(seconds: float, kind: str, name: str | None = None, **details: Any) -> Event:
    return {
        "EventType": kind,
        "EventTimestamp": after(seconds),
        "Id": name or kind,
        f"{kind}Details": details,
        **({"Name": name} if name else {}),
    }


def step(seconds: float, name: str) -> list[Event]:
    return [event(seconds, f"Step{change}", name) for change in ("Started", "Succeeded")]


def ran(begin: float, end: float, **error: Any) -> Event:
    times: Event = {"StartTimestamp": after(begin), "EndTimestamp": after(end)}
    return event(end, "InvocationCompleted", **times, **error)


BEGUN = [event(0, "ExecutionStarted"), *step(0, "accept_order"), *step(0.1, "check_stock")]
ASKED = [*BEGUN, event(0.1, "CallbackStarted", "approval"), *step(0.1, "ask_approver")]
FAILED_ONCE = event(10.1, "StepFailed", "pay", RetryDetails={"NextAttemptDelaySeconds": 2})
PAYING = [
    *BEGUN,
    event(0.1, "WaitStarted", "short_wait"),
    ran(0, 0.2),
    event(10.1, "WaitSucceeded", "short_wait"),
    event(10.1, "StepStarted", "pay"),
]
README_ORDER = [
    *PAYING,
    FAILED_ONCE,
    ran(10.1, 10.2),
    *step(12.1, "pay"),
    *step(12.1, "notify"),
    ran(12.1, 12.2),
    event(12.2, "ExecutionSucceeded"),
]
KILLED = [
    *PAYING,
    ran(10.1, 13, Error={}),
    event(20, "StepSucceeded", "pay"),
    *step(20, "notify"),
    ran(18, 20.1),
    event(20.1, "ExecutionSucceeded"),
]
PICTURES = {
    "README order": (
        README_ORDER,
        """\
              0 秒                               12.2 秒
accept_order  *
check_stock   *
short_wait    |---------------------------------*
pay                                             x------*
notify                                                 *
呼び出し      #                                 #      #   動いていたのは 0.4 秒""",
    ),
    "waits for its approval": (
        [*ASKED, ran(0, 0.2)],
        """\
              0 秒                               95.0 秒   実行中
accept_order  *
check_stock   *
approval      |-----------------------------------------
ask_approver  *
呼び出し      #                                            動いていたのは 0.2 秒""",
    ),
    "killed while it paid": (
        KILLED,
        """\
              0 秒                               20.1 秒
accept_order  *
check_stock   *
short_wait    |--------------------*
pay                                ######----------####*
notify                                                 *
呼び出し      #                    ######x         #####   動いていたのは 5.2 秒""",
    ),
}


@pytest.mark.parametrize(("events", "picture"), PICTURES.values(), ids=PICTURES)
def test_order_is_drawn_as_what_it_is(events: list[Event], picture: str) -> None:
    assert draw(events, after(95)) == picture


@pytest.mark.parametrize("status", ["FAILED", "TIMED_OUT", "STOPPED"])
def test_order_that_ended_without_a_result_says_how(status: str) -> None:
    end = event(11, f"Execution{status.title().replace('_', '')}")
    events = [*PAYING, FAILED_ONCE, ran(10.1, 10.2), end]
    scale, *_, pay, invocations = draw(events, START).splitlines()
    assert scale.endswith(f"11.0 秒   {status} で終了")
    assert pay.endswith(" x---")  # 再試行を待つ間に終わった
    assert invocations.endswith(" #      動いていたのは 0.3 秒")


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
    events = [entry for entry in KILLED if entry["EventType"] != "InvocationCompleted"]
    known = [(after(0), after(0.2)), (after(10.1), None), (after(18), after(20.1))]
    *_, pay, _, invocations = draw(events, after(0), known).splitlines()
    assert pay == f"pay{' ' * 30}#-------------####*"
    assert invocations.endswith(f"#{' ' * 18}x             #####   動いていたのは 2.3 秒以上")


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
    labels = [line[:20].split()[0] for line in draw([*odd, nameless], START).splitlines()[1:-1]]
    assert labels == ["a" * 18 + "..", "承認承認承認承認承..", "?[31m?", "Wait"]
    alike = [event(0, "WaitStarted", "same") | {"Id": number} for number in "12"]
    assert draw(alike, START).count("same") == 2


KINDS = boto3.client("lambda", region_name="us-east-1").meta.service_model.shape_for("EventType")
SECONDS = st.integers(0, 366 * 86400) | st.floats(0, 20)
EVENTS = st.builds(
    lambda kind, name, begin, length, retry: (
        ran(begin, begin + length, **retry)
        if kind == "InvocationCompleted"
        else event(begin, kind, name, RetryDetails=retry)
    ),
    st.sampled_from(KINDS.enum),
    st.none() | st.text(max_size=40),
    SECONDS,
    SECONDS,
    st.sampled_from([{}, {"NextAttemptDelaySeconds": 5}, {"Error": {}}]),
)


@settings(deadline=None)
@given(st.lists(EVENTS), SECONDS, st.none() | st.lists(st.tuples(SECONDS, st.none() | SECONDS)))
def test_any_history_fits_in_80_columns(
    events: list[Event], now: float, known: list[tuple[float, float | None]] | None
) -> None:
    invocations = [(after(b), None if e is None else after(e)) for b, e in known or []]
    picture = draw(events, after(now), None if known is None else invocations)
    assert max(map(width, picture.split("\n"))) <= 80


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.title)
def test_picture_of_every_flow_names_its_operations_in_order(
    flow: Flow, services: OutsideServices
) -> None:
    services.lose_answers("order-123-payment", flow.lost)
    # 時間を飛ばす時計も、コールバックの期限は飛ばさない
    clock = OrderClock(300) if flow.status == "APPROVAL_TIMED_OUT" else None
    with LocalRunner(app.handler, clock=clock, poll_interval=0.01) as runner:
        arn = runner.run_async(input=json.dumps(flow.order), execution_timeout=10**6)
        if flow.answer is not None:
            runner.send_callback_success(runner.wait_for_callback(arn), flow.answer)
        operations = runner.wait_for_result(arn, timeout=30).operations
        execution = runner._executor.get_execution(arn)
        events = as_aws_writes(runner.get_execution_history(arn).events, execution)

    scale, *rows, invocations = draw(events, START).splitlines()
    assert [row.split()[0] for row in rows] == [operation.name for operation in operations]
    failed = {"PAYMENT_FAILED": "pay", "PAYMENT_DECLINED": "pay", "APPROVAL_TIMED_OUT": "approval"}
    assert [row.split()[0] for row in rows if row[-1] != "*"] == [
        name for status, name in failed.items() if status == flow.status
    ]
    assert scale.endswith(("秒", "分"))
    assert re.search(r"# +動いていたのは \d+\.\d [秒分]$", invocations)


# ---- python -m tests.timeline ------------------------------------------------------


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with LocalAws() as server:
        yield Account(server.endpoint, server.access_key)


def timeline(
    account: Account, *arguments: str, stdout: int = subprocess.PIPE, **more: str
) -> tuple[int, str, str]:
    environment = {
        "AWS_ENDPOINT_URL": account.endpoint,
        "AWS_ACCESS_KEY_ID": account.access_key,
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": REGION,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.timeline", *arguments],
        env={**os.environ, **environment, **more},
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    return done.returncode, done.stdout, done.stderr


def test_command_draws_what_it_is_told_to(account: Account) -> None:
    function = account.create(deploy.build_zip())
    ended = account.start(function, order_of(quantity=5000))
    account.ended(ended)
    code, out, err = timeline(account, ended)
    assert (code, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines()]
    assert names == ["0", "accept_order", "check_stock", "notify", "呼び出し"]
    assert timeline(account, ended, PYTHONIOENCODING="ascii")[::2] == (0, "")

    reader, closed = os.pipe()
    os.close(reader)
    assert timeline(account, ended, stdout=closed)[::2] == (-signal.SIGPIPE, "")
    os.close(closed)


NOBODY = "arn:aws:lambda:ap-northeast-1:123456789012:function:f:1/durable-execution/n/n"


@pytest.mark.parametrize(
    ("arguments", "changed", "sentence"),
    [
        ([], {}, "実行の ARN を 1 つ指定してください: "),
        ([NOBODY, NOBODY], {}, "実行の ARN を 1 つ指定してください: "),
        ([""], {}, "その ARN の実行が見つかりません。"),
        (["order-123"], {}, "その ARN の実行が見つかりません。"),
        ([NOBODY], {}, "その ARN の実行が見つかりません。"),
        ([NOBODY], {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "AWS に"),
        ([NOBODY], {"AWS_ENDPOINT_URL": "localhost"}, "AWS_ENDPOINT_URL を"),
        ([NOBODY], {"AWS_PROFILE": "nobody"}, "AWS の認証情報を取得できません。"),
    ],
)
def test_failure_of_the_command_is_one_sentence(
    account: Account, arguments: list[str], changed: dict[str, Any], sentence: str
) -> None:
    code, out, err = timeline(account, *arguments, **changed)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(sentence)


def test_history_is_read_to_its_last_page(monkeypatch: pytest.MonkeyPatch) -> None:
    client = boto3.client("lambda", "us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    monkeypatch.setattr(boto3, "client", lambda *_, **__: client)
    with Stubber(client) as stub:
        for page in ({"Events": [{"Id": "1"}], "NextMarker": "1"}, {"Events": [{"Id": "2"}]}):
            stub.add_response("get_durable_execution_history", page)
        assert [event["Id"] for event in history(NOBODY)] == ["1", "2"]
