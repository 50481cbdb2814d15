"""`python -m tests.timeline [--watch] "$ARN"`: 実行の履歴を AWS から読み、図にする。"""

import os
import re
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from typing import Any

if __name__ == "__main__":  # boto3 を読み込む間も、Ctrl-C で静かに終わる
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import deploy  # boto3 がなければ、ここで 1 文を示して終わる
from tests.timeline import ONGOING, ROWS, draw, status_of

# isort: split
import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

USAGE = '実行の ARN を 1 つ指定してください: python3 -m tests.timeline [--watch] "$ARN"'
CHECK = "ARN（$ARN が空や None でないか）とリージョンを確認してください。"
NO_SUCH_ORDER = f"その ARN の実行が見つかりません。{CHECK}"
UNKNOWN = r"（(\w*(?:Validation|ResourceNotFound)\w+: .{,100})(.*)）$"


def main() -> None:
    """図を表示する。できなければ、対処方法を標準エラー出力に示し、終了コード 1 で終わる。"""
    arns = [argument for argument in sys.argv[1:] if argument != "--watch"]
    if len(arns) != 1:
        sys.exit(USAGE)
    try:
        show(arns[0], "--watch" in sys.argv)
    except (BotoCoreError, ClientError, ValueError) as error:
        sentence = deploy.explain(error)
        if unknown := re.search(UNKNOWN, sentence):
            sentence = f"{NO_SUCH_ORDER}（{unknown[1]}{'…' if unknown[2] else ''}）"
        sys.exit(sentence)
    except OSError as error:
        sys.exit(f"図を表示できません（{error.strerror}）。")


def show(arn: str, watch: bool) -> None:
    """watch なら、終わるまで 1 秒ごとに同じ場所に描く。ターミナルでなければ、最後に 1 回描く。"""
    client = boto3.client("lambda", config=Config(connect_timeout=5, retries={"mode": "standard"}))
    in_place, again = watch and os.isatty(1), ""
    while True:
        events = history(client, arn)
        over = not watch or status_of(events) not in ONGOING
        if over or in_place:
            rows = min(ROWS, shutil.get_terminal_size().lines - 4) if in_place else ROWS
            picture = draw(events, datetime.now(UTC), most_rows=rows)
            print(f"{again}{picture}", flush=True)
            again = f"\x1b[{len(picture.splitlines())}A\x1b[J"  # その行数だけ上から、最後まで消す
        if over:
            return
        time.sleep(1)


def history(client: Any, arn: str) -> list[dict[str, Any]]:
    pages = client.get_paginator("get_durable_execution_history").paginate(
        DurableExecutionArn=arn, IncludeExecutionData=False, PaginationConfig={"PageSize": 1000}
    )
    return [event for page in pages for event in page["Events"]]


if __name__ == "__main__":
    main()
