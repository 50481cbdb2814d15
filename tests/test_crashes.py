"""注文がどこでクラッシュしても、結果、請求、お客様への通知が変わらないこと。

クラッシュは、チェックポイント API の呼び出しの前か後に CheckpointError を起こして表す。ステップは
すぐ終わるので、START は SUCCEED と同じ呼び出しで送られる。だから支払いと通知の呼び出しの「前」は、
外部サービスが処理した後、それを記録する前に当たる。
実際のプロセスの強制終了は、test_worker_kills.py と test_local_run_kills.py にある。
"""

import itertools
import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from aws_durable_execution_sdk_python.config import Duration
from aws_durable_execution_sdk_python.exceptions import CheckpointError
from aws_durable_execution_sdk_python.lambda_service import CheckpointOutput

import app
from tests.local_run.runner import LocalRunner
from tests.support.client import Client, is_early_start, restart_at_once
from tests.support.flows import FLOWS, Flow, outcome
from tests.support.outside import OutsideServices

Crash = tuple[str, int]


def points(calls: int) -> list[Crash]:
    """クラッシュする箇所: それぞれの呼び出しの前と後。"""
    return [(when, call) for call in range(1, calls + 1) for when in ("before", "after")]


@dataclass
class Life(Client):
    """注文 1 件の一生。crashes の箇所でクラッシュさせる。"""

    crashes: list[Crash] = field(default_factory=list)
    crashed: list[Crash] = field(default_factory=list)
    number: int = 0

    def checkpoint(self, *_: Any, **call: Any) -> CheckpointOutput:
        if is_early_start(call["updates"]):
            return super().checkpoint(**call)
        self.number = number = self.number + 1
        self.strike("before", number)
        output = super().checkpoint(**call)
        self.strike("after", number)
        return output

    def strike(self, *point: Any) -> None:
        if point in self.crashes:
            self.crashed.append(point)
            raise CheckpointError(f"クラッシュしました: {point}")


def live_through(services: OutsideServices, flow: Flow, fates: list[list[Crash]]) -> list[Life]:
    """fates の数だけ注文を同時に処理し、どれもクラッシュしないときと同じ結果か検証する。"""
    lives = {f"order-{n}": Life(app.handler, crashes=fate) for n, fate in enumerate(fates)}

    def handler(event: Any, context: Any) -> Any:
        execution = event.initial_execution_state.operations[0].execution_details
        return lives[json.loads(execution.input_payload)["order_id"]](event, context)

    with LocalRunner(handler, poll_interval=0.01) as runner:
        arns = {}
        for name in lives:
            services.lose_answers(f"{name}-payment", flow.lost)
            order = json.dumps(flow.order | {"order_id": name})
            arns[name] = runner.run_async(input=order, execution_timeout=60)
        for arn in arns.values() if flow.answer is not None else []:
            runner.send_callback_success(runner.wait_for_callback(arn), flow.answer)
        results = {name: outcome(runner.wait_for_result(arn)) for name, arn in arns.items()}
    for name, result in results.items():
        assert flow.expects(result, name), (result, lives[name].crashes)
    charges = {f"{name}-payment": flow.total for name in lives if flow.status == "COMPLETED"}
    told = {f"{name}-{flow.status}": result for name, result in results.items()}
    assert (services.done("charge"), services.done("notice")) == (charges, told)
    return list(lives.values())


@pytest.fixture(params=FLOWS, ids=lambda flow: flow.title)
def flow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Flow:
    flow: Flow = request.param
    if flow.status == "APPROVAL_TIMED_OUT":  # ランナーは、コールバックの期限を飛ばさない
        monkeypatch.setattr(app, "APPROVAL_TIMEOUT", Duration.from_seconds(1))
    restart_at_once(monkeypatch)
    return flow


def test_one_crash_anywhere_changes_nothing(services: OutsideServices, flow: Flow) -> None:
    lives = live_through(services, flow, [[point] for point in points(flow.calls)])
    assert [life.crashed for life in lives] == [life.crashes for life in lives]
    asked = services.asked("notice")  # 通知した後、記録の前にクラッシュすれば、もう一度通知する
    assert max(map(asked.count, asked)) == 2


@pytest.mark.sweep
def test_two_crashes_in_one_order_change_nothing(services: OutsideServices, flow: Flow) -> None:
    pairs = [list(pair) for pair in itertools.combinations(points(flow.calls + 1), 2)]
    lives = live_through(services, flow, pairs)
    assert sum(len(life.crashed) == 2 for life in lives) >= math.comb(len(points(flow.calls)), 2)
