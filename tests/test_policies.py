"""ロールに与える権限は、この関数の実行の記録に要るものだけであること。"""

import fnmatch
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ACTIONS = {"lambda:CheckpointDurableExecution", "lambda:GetDurableExecutionState"}


def only_statement(name: str) -> dict[str, Any]:
    (statement,) = json.loads((ROOT / name).read_text("utf-8"))["Statement"]
    assert statement.pop("Effect") == "Allow"
    return dict(statement)


def test_lambda_alone_may_assume_the_role() -> None:
    assert only_statement("trust-policy.json") == {
        "Principal": {"Service": "lambda.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }


@pytest.mark.parametrize(
    ("function", "allowed"),
    [
        ("order-processing-durable:1", True),
        ("order-processing-durable:$LATEST", True),
        ("order-processing-durable-sato:12", True),
        ("order-processing-durable2:1", False),
        ("order-processing:1", False),
        ("my-order-processing-durable:1", False),
        ("order-processing-durable", False),
    ],
)
def test_only_executions_of_the_workshop_functions_are_covered(
    function: str, allowed: bool
) -> None:
    statement = only_statement("durable-policy.json")
    assert set(statement) == {"Action", "Resource"}
    assert set(statement["Action"]) == ACTIONS
    arn = f"arn:aws:lambda:ap-northeast-1:123456789012:function:{function}/durable-execution/x/1"
    assert any(fnmatch.fnmatchcase(arn, pattern) for pattern in statement["Resource"]) is allowed
