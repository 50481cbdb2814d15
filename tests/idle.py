"""`python -m tests.idle`: `sleep` の代わりに、どの注文も自分では先へ進まなくなるまで待つ。"""

import time
from typing import Any

import boto3

OPENED = {"CallbackStarted": 1, "CallbackSucceeded": -1}


def is_idle(client: Any, arn: str) -> bool:
    """終わったか、人の答えを待っているか、長い支払いの最中か。"""
    if client.get_durable_execution(DurableExecutionArn=arn)["Status"] != "RUNNING":
        return True
    history = client.get_durable_execution_history(DurableExecutionArn=arn)["Events"]
    last = history[-1]
    if sum(OPENED.get(event["EventType"], 0) for event in history):
        return bool(last["EventType"] == "InvocationCompleted")
    if (last["EventType"], last.get("Name")) == ("StepStarted", "pay"):
        return bool(time.time() - last["EventTimestamp"].timestamp() > 1)
    return False


def main() -> None:
    client = boto3.client("lambda")
    for function in client.list_functions()["Functions"]:
        orders = client.list_durable_executions_by_function(FunctionName=function["FunctionName"])
        for order in orders["DurableExecutions"]:
            deadline = time.monotonic() + 60
            while not is_idle(client, order["DurableExecutionArn"]):
                assert time.monotonic() < deadline, order
                time.sleep(0.05)
    time.sleep(1 - time.time() % 1)  # 演習がログを探し始める時刻は、秒きざみ


if __name__ == "__main__":
    main()
