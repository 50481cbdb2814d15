"""手元の AWS で注文を実行し、1 件あたりの費用と速さを測る。待ち時間は飛ばす。"""

import json
import os
import queue
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

import deploy
from tests.local_aws.gateway import LocalAws
from tests.local_run import README_ORDER

ROOT = Path(__file__).parents[2]
CHECKPOINT = re.compile(r"/2025-12-01/durable-executions/[^/]+/checkpoint")
ENDED = "実行終了"
COMMANDS = [
    *("python3 -m venv .venv", "pip install -r tests/requirements.txt"),
    *("python -m tests.local_aws", "export …", "aws iam create-role …"),
    *("aws iam attach-role-policy …", "aws iam put-role-policy …"),
    *("python3 deploy.py", "aws lambda invoke …"),
]


class CountedAws(LocalAws):
    """チェックポイントの要求と、終わった注文を数える手元の AWS。"""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        super().__init__(skip_time=True, report=self.watch)

    def watch(self, line: str) -> None:
        if ENDED in line:
            self.ended.put(line)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if CHECKPOINT.fullmatch(environ["REQUEST_URI"]):
            self.sizes.append(int(environ["CONTENT_LENGTH"]))
        return super().__call__(environ, start_response)


@dataclass(frozen=True)
class Batch:
    """同時に始めた orders 件の、1 件あたりの費用と秒数。"""

    orders: int
    calls: float
    written: float
    per_order: float


def batches(rounds: dict[int, int]) -> list[Batch]:
    """デプロイした関数に、何件か同時に注文するのを、決めた回数くり返す: {件数: 回数}。"""
    aws = CountedAws()
    with aws, environment(aws.endpoint):
        for command in [*role_commands(), [sys.executable, "deploy.py"]]:
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        client = boto3.client("lambda")

        def order_at_once(orders: int) -> None:
            for n in range(orders):
                client.invoke(
                    FunctionName=f"{deploy.FUNCTION_NAME}:1",
                    InvocationType="Event",
                    Payload=json.dumps(README_ORDER | {"order_id": f"order-{n:03}"}),
                )
            lines = [aws.ended.get(timeout=60) for _ in range(orders)]
            assert all("SUCCEEDED" in line for line in lines), lines

        def measured(orders: int, times: int) -> Batch:
            aws.sizes.clear()
            began = time.perf_counter()
            for _ in range(times):
                order_at_once(orders)
            total = orders * times
            seconds = time.perf_counter() - began
            return Batch(orders, len(aws.sizes) / total, sum(aws.sizes) / total, seconds / total)

        order_at_once(10)  # ワーカープロセスを温める
        return [measured(orders, times) for orders, times in rounds.items()]


def first_order() -> dict[str, float]:
    """README のコマンドを順に実行し、注文が 1 件終わるまでの秒数を、コマンドごとに返す。

    `sleep 10` は除く。注文の待ち時間は手元の AWS が飛ばす。
    """
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def lap(name: str) -> None:
        seconds[name] = time.perf_counter() - began - sum(seconds.values())

    command = [sys.executable, "-u", "-m", "tests.local_aws", "--port", "0", "--skip-time"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        printed = iter(server.stdout.readline, "")
        try:
            endpoint = next(line for line in printed if "AWS_ENDPOINT_URL" in line).split("=")[1]
            lap("手元の AWS の起動")
            with environment(endpoint.strip()):
                for role_command in role_commands():
                    subprocess.run(role_command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
                lap("aws コマンド 3 回 (ロール)")
                deployed = subprocess.check_output([sys.executable, "deploy.py"], cwd=ROOT)
                lap("deploy.py")
                invoke = aws_command(deployed.decode().partition("\n\n")[2])
                invoke[-1] = os.devnull
                subprocess.run(invoke, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
                lap("aws lambda invoke")
            next(line for line in printed if ENDED in line)
            lap("注文そのもの")
        finally:
            server.terminate()
    return seconds


def role_commands() -> list[list[str]]:
    """README の「1. IAM ロールの作成」の aws コマンド。"""
    readme = (ROOT / "README.md").read_text("utf-8")
    section = readme.partition("### 1. IAM ロールの作成")[2].partition("```bash\n")[2]
    block = section.partition("```")[0].replace("$ROLE_NAME", deploy.ROLE_NAME)
    return [aws_command(part) for part in block.split("\n\n") if "\naws " in f"\n{part}"]


def aws_command(text: str) -> list[str]:
    """README などの aws コマンドを、この venv の aws で実行できる形にする。"""
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    return [str(Path(sys.prefix, "bin", "aws")), *words[1:]]


@contextmanager
def environment(endpoint: str) -> Iterator[None]:
    """手元の AWS が表示する export と同じ環境変数。"""
    before = dict(os.environ)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        os.environ.pop(name, None)
    os.environ.update(
        AWS_ENDPOINT_URL=endpoint,
        AWS_ACCESS_KEY_ID="local",
        AWS_SECRET_ACCESS_KEY="local",
        AWS_DEFAULT_REGION="ap-northeast-1",
        AWS_CONFIG_FILE=os.devnull,
        NO_PROXY="127.0.0.1",
        FUNCTION_NAME=deploy.FUNCTION_NAME,
        ROLE_NAME=deploy.ROLE_NAME,
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
