"""README.md のコマンドを実行し、書いてある出力と比べる。"""

import re
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from aws_durable_execution_sdk_python.config import Duration
from aws_durable_execution_sdk_python_testing.runner import DurableFunctionTestRunner

import app
from tests.conftest import OutsideWorld, outcome

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def without_times(text: str) -> str:
    """実行のたびに変わる時間とジッターを伏せる。"""
    return re.sub(r"^ *\d+\.\d 秒|\d+ 秒後", "N 秒", text, flags=re.MULTILINE)


def test_first_command_prints_what_the_readme_shows_within_80_columns() -> None:
    (_, command), (_, expected) = BLOCKS[1:3]
    *setup, program = command.strip().split(" && ")
    assert setup == ["python3 -m venv .venv", ".venv/bin/pip install -q -r requirements.txt"]

    arguments = [sys.executable, *program.split()[1:]]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (0, "")
    assert without_times(done.stdout) == without_times(expected)
    assert [line for line in done.stdout.splitlines() if columns(line) > 80] == []


def test_second_command_is_what_ci_runs_and_its_count_is_right(
    request: pytest.FixtureRequest,
) -> None:
    (_, command), (_, expected) = BLOCKS[3:5]
    assert command in (ROOT / ".ci" / "run").read_text("utf-8")
    if request.config.args == ["tests"]:
        assert expected.startswith(f"{request.session.testscollected} passed in ")


OUTCOMES = re.findall(
    r"^([A-Z_]+)(?:（[^）]*）)?:\n\n```bash\n(.*?)```$", README, re.MULTILINE | re.DOTALL
)


def test_readme_lists_all_six_outcomes() -> None:
    table = re.findall(r"^\| ([A-Z_]+) \|", README, re.MULTILINE)
    assert table == [status for status, _ in OUTCOMES]
    assert len(table) == 6


@pytest.mark.parametrize(("status", "command"), OUTCOMES)
def test_order_to_paste_ends_as_the_readme_says(
    runner: DurableFunctionTestRunner,
    world: OutsideWorld,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    command: str,
) -> None:
    *program, order = shlex.split(command)
    assert program == [".venv/bin/python", "app.py"]
    if status == "APPROVAL_TIMED_OUT":
        monkeypatch.setattr(app, "APPROVAL_TIMEOUT", Duration.from_seconds(1))
    arn = runner.run_async(input=order)
    if status == "REJECTED":
        runner.send_callback_success(runner.wait_for_callback(arn), b'{"approved": false}')

    assert outcome(runner.wait_for_result(arn))["status"] == status
    assert [notice["status"] for notice in world.inbox.values()] == [status]
