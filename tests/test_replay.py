"""完了した履歴をリプレイしても、ステップは再実行されず、結果も同じであること。"""

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

import app
from tests.support.flows import FLOWS, Flow, outcome
from tests.support.outside import OutsideServices
from tests.support.runner import LocalRunner


class Forbidden:
    """記録への書き込みを一切許さないサービスクライアント。"""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AssertionError(f"リプレイが {name} を呼び出しました")


@pytest.mark.parametrize("flow", FLOWS[:3], ids=lambda flow: flow.title)
def test_replaying_a_finished_history_runs_no_step_again(
    runner: LocalRunner, services: OutsideServices, flow: Flow
) -> None:
    arn = runner.run_async(input=json.dumps(flow.order))
    if flow.answer:
        runner.send_callback_success(runner.wait_for_callback(arn), flow.answer)
    first = outcome(runner.wait_for_result(arn))
    history = runner.get_execution_history(arn, include_execution_data=True)
    asked = {kind: services.asked(kind) for kind in ("charge", "notice")}

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
    assert {kind: services.asked(kind) for kind in asked} == asked
