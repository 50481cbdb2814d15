"""終わった履歴をリプレイしても、ステップは二度と動かず、結果も同じであること。"""

import json
from collections.abc import Callable
from typing import Any

import pytest
from aws_durable_execution_sdk_python.execution import (
    DurableExecutionInvocationInputWithClient,
    InitialExecutionState,
)
from aws_durable_execution_sdk_python_testing.invoker import create_test_lambda_context
from aws_durable_execution_sdk_python_testing.model import events_to_operations
from aws_durable_execution_sdk_python_testing.runner import DurableFunctionTestRunner

import app
from tests.conftest import OutsideWorld, order_of, outcome
from tests.local_run import README_ORDER

APPROVED_ORDER = order_of(price=50_000)


class Forbidden:
    """記録への書き込みを一切許さないサービスクライアント。"""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AssertionError(f"リプレイが {name} を呼びました")


@pytest.mark.parametrize("order", [README_ORDER, APPROVED_ORDER])
def test_replaying_a_finished_history_runs_no_step_again(
    runner: DurableFunctionTestRunner, world: OutsideWorld, order: dict[str, Any]
) -> None:
    arn = runner.run_async(input=json.dumps(order))
    if order is APPROVED_ORDER:
        runner.send_callback_success(runner.wait_for_callback(arn), b'{"approved": true}')
    first = outcome(runner.wait_for_result(arn))
    history = runner.get_execution_history(arn, include_execution_data=True)
    assert world.deliveries == ["order-123-COMPLETED"]

    replayed = app.handler(
        DurableExecutionInvocationInputWithClient(
            durable_execution_arn=arn,
            checkpoint_token="used",
            initial_execution_state=InitialExecutionState(
                operations=events_to_operations(history.events), next_marker=""
            ),
            service_client=Forbidden(),
        ),
        create_test_lambda_context(),
    )

    assert replayed["Status"] == "SUCCEEDED"
    assert json.loads(replayed["Result"]) == first
    assert world.deliveries == ["order-123-COMPLETED"]
    assert world.payment_calls == [("order-123-payment", first["total"])] * 2
