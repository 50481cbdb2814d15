"""注文がどこで死んでも、結果、請求、お客様に届く知らせが変わらないこと。

プロセスの死は、チェックポイントの呼び出しの前か後に CheckpointError を起こして表す。ステップは
すぐ終わるので、START は SUCCEED と同じ呼び出しで送られる。だから支払いと通知の呼び出しの「前」は、
外の世界に触ったあと、それを記録する前に当たる。
本物のプロセスを SIGKILL で殺す標本は test_kills.py にある。
"""

import itertools
import json
import math
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aws_durable_execution_sdk_python.config import Duration
from aws_durable_execution_sdk_python.exceptions import CheckpointError
from aws_durable_execution_sdk_python_testing.client import InMemoryServiceClient
from aws_durable_execution_sdk_python_testing.executor import Executor
from aws_durable_execution_sdk_python_testing.runner import DurableFunctionTestRunner

import app
from tests.conftest import OutsideWorld, order_of, outcome

Death = tuple[str, int]


@dataclass(frozen=True)
class Flow:
    """一つの道筋: 注文と、承認者の答えと、死なずに終わるまでのチェックポイントの呼び出し数。

    lost は、支払いの試行ごとの運命（conftest.py の OutsideWorld）。
    """

    status: str
    order: dict[str, Any]
    calls: int
    answer: bytes | None = None
    lost: str = ""

    def points(self, more: int = 0) -> list[Death]:
        """死ぬ点: それぞれの呼び出しの前と後。"""
        calls = range(1, self.calls + more + 1)
        return [(when, call) for call in calls for when in ("before", "after")]


TO_APPROVE = order_of(price=50_000)
FLOWS = [
    Flow("COMPLETED", order_of(), 6),
    Flow("COMPLETED", TO_APPROVE, 7, b'{"approved": true}'),
    Flow("COMPLETED", order_of(simulate={"payment_timeouts": 3}), 8),
    Flow("OUT_OF_STOCK", order_of(quantity=5000), 3),
    Flow("REJECTED", TO_APPROVE, 5, b"{}"),
    Flow("APPROVAL_TIMED_OUT", TO_APPROVE, 5),
    Flow("PAYMENT_DECLINED", order_of(simulate={"card_declined": True}), 5),
    Flow("PAYMENT_FAILED", order_of(simulate={"payment_timeouts": 10}), 9),
    Flow("PAYMENT_FAILED", order_of(simulate={"payment_timeouts": 0}), 9, lost="LNLL"),
]


@dataclass
class Fate:
    """一つの実行が死ぬことになっている点と、実際に死んだ点。"""

    deaths: list[Death]
    calls: int = 0
    died: list[Death] = field(default_factory=list)

    def strike(self, when: str, call: int) -> None:
        if (when, call) in self.deaths:
            self.died.append((when, call))
            raise CheckpointError(f"{call} 回目の呼び出しの {when} で死にました")


class Fates:
    """実行ごとに、決まった点でプロセスを死なせる。"""

    def __init__(self, runner: DurableFunctionTestRunner) -> None:
        self.runner = runner
        self.by_arn: dict[str, Fate] = {}
        self.starting = threading.Lock()
        self.numbers = itertools.count()

    def start(self, order: dict[str, Any], deaths: list[Death]) -> str:
        with self.starting:
            arn = self.runner.run_async(input=json.dumps(order), execution_timeout=60)
            self.by_arn[arn] = Fate(deaths)
        return arn

    def of(self, arn: str) -> Fate:
        with self.starting:
            return self.by_arn[arn]


@pytest.fixture
def fates(runner: DurableFunctionTestRunner, monkeypatch: pytest.MonkeyPatch) -> Fates:
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
    fates: Fates, world: OutsideWorld, flow: Flow, lives: list[list[Death]]
) -> list[Fate]:
    """lives の数だけ注文を同時に走らせ、どれも死ななかったときと同じに終わることを確かめる。"""
    deaths_of = {f"order-{next(fates.numbers)}": deaths for deaths in lives}
    world.scripts |= {f"{name}-payment": flow.lost for name in deaths_of}
    arns = {
        name: fates.start(flow.order | {"order_id": name}, deaths_of[name]) for name in deaths_of
    }
    if flow.answer is not None:
        for arn in arns.values():
            fates.runner.send_callback_success(fates.runner.wait_for_callback(arn), flow.answer)
    total = sum(item["price"] * item["quantity"] for item in flow.order["items"])
    for name, arn in arns.items():
        deaths = deaths_of[name]
        result = outcome(fates.runner.wait_for_result(arn))
        key = f"{name}-payment"
        charged = {key: total} if flow.status == "COMPLETED" else {}
        expected = {"order_id": name, "status": flow.status, "total": total}
        if charged:
            expected["payment_id"] = world.answers[key]
        if flow.status == "REJECTED":
            expected["reason"] = "承認されませんでした"
        if flow.status == "OUT_OF_STOCK":
            expected["products"] = ["prod-001"]
        assert result == expected, deaths
        assert {k: v for k, v in world.charges.items() if k == key} == charged, deaths
        notices = {k: v for k, v in world.inbox.items() if k.startswith(f"{name}-")}
        assert notices == {f"{name}-{flow.status}": expected}, deaths
    return [fates.by_arn[arn] for arn in arns.values()]


@pytest.fixture(params=FLOWS, ids=lambda flow: f"{flow.status}-{flow.calls}{flow.lost}")
def flow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Flow:
    flow: Flow = request.param
    if flow.status == "APPROVAL_TIMED_OUT":
        monkeypatch.setattr(app, "APPROVAL_TIMEOUT", Duration.from_seconds(1))
    return flow


def test_one_death_anywhere_changes_nothing(fates: Fates, world: OutsideWorld, flow: Flow) -> None:
    undisturbed = live_through(fates, world, flow, [[]] * 3)
    assert min(fate.calls for fate in undisturbed) == flow.calls  # 混んだ機械では START が先に出る

    lives = [[point] for point in flow.points()]
    for fate in live_through(fates, world, flow, lives):
        assert fate.died == fate.deaths
    delivered = Counter(world.deliveries)
    assert max(delivered.values()) == 2  # 知らせたあと記録の前に死んだ注文は、もう一度知らせる
    assert len(world.inbox) == len(undisturbed) + len(lives)


@pytest.mark.sweep
def test_two_deaths_in_one_order_change_nothing(
    fates: Fates, world: OutsideWorld, flow: Flow
) -> None:
    pairs = [list(pair) for pair in itertools.combinations(flow.points(more=1), 2)]
    lived = live_through(fates, world, flow, pairs)
    assert sum(len(fate.died) == 2 for fate in lived) >= pairs_of(flow)


def pairs_of(flow: Flow) -> int:
    return math.comb(len(flow.points()), 2)


def test_readme_states_how_many_points_were_tried() -> None:
    readme = Path(__file__).with_name("README.md").read_text("utf-8")
    rows = re.findall(r"^\| ([A-Z_]+)[^|]*\| (\d+) \| (\d+) \| (\d+) \|$", readme, re.MULTILINE)
    assert rows == [
        (flow.status, str(flow.calls), str(len(flow.points())), str(pairs_of(flow)))
        for flow in FLOWS
    ]
