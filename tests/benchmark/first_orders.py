"""一つのプロセスで注文を実行し、速さを JSON で表示する子プロセス: 公式ランナーの側。

待ち時間は飛ばす。`python -m tests.benchmark.first_orders <1 件ずつの件数> <同時の件数>`
"""

import json
import logging
import sys
import time

from aws_durable_execution_sdk_python.execution import durable_execution

import app
from tests.local_run import README_ORDER
from tests.support.runner import LocalRunner


def main(one_by_one: int, at_once: int) -> None:
    logging.disable(logging.CRITICAL)
    with LocalRunner(app.handler, poll_interval=0.01) as runner:

        def start(order_id: str) -> str:
            return str(runner.run_async(input=json.dumps(README_ORDER | {"order_id": order_id})))

        def status(arn: str) -> str:
            result = json.loads(runner.wait_for_result(arn).result or "{}")
            return str(result.get("status"))

        report(first=status(start("first")))
        began = time.perf_counter()
        statuses = [status(start(f"single-{n}")) for n in range(one_by_one)]
        report(one_by_one=one_by_one / (time.perf_counter() - began))
        began = time.perf_counter()
        statuses += [status(arn) for arn in [start(f"at-once-{n}") for n in range(at_once)]]
        report(at_once=at_once / (time.perf_counter() - began), statuses=sorted({*statuses}))

    with LocalRunner(nothing, poll_interval=0.01) as runner:
        began = time.perf_counter()
        for _ in range(one_by_one):
            runner.run(input="{}")
        report(idle_invocation=(time.perf_counter() - began) / one_by_one)


@durable_execution
def nothing(event: object, context: object) -> None:
    """何もしないハンドラー。1 回の起動に必ずかかる時間を測る。"""


def report(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
