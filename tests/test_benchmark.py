"""ベンチマークが数えるもの。時間は確かめない。"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import app
from tests.benchmark import published
from tests.benchmark.__main__ import SHOWN
from tests.benchmark.per_order import Cost, measure, order_of_lines
from tests.benchmark.prices import bill, step_functions
from tests.support.flows import Flow
from tests.timeline import width

ROOT = Path(__file__).parent.parent
PUBLISHED = ((7, 6, 3), (9, 8, 3), (7, 6, 2), (11, 10, 7))


def fewest_calls(*arguments: Any) -> Cost:
    """混んだ機械では START が SUCCEED と別に送られることがあるので、3 回のうち少ないものを採る。"""
    return min((measure(*arguments) for _ in range(3)), key=lambda cost: cost.calls)


@pytest.mark.parametrize(("flow", "of_example"), list(zip(SHOWN, PUBLISHED, strict=True)))
def test_order_is_at_its_floor_and_the_published_style_is_not_below_it(
    flow: Flow, of_example: tuple[int, int, int]
) -> None:
    ours = fewest_calls(app.handler, flow.order, flow.answer)
    peer = fewest_calls(published.handler, flow.order, flow.answer)

    assert (ours.status, peer.status) == (flow.status, flow.status)
    floor = (flow.operations, flow.calls, flow.invocations)
    assert (ours.operations, ours.calls, ours.invocations) == floor
    assert (peer.operations, peer.calls, peer.invocations) == of_example
    assert ours.written_floor < ours.written < peer.written


def test_number_of_lines_changes_only_the_input_that_is_stored() -> None:
    one, many = (fewest_calls(app.handler, order_of_lines(lines)) for lines in (1, 100))
    assert (one.operations, one.calls, one.written) == (many.operations, many.calls, many.written)
    assert one.stored < many.stored


def test_price_of_a_million_orders() -> None:
    cost = Cost(7, 6, 3, 0, 0, stored=2000, seconds=[1.0, 3.0], status="COMPLETED")
    million = bill(cost, memory_mb=256, retention_days=15)
    assert million == pytest.approx((56, 0.5, 0.15, 0.6, 13.3334))
    assert million.total == pytest.approx(70.5834)
    assert step_functions(SHOWN[0].title) == pytest.approx(200)


def test_command_prints_every_table() -> None:
    command = [sys.executable, "-m", "tests.benchmark"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line[:2] for line in lines if line[1:2] == "."] == ["1.", "2.", "3."]
    assert [line for line in lines if width(line) > 100] == []
