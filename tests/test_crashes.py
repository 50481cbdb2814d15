"""注文がどこでクラッシュしても、結果、請求、お客様への通知が変わらないこと。

クラッシュは、チェックポイント API の呼び出しの前か後に CheckpointError を起こして表す。ステップは
すぐ終わるので、START は SUCCEED と同じ呼び出しで送られる。だから支払いと通知の呼び出しの「前」は、
外部サービスが処理した後、それを記録する前に当たる。
本物のプロセスの強制終了は、test_worker_kills.py と test_local_run_kills.py にある。
"""

import itertools
import json
import math
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aws_durable_execution_sdk_python.config import Duration
from aws_durable_execution_sdk_python.exceptions import CheckpointError
from aws_durable_execution_sdk_python_testing.client import InMemoryServiceClient
from aws_durable_execution_sdk_python_testing.executor import Executor

import app
from tests.support.flows import FLOWS, Flow, outcome
from tests.support.outside import OutsideServices
from tests.support.runner import LocalRunner

Crash = tuple[str, int]


def points(flow: Flow, more: int = 0) -> list[Crash]:
    """クラッシュする点: それぞれの呼び出しの前と後。"""
    calls = range(1, flow.calls + more + 1)
    return [(when, call) for call in calls for when in ("before", "after")]


@dataclass
class Fate:
    """1 つの実行がクラッシュすることになっている点と、実際にクラッシュした点。"""

    crashes: list[Crash]
    calls: int = 0
    crashed: list[Crash] = field(default_factory=list)

    def strike(self, when: str, call: int) -> None:
        if (when, call) in self.crashes:
            self.crashed.append((when, call))
            raise CheckpointError(f"{call} 回目の呼び出しの {when} でクラッシュしました")


class Fates:
    """実行ごとに、決まった点でクラッシュさせる。"""

    def __init__(self, runner: LocalRunner) -> None:
        self.runner = runner
        self.by_arn: dict[str, Fate] = {}
        self.starting = threading.Lock()
        self.numbers = itertools.count()

    def start(self, order: dict[str, Any], crashes: list[Crash]) -> str:
        with self.starting:
            arn = self.runner.run_async(input=json.dumps(order), execution_timeout=60)
            self.by_arn[arn] = Fate(crashes)
        return arn

    def of(self, arn: str) -> Fate:
        with self.starting:
            return self.by_arn[arn]


@pytest.fixture
def fates(runner: LocalRunner, monkeypatch: pytest.MonkeyPatch) -> Fates:
    fates = Fates(runner)
    checkpoint = InMemoryServiceClient.checkpoint

    def mortal(
        self: InMemoryServiceClient, durable_execution_arn: str, *args: Any, **kwargs: Any
    ) -> Any:
        fate = fates.of(durable_execution_arn)
        fate.calls += 1
        call = fate.calls
        fate.strike("before", call)
        output = checkpoint(self, durable_execution_arn, *args, **kwargs)
        fate.strike("after", call)
        return output

    monkeypatch.setattr(InMemoryServiceClient, "checkpoint", mortal)
    monkeypatch.setattr(Executor, "RETRY_BACKOFF_SECONDS", 0)
    return fates


def live_through(
    fates: Fates, services: OutsideServices, flow: Flow, lives: list[list[Crash]]
) -> list[Fate]:
    """lives の数だけ注文を同時に処理し、どれもクラッシュしないときと同じ結果か確かめる。"""
    crashes_of = {f"order-{next(fates.numbers)}": crashes for crashes in lives}
    for name in crashes_of:
        services.lose_answers(f"{name}-payment", flow.lost)
    arns = {
        name: fates.start(flow.order | {"order_id": name}, crashes)
        for name, crashes in crashes_of.items()
    }
    if flow.answer is not None:
        for arn in arns.values():
            fates.runner.send_callback_success(fates.runner.wait_for_callback(arn), flow.answer)
    results = {name: outcome(fates.runner.wait_for_result(arn)) for name, arn in arns.items()}
    charges, notices = services.done("charge"), services.done("notice")
    for name, result in results.items():
        crashes = crashes_of[name]
        assert flow.expects(result, name), (result, crashes)
        paid = {f"{name}-payment": flow.total} if flow.status == "COMPLETED" else {}
        assert {k: v for k, v in charges.items() if k == f"{name}-payment"} == paid, crashes
        told = {k: v for k, v in notices.items() if k.startswith(f"{name}-")}
        assert told == {f"{name}-{flow.status}": result}, crashes
    return [fates.by_arn[arn] for arn in arns.values()]


@pytest.fixture(params=FLOWS, ids=lambda flow: flow.title)
def flow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Flow:
    flow: Flow = request.param
    if flow.status == "APPROVAL_TIMED_OUT":  # ランナーは、コールバックの期限を飛ばさない
        monkeypatch.setattr(app, "APPROVAL_TIMEOUT", Duration.from_seconds(1))
    return flow


def test_one_crash_anywhere_changes_nothing(
    fates: Fates, services: OutsideServices, flow: Flow
) -> None:
    lives = [[point] for point in points(flow)]
    for fate in live_through(fates, services, flow, lives):
        assert fate.crashed == fate.crashes
    # 通知した後、記録の前にクラッシュした注文は、同じキーでもう一度通知する
    asked = services.asked("notice")
    assert max(map(asked.count, asked)) == 2
    assert len(services.done("notice")) == len(lives)


@pytest.mark.sweep
def test_two_crashes_in_one_order_change_nothing(
    fates: Fates, services: OutsideServices, flow: Flow
) -> None:
    pairs = [list(pair) for pair in itertools.combinations(points(flow, more=1), 2)]
    lived = live_through(fates, services, flow, pairs)
    assert sum(len(fate.crashed) == 2 for fate in lived) >= pairs_of(flow)


def pairs_of(flow: Flow) -> int:
    return math.comb(len(points(flow)), 2)


def test_readme_states_how_many_points_were_tried() -> None:
    readme = Path(__file__).with_name("README.md").read_text("utf-8")
    rows = re.findall(r"^\| ([A-Z_]+)[^|]*\| (\d+) \| (\d+) \| (\d+) \|$", readme, re.MULTILINE)
    assert rows == [
        (flow.status, str(flow.calls), str(len(points(flow))), str(pairs_of(flow)))
        for flow in FLOWS
    ]
