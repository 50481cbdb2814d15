"""`python -m tests.support.idle`: `sleep` の代わりに、どの実行も待機中か終了になるまで待つ。"""

import time
from typing import Any

import boto3

OPENED = {"CallbackStarted": 1, "CallbackSucceeded": -1}


def is_idle(client: Any, arn: str) -> bool:
    """終了したか、承認者の回答を待っているか、長い支払いの途中か。"""
    if client.get_durable_execution(DurableExecutionArn=arn)["Status"] != "RUNNING":
        return True
    history = client.get_durable_execution_history(DurableExecutionArn=arn)["Events"]
    last = history[-1]
    if sum(OPENED.get(event["EventType"], 0) for event in history):
        return bool(last["EventType"] == "InvocationCompleted")
    if (last["EventType"], last.get("Name")) == ("StepStarted", "pay"):
        time.sleep(1)  # 短い支払いなら、その間に終わる
        later = client.get_durable_execution_history(DurableExecutionArn=arn)["Events"]
        return bool(later == history)
    return False


def main() -> None:
    client = boto3.client("lambda")
    for function in client.list_functions()["Functions"]:
        orders = client.list_durable_executions_by_function(FunctionName=function["FunctionName"])
        for order in orders["DurableExecutions"]:
            deadline = time.monotonic() + 120
            while not is_idle(client, order["DurableExecutionArn"]):
                assert time.monotonic() < deadline, order
                time.sleep(0.05)
    time.sleep(1 - time.time() % 1)  # 演習がログを探し始める時刻は、秒きざみ


if __name__ == "__main__":
    main()
