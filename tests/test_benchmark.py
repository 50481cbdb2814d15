"""ベンチマーク: 数え方、計算、表示。所要時間は検証しない。"""

import re
import subprocess
import sys

import pytest

import app
import deploy
from tests.benchmark.per_order import measure
from tests.support.flows import FLOWS, Flow
from tests.support.outside import OutsideServices
from tests.timeline import width

# ランナーは、コールバックの期限を飛ばさない
COUNTED = [flow for flow in FLOWS if flow.status != "APPROVAL_TIMED_OUT"]


@pytest.mark.parametrize("flow", COUNTED, ids=lambda flow: flow.title)
def test_order_costs_what_its_flow_says(services: OutsideServices, flow: Flow) -> None:
    services.lose_answers("order-123-payment", flow.lost)
    cost = measure(app.handler, flow.order, flow.answer)
    expected = (flow.operations, flow.calls, flow.invocations)
    assert (cost.operations, cost.calls, cost.invocations) == expected
    assert cost.stored > 100 * cost.operations


def test_command_prints_counts_and_prices_of_two_orders_within_80_columns() -> None:
    command = [sys.executable, "-m", "tests.benchmark"]
    done = subprocess.run(command, cwd=deploy.ROOT, capture_output=True, check=True, text=True)
    assert [line for line in done.stdout.splitlines() if width(line) > 80] == []
    rows = re.findall(r"(?m)^[^・]\S.*? +([\d.]+) +([\d.]+)$", done.stdout)
    counts = [(flow.operations, flow.calls, flow.invocations) for flow in FLOWS[:2]]
    assert rows[:3] == [tuple(map(str, row)) for row in zip(*counts, strict=True)]
