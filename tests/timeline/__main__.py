"""`python -m tests.timeline "$ARN"`: 実行の履歴を AWS かローカル AWS から読み、図にする。"""

import io
import signal
import sys
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

import deploy
from tests.timeline import draw

USAGE = '実行の ARN を 1 つ指定してください: .venv/bin/python -m tests.timeline "$ARN"'
NO_SUCH_ORDER = "その ARN の実行が見つかりません。ARN とリージョンを確認してください。"
UNKNOWN = {"ParamValidationError", "ValidationException", "InvalidParameterValueException"}
UNKNOWN |= {"ResourceNotFoundException"}


def main() -> None:
    """図を表示する。できなければ、対処方法を標準エラーに示し、終了コード 1 で終わる。"""
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # 日本語を表示できなくても、図は表示する
    if len(sys.argv) != 2:
        sys.exit(USAGE)
    try:
        events = history(sys.argv[1])
    except (BotoCoreError, ClientError, ValueError) as error:
        problem = deploy.explain(error)
        name = problem.partition("（")[2].partition(":")[0]
        sys.exit(f"{NO_SUCH_ORDER}{problem[:100]}…" if name in UNKNOWN else problem)
    print(draw(events, datetime.now(UTC)))


def history(arn: str) -> list[dict[str, Any]]:
    options = Config(connect_timeout=5, retries={"mode": "standard"})
    pages = boto3.client("lambda", config=options).get_paginator("get_durable_execution_history")
    found = pages.paginate(DurableExecutionArn=arn, IncludeExecutionData=False)
    return [event for page in found for event in page["Events"]]


if __name__ == "__main__":
    main()
