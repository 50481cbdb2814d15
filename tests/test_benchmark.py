"""ベンチマークが数えるもの。時間は確かめない。"""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import app
from tests.benchmark import cold_start, published
from tests.benchmark.code_size import code_lines
from tests.benchmark.per_order import FLOWS, Cost, Flow, measure, order_of_lines
from tests.benchmark.prices import bill, step_functions
from tests.benchmark.table import width

ROOT = Path(__file__).parent.parent
STATUSES = ("COMPLETED", "COMPLETED", "REJECTED", "PAYMENT_DECLINED")
PUBLISHED = ((7, 6, 3), (9, 8, 3), (7, 6, 2), (11, 10, 7))


def fewest_calls(*arguments: Any) -> Cost:
    """混んだ機械では START が SUCCEED を待ちきれず先に送られるので、3 回のうち少ないものを採る。"""
    return min((measure(*arguments) for _ in range(3)), key=lambda cost: cost.calls)


@pytest.mark.parametrize(
    ("flow", "status", "peer_counts"), list(zip(FLOWS, STATUSES, PUBLISHED, strict=True))
)
def test_order_is_at_its_floor_and_the_published_style_is_not_below_it(
    flow: Flow, status: str, peer_counts: tuple[int, int, int]
) -> None:
    ours = fewest_calls(app.handler, flow.order, flow.answer)
    peer = fewest_calls(published.handler, flow.order, flow.answer)

    assert (ours.status, peer.status) == (status, status)
    assert (ours.billed, ours.calls, ours.invocations) == (
        flow.billed,
        flow.calls,
        flow.invocations,
    )
    assert (peer.billed, peer.calls, peer.invocations) == peer_counts
    assert ours.written_floor < ours.written < peer.written
    assert ours.replayed_floor < ours.replayed < peer.replayed


def test_readme_order_takes_six_calls_seven_operations_and_three_invocations() -> None:
    cost = fewest_calls(app.handler, FLOWS[0].order)
    assert (cost.calls, cost.billed, cost.invocations) == (6, 7, 3)
    assert len(cost.seconds) == 3


def test_number_of_lines_changes_only_the_input_that_is_replayed() -> None:
    one, many = (fewest_calls(app.handler, order_of_lines(lines)) for lines in (1, 100))
    assert (one.billed, one.calls, one.written) == (many.billed, many.calls, many.written)
    assert one.replayed - one.replayed_input == many.replayed - many.replayed_input
    assert one.replayed_input < many.replayed_input


def test_price_of_a_million_orders() -> None:
    cost = Cost(
        billed=7,
        calls=6,
        invocations=3,
        written=0,
        replayed=0,
        replayed_input=0,
        written_floor=0,
        replayed_floor=0,
        stored=2000,
        seconds=[1.0, 3.0],
        status="COMPLETED",
    )
    million = bill(cost, memory_mb=256, retention_days=15)

    assert million.operations == pytest.approx(56)
    assert million.written == pytest.approx(0.5)
    assert million.retained == pytest.approx(0.15)
    assert million.requests == pytest.approx(0.6)
    assert million.compute == pytest.approx(13.3334)
    assert million.total == pytest.approx(70.5834)
    assert step_functions(FLOWS[0].title) == pytest.approx(200)


def test_zip_holds_the_sdk_and_app() -> None:
    size, own = cold_start.zip_sizes()
    assert own == (ROOT / "app.py").stat().st_size < size


def test_code_lines_are_those_that_run() -> None:
    source = '''\
@decorated
def step(ctx):
    """説明は
    数えない。"""

    # コメントも数えない
    return """文字列の
    中は数える"""
'''
    assert code_lines(ast.parse(source).body[0], source.splitlines()) == 4


def test_quick_run_prints_every_table_that_needs_no_server() -> None:
    command = [sys.executable, "-m", "tests.benchmark", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")
    titles = [line[:2] for line in done.stdout.splitlines() if line[1:2] == "."]
    assert titles == ["1.", "2.", "3.", "4."]
    assert [line for line in done.stdout.splitlines() if width(line) > 100] == []
