"""実行ロールの権限が、この関数の実行の記録に必要なものだけであること。"""

import contextlib
import json
from collections.abc import Iterator

import pytest

import deploy
from tests.local_aws.gateway import LocalAws
from tests.support.account import DURABLE, TRUST, Account
from tests.support.flows import order_of


def test_lambda_alone_may_assume_the_role_that_covers_the_workshop_functions_alone() -> None:
    lambda_alone = {"Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    assert json.loads(TRUST)["Statement"] == [{"Effect": "Allow", **lambda_alone}]
    functions = "arn:aws:lambda:*:*:function:order-processing-durable"
    assert json.loads(DURABLE)["Statement"] == [
        {
            "Effect": "Allow",
            "Action": ["lambda:CheckpointDurableExecution", "lambda:GetDurableExecutionState"],
            "Resource": [f"{functions}:*", f"{functions}-*:*"],
        }
    ]


FUNCTIONS = ["order-processing-durable", "order-processing-durable-sato"]


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with LocalAws(speed=5) as server:
        # 履歴が 5 MB を超えると続きは GetDurableExecutionState で読まれる。ランナーにはその上限を
        # 後から変える公開 API がないので、ここでだけ小さくし、短い履歴でも続きを読ませる。
        server.executions._max_page_bytes = 1
        yield Account(server.endpoint, server.access_key)


@pytest.fixture(scope="module")
def role(account: Account) -> str:
    role = account.role()
    for name in FUNCTIONS:
        with contextlib.suppress(account.functions.exceptions.ResourceNotFoundException):
            account.functions.delete_function(FunctionName=name)  # 前のテストの関数
        account.create(deploy.build_zip(), role, FunctionName=name)
    return role


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_policies_as_they_stand_are_enough(account: Account, role: str, function: str) -> None:
    account.permit(role, DURABLE)
    assert account.result(account.start(function, order_of()))["status"] == "COMPLETED"


@pytest.mark.parametrize(
    ("element", "index"), [("Action", 0), ("Action", 1), ("Resource", 0), ("Resource", 1)]
)
def test_nothing_can_be_taken_away(account: Account, role: str, element: str, index: int) -> None:
    less = json.loads(DURABLE)
    taken = less["Statement"][0][element].pop(index)
    function = FUNCTIONS[index if element == "Resource" else 0]

    account.permit(role, json.dumps(less))
    error = account.ended(account.start(function, order_of()))["Error"]["ErrorMessage"]
    needed = taken if element == "Action" else "lambda:CheckpointDurableExecution"
    assert "AccessDeniedException" in error
    assert f"not authorized to perform: {needed} on resource" in error
