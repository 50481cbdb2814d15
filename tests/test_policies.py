"""実行ロールの権限が、この関数の実行の記録に必要なものだけであること。"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.local_aws.gateway import LocalAws
from tests.support.flows import order_of
from tests.support.order_system import OrderSystem

ROOT = Path(__file__).parent.parent


def only_statement(name: str) -> dict[str, Any]:
    (statement,) = json.loads((ROOT / name).read_text("utf-8"))["Statement"]
    assert statement.pop("Effect") == "Allow"
    return dict(statement)


def test_lambda_alone_may_assume_the_role_that_covers_the_workshop_functions_alone() -> None:
    assert only_statement("trust-policy.json") == {
        "Principal": {"Service": "lambda.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    functions = "arn:aws:lambda:*:*:function:order-processing-durable"
    assert only_statement("durable-policy.json") == {
        "Action": ["lambda:CheckpointDurableExecution", "lambda:GetDurableExecutionState"],
        "Resource": [f"{functions}:*", f"{functions}-*:*"],
    }


FUNCTIONS = ["order-processing-durable", "order-processing-durable-sato"]
POLICY = json.loads((ROOT / "durable-policy.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrderSystem]:
    with LocalAws(speed=5) as server:
        # 履歴が 5 MB を超えると続きは GetDurableExecutionState で読まれる。ランナーにはその上限を
        # 後から変える公開 API がないので、ここでだけ小さくし、短い履歴でも続きを読ませる。
        server.executions._max_page_bytes = 1
        yield OrderSystem(server, tmp_path_factory.mktemp("outside"), *FUNCTIONS)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_policies_as_they_stand_are_enough(system: OrderSystem, function: str) -> None:
    system.permit(POLICY)
    assert system.result(system.order(order_of(), function))["status"] == "COMPLETED"


@pytest.mark.parametrize(
    ("element", "index"), [("Action", 0), ("Action", 1), ("Resource", 0), ("Resource", 1)]
)
def test_nothing_can_be_taken_away(system: OrderSystem, element: str, index: int) -> None:
    less = copy.deepcopy(POLICY)
    taken = less["Statement"][0][element].pop(index)
    function = FUNCTIONS[index if element == "Resource" else 0]

    system.permit(less)
    error = system.ended(system.order(order_of(), function))["Error"]["ErrorMessage"]
    needed = taken if element == "Action" else "lambda:CheckpointDurableExecution"
    assert "AccessDeniedException" in error
    assert f"not authorized to perform: {needed} on resource" in error
