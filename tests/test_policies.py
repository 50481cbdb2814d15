"""実行ロールの権限が、この関数の実行の記録に必要なものだけであること。"""

import json
from collections.abc import Iterator
from itertools import product

import pytest

import deploy
from tests.local_aws.gateway import LocalAws
from tests.support.account import DURABLE, Account
from tests.support.flows import order_of

OURS, CODE = "order-processing-durable", deploy.build_zip()
MANAGED = "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicDurableExecutionRolePolicy"


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with LocalAws(speed=5) as server:
        # 5 MB を超えた履歴の続きは GetDurableExecutionState で読まれる。短い履歴でも読ませる。
        server.executions._max_page_bytes = 1
        yield Account(server.endpoint, server.access_key)


def error_of(account: Account, function: str, role: str) -> str | None:
    account.create(CODE, role, FunctionName=function)
    error = account.ended(account.start(function, order_of())).get("Error")
    account.functions.delete_function(FunctionName=function)
    return error and str(error["ErrorMessage"])


def test_policies_as_they_stand_cover_these_functions_alone(account: Account) -> None:
    role = account.role()
    assert [error_of(account, name, role) for name in (OURS, f"{OURS}-sato")] == [None, None]
    assert "CheckpointDurableExecution" in str(error_of(account, f"{OURS}x", role))
    account.iam.attach_role_policy(RoleName=role.rpartition("/")[2], PolicyArn=MANAGED)
    assert error_of(account, f"{OURS}x", role) is None


@pytest.mark.parametrize(("element", "index"), list(product(["Action", "Resource"], [0, 1])))
def test_nothing_can_be_taken_away(account: Account, element: str, index: int) -> None:
    taken = (less := json.loads(DURABLE))["Statement"][0][element].pop(index)
    needed = taken if element == "Action" else "lambda:CheckpointDurableExecution"
    function = f"{OURS}-sato" if index else OURS
    error = error_of(account, function, account.role(json.dumps(less)))
    assert f"not authorized to perform: {needed} on resource" in str(error)
