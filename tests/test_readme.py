"""README.md のコマンドを書いてある順に実行し、書いてある出力と比べる。"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from aws_durable_execution_sdk_python.config import Duration
from aws_durable_execution_sdk_python_testing.runner import DurableFunctionTestRunner

import app
from tests.conftest import OutsideWorld, outcome

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    (command, BLOCKS[index + 1][1] if BLOCKS[index + 1][0] == "text" else "")
    for index, (language, command) in enumerate(BLOCKS)
    if language == "bash"
]
OUTCOMES = re.findall(
    r"^([A-Z_]+)(?:（[^）]*）)?:\n\n```bash\n(.*?)```\n\n```json\n(.*?)```$",
    README,
    re.MULTILINE | re.DOTALL,
)
SETUP = ["python3 -m venv .venv", ".venv/bin/pip install -q -r {}requirements.txt"]


def command_with(words: str) -> tuple[str, str]:
    ((command, expected),) = [pair for pair in COMMANDS if words in pair[0]]
    return command, expected


def without_setup(command: str, folder: str = "") -> list[str]:
    """venv を作る前半を確かめ、後半をこの Python で実行する形にして返す。"""
    *setup, program = command.strip().split(" && ")
    assert setup == [step.format(folder) for step in SETUP]
    return [sys.executable, *program.split()[1:]]


def assert_shown(printed: str, expected: str) -> None:
    """… は実行のたびに変わる部分を表す。"""
    pattern = ".+?".join(re.escape(part) for part in expected.strip().split("…"))
    if not re.fullmatch(pattern, printed.strip()):
        assert printed.strip() == expected.strip()  # 違いを見せる


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def test_first_command_prints_what_the_readme_shows_within_80_columns(
    folder: Path,
) -> None:
    command, expected = command_with("venv .venv && .venv/bin/pip install -q -r requirements.txt")
    arguments = without_setup(command)
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")
    assert_shown(without_times(done.stdout), without_times(expected))
    assert [line for line in done.stdout.splitlines() if columns(line) > 80] == []


def test_stopped_in_the_wait_the_same_command_goes_on_as_the_readme_shows(folder: Path) -> None:
    stop, go_on = (shown for command, shown in COMMANDS if command == ".venv/bin/python app.py\n")
    for shown in (stop, go_on):
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        printed = ""
        if shown is stop:
            while "待ちます" not in printed:
                printed += process.stdout.readline()
            process.send_signal(signal.SIGINT)
            printed += "^C"
        out, err = process.communicate(timeout=60)
        printed += out + err
        assert process.returncode == (130 if shown is stop else 0)
        assert_shown(without_times(printed), without_times(shown))


def without_times(text: str) -> str:
    """実行のたびに変わる時刻とジッターを伏せる。"""
    return re.sub(r"^ *\d+\.\d 秒|\d+ 秒[後待]|\d+\.\d 秒[ので]", "N 秒", text, flags=re.MULTILINE)


def test_second_command_is_what_ci_runs_and_its_count_is_right(
    request: pytest.FixtureRequest,
) -> None:
    command, expected = command_with("-m pytest tests\n")
    assert without_setup(command, "tests/")[1:] == ["-m", "pytest", "tests"]
    assert command in (ROOT / ".ci" / "run").read_text("utf-8")
    if request.config.args == ["tests"]:
        assert expected.startswith(f"{request.session.testscollected} passed in ")


def test_readme_lists_all_six_outcomes() -> None:
    table = re.findall(r"^\| ([A-Z_]+) \|[^|]*\|$", README, re.MULTILINE)
    assert table == [status for status, _, _ in OUTCOMES]
    assert len(table) == 6


@pytest.mark.parametrize(("status", "command", "shown"), OUTCOMES)
def test_order_to_paste_ends_as_the_readme_says(
    runner: DurableFunctionTestRunner,
    world: OutsideWorld,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    command: str,
    shown: str,
) -> None:
    *program, order = shlex.split(command)
    assert program == [".venv/bin/python", "app.py"]
    if status == "APPROVAL_TIMED_OUT":
        monkeypatch.setattr(app, "APPROVAL_TIMEOUT", Duration.from_seconds(1))
    arn = runner.run_async(input=order)
    answer_of_sato = json.dumps({"approved": False, "approver": "sato"}).encode()
    if status == "REJECTED":
        runner.send_callback_success(runner.wait_for_callback(arn), answer_of_sato)

    result = outcome(runner.wait_for_result(arn))
    assert result == json.loads(shown)
    assert list(world.inbox.values()) == [result]


class Terminal:
    """参加者の端末。コマンドの出力を、標準エラーも含めて画面に出る順に返す。"""

    MARK = "--- block ended ---"

    def __init__(self, folder: Path) -> None:
        environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self.shell = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={**environment, "HOME": str(folder), "AWS_EC2_METADATA_DISABLED": "true"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.type("sleep() { :; }")  # 待つ代わりに、次に進めるときまで wait_until_idle で待つ

    def type(self, command: str) -> str:
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        self.shell.stdin.write(f"{command}\necho '{self.MARK}'\n")
        self.shell.stdin.flush()
        return "".join(iter(self.shell.stdout.readline, f"{self.MARK}\n"))


@pytest.fixture
def local_aws(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """README の 1 行で起動した手元の AWS。ポートだけは空いているものを選ぶ。"""
    command, _ = command_with("tests.local_aws")
    arguments = [*without_setup(command, "tests/"), "--port", "0"]
    with subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def wait_until_idle(client: Any, paying: bool = False) -> None:
    """参加者の手の遅さの代わり: どの注文も、終わるか人の答えを待つまで先へ進まない。

    paying なら、支払いの最中の注文も待たない。
    """
    opened = {"CallbackStarted": 1, "CallbackSucceeded": -1}
    for function in client.list_functions()["Functions"]:
        name = function["FunctionName"]
        for order in client.list_durable_executions_by_function(FunctionName=name)[
            "DurableExecutions"
        ]:
            arn = order["DurableExecutionArn"]
            for _ in range(600):
                if client.get_durable_execution(DurableExecutionArn=arn)["Status"] != "RUNNING":
                    break
                history = client.get_durable_execution_history(DurableExecutionArn=arn)["Events"]
                types = [event["EventType"] for event in history]
                if sum(opened.get(kind, 0) for kind in types) and "Invocation" in types[-1]:
                    break
                if paying and (types[-1], history[-1].get("Name")) == ("StepStarted", "pay"):
                    break
                time.sleep(0.05)
            else:
                raise TimeoutError(arn)


def test_every_aws_command_prints_what_the_readme_shows(
    folder: Path, local_aws: "subprocess.Popen[str]"
) -> None:
    start, expected = command_with("tests.local_aws")
    assert local_aws.stdout is not None
    last_line = expected.splitlines()[-1]
    printed = "".join(iter(local_aws.stdout.readline, f"{last_line}\n")) + last_line
    endpoint = re.findall(r"http://127.0.0.1:\d+", printed)[0]
    assert_shown(printed.replace(endpoint, "http://127.0.0.1:4566"), expected)
    client = boto3.client(
        "lambda",
        endpoint_url=endpoint,
        region_name="ap-northeast-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )

    terminal = Terminal(folder)
    terminal.type("\n".join(re.findall(r"^(?:export|unset) .*$", printed, re.MULTILINE)))
    following = COMMANDS[COMMANDS.index((start, expected)) + 1 :]
    following = [pair for pair in following if "pytest" not in pair[0]]
    assert len(following) > 20
    for command, shown in following:
        wait_until_idle(client, paying="pkill" in command)
        assert_shown(terminal.type(command), shown)

    local_aws.send_signal(signal.SIGINT)
    events, _ = local_aws.communicate(timeout=10)
    assert local_aws.returncode == 0
    (shown,) = [text for language, text in BLOCKS if language == "text" and "pid=" in text]
    assert_shown("".join(re.findall(r".* order-300 .*\n", events)), shown)
