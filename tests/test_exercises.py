"""演習「壊してみる」の変更は、どれも約束のテストを一つだけ赤くすること。"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.test_readme import EXERCISES as TEXT

EXERCISES = re.findall(
    r"^```diff\n(.*?)^```\n\n```bash\n(.*?)^```\n\n`(test_\w+)`.*?^```text\n(.*?)^```$",
    TEXT,
    re.MULTILINE | re.DOTALL,
)


def apply(diff: str, code: str) -> str:
    old = "".join(line[1:] + "\n" for line in diff.splitlines() if line.startswith("-"))
    new = "".join(line[1:] + "\n" for line in diff.splitlines() if line.startswith("+"))
    assert code.count(old) == 1
    return code.replace(old, new)


def test_there_are_four_exercises() -> None:
    assert len(EXERCISES) == 4


@pytest.mark.parametrize(("diff", "command", "test", "shown"), EXERCISES, ids=range(1, 5))
def test_each_edit_turns_one_promise_red(
    folder: Path, diff: str, command: str, test: str, shown: str
) -> None:
    program = folder / "app.py"
    program.write_text(apply(diff, program.read_text("utf-8")), "utf-8")
    done = subprocess.run(
        shlex.split(command), cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert shown in done.stdout
    assert re.search(rf"^FAILED \S+::{test}\b", done.stdout, re.MULTILINE)
    assert re.search(r"^1 failed, 3 passed", done.stdout, re.MULTILINE)
