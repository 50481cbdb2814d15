"""README.md と演習のコマンドを書いてある順に実行し、書いてある出力と比べる。"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import unicodedata
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import boto3
import pytest

import app
from tests.benchmark import prices
from tests.benchmark.per_order import measure
from tests.local_aws.gateway import LocalAws
from tests.local_run import README_ORDER
from tests.support.flows import FLOWS, outcome
from tests.support.runner import LocalRunner
from tests.support.terminal import FAST

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
EXERCISES = (ROOT / "tests" / "README.md").read_text("utf-8")
Block = tuple[str, str | None]
OUTCOMES = re.findall(
    r"^([A-Z_]+)(?:（[^）]*）)?:\n\n```bash\n(.*?)```\n\n```json\n(.*?)```$",
    EXERCISES,
    re.MULTILINE | re.DOTALL,
)
SETUP = ["python3 -m venv .venv", ".venv/bin/pip install -q -r {}requirements.txt"]
ERRORS = re.compile(
    r"An error occurred|^usage: aws|Traceback|command not found|No such file", re.MULTILINE
)


def blocks(text: str) -> list[Block]:
    """コマンドと、その下に示された出力。示されていなければ None。"""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        (command, following[1] if following[0] == "text" else None)
        for (language, command), following in pairwise([*found, ("", "")])
        if language == "bash"
    ]


def section(text: str, title: str) -> str:
    """title の見出しから、同じか上の深さの次の見出しまで。# だけの行は、コマンドの注釈でもある。"""
    depth = len(title.split()[0])
    return re.split(rf"^#{{2,{depth}}} ", text.partition(f"\n{title}")[2], flags=re.MULTILINE)[0]


FIRST, STOP, GO_ON = blocks(section(README, "### まず 1 件"))
LOCAL_AWS, PREPARE = blocks(section(README, "### 準備"))
LESSON = [block for number in "1234" for block in blocks(section(README, f"### {number}."))]
CLEAN_UP = blocks(section(README, "### 5."))
TESTS = blocks(section(README, "## テスト"))[0]
EDITED = blocks(section(EXERCISES, "## 止めている間に"))
WITH_CLI = [block for block in blocks(EXERCISES) if "aws " in block[0]]


def without_setup(command: str, folder: str = "") -> list[str]:
    """venv を作成する前半を確認し、後半をこの Python で実行する形にして返す。"""
    *setup, program = command.strip().split(" && ")
    assert setup == [step.format(folder) for step in SETUP]
    return [sys.executable, *program.split()[1:]]


def fast(command: str) -> str:
    """`python app.py` を 20 倍速にする。"""
    return command.replace("app.py '", f"{' '.join(FAST)} '").replace(
        "app.py\n", f"{' '.join(FAST)}\n"
    )


def assert_shown(printed: str, expected: str | None) -> None:
    """… は実行のたびに変わる部分を表す。"""
    assert expected is not None
    pattern = ".+?".join(re.escape(part) for part in expected.strip().split("…"))
    if not re.fullmatch(pattern, printed.strip()):
        assert printed.strip() == expected.strip()  # 違いを見せる


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def test_first_command_prints_what_the_readme_shows_within_80_columns(folder: Path) -> None:
    arguments = without_setup(fast(FIRST[0]))
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=300)

    assert (done.returncode, done.stderr) == (0, "")
    assert_shown(without_times(done.stdout), without_times(FIRST[1]))
    assert [line for line in done.stdout.splitlines() if columns(line) > 80] == []


@pytest.mark.parametrize(("stop", "go_on"), [(STOP, GO_ON), EDITED], ids=["README", "exercise"])
def test_stopped_in_the_wait_the_order_goes_on_as_shown(
    folder: Path, stop: Block, go_on: Block
) -> None:
    for command, shown in (stop, go_on):
        process = subprocess.Popen(
            ["bash", "-c", f"exec {fast(command)}" if command == stop[0] else fast(command)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        printed = ""
        if "^C" in str(shown):
            while "待ちます" not in printed:
                line = process.stdout.readline()
                assert line, printed
                printed += line
            process.send_signal(signal.SIGINT)
            printed += "^C"
        out, err = process.communicate(timeout=300)
        printed += out + err
        assert process.returncode == (130 if "^C" in str(shown) else 0)
        assert_shown(without_times(printed), without_times(shown))


def without_times(text: str | None) -> str:
    """実行のたびに変わる時刻とジッターを伏せる。"""
    times = r"^ *\d+\.\d 秒|\d+ 秒[後待]|\d+\.\d 秒[ので]"
    return re.sub(times, "N 秒", str(text), flags=re.MULTILINE)


def test_second_command_is_what_ci_runs_and_its_count_is_right(
    request: pytest.FixtureRequest,
) -> None:
    command, expected = TESTS
    assert without_setup(command, "tests/")[1:] == ["-m", "pytest", "tests"]
    assert command in (ROOT / ".ci" / "run").read_text("utf-8")
    if request.config.args == ["tests"]:
        assert str(expected).startswith(f"{request.session.testscollected} passed in ")


def test_all_six_outcomes_can_be_pasted() -> None:
    table = re.findall(r"^\| ([A-Z_]+) \|[^|]*\|$", README, re.MULTILINE)
    assert table == [status for status, _, _ in OUTCOMES]
    assert len(table) == 6


def test_readme_order_is_the_one_that_the_tests_use() -> None:
    text = README.replace('\\"', '"')
    orders = re.findall(r'\{"order_id": "order-123", "items".*?\]\}', text)
    assert [json.loads(order) for order in orders] == [README_ORDER] * 3


def test_price_in_the_comparison_is_the_one_that_the_benchmark_prints() -> None:
    ours, theirs = re.findall(r"注文 100 万件 \| (\d+) 米ドル \| (\d+) 米ドル", README)[0]
    bill = prices.bill(measure(app.handler, README_ORDER), 256, 1)
    without_time = bill.operations + bill.written + bill.retained + bill.requests
    assert 0 < int(ours) - without_time < 2  # 起動時間の料金は、測るたびに少し変わる
    assert int(theirs) == prices.step_functions("README の注文")


def test_each_exercise_says_first_what_one_sees_and_how_long_it_takes() -> None:
    exercises = EXERCISES.partition("\n# 演習\n")[2].partition("\n# 引き継ぐ人へ")[0]
    first_lines = re.findall(r"^## .*\n\n(.*)$", exercises, re.MULTILINE)
    assert len(first_lines) == 7
    assert [line for line in first_lines if not re.search(r"約 \d 分", line)] == []


@pytest.mark.parametrize(("status", "command", "shown"), OUTCOMES)
def test_order_to_paste_ends_as_the_readme_says(
    monkeypatch: pytest.MonkeyPatch, status: str, command: str, shown: str
) -> None:
    *program, order = shlex.split(command)
    assert program == [".venv/bin/python", "app.py"]
    monkeypatch.undo()  # 決済は、app.py そのもののスタブ
    with LocalRunner(app.handler, clock=OrderClock(600), poll_interval=0.01) as runner:
        arn = runner.run_async(input=order, execution_timeout=36_000)
        if status == "REJECTED":
            answer = json.dumps({"approved": False, "approver": "sato"}).encode()
            runner.send_callback_success(runner.wait_for_callback(arn), answer)
        assert outcome(runner.wait_for_result(arn)) == json.loads(shown)


class Place:
    """コマンドを実行する AWS: 環境変数と、名前の末尾と、出力から伏せるもの。"""

    def __init__(self, environment: dict[str, str], suffix: str = "") -> None:
        self.environment, self.suffix = environment, suffix
        self.real_time = bool(suffix)

    def masked(self, printed: str) -> str:
        """アカウント、リージョン、名前の末尾、CLI v2 だけの言い回しを、README のものにする。"""
        printed = re.sub(r"(?<=:)\d{12}(?=:)", "123456789012", printed)
        printed = printed.replace(self.environment["AWS_DEFAULT_REGION"], "ap-northeast-1")
        printed = re.sub(r"^aws: \[ERROR\]: ", "", printed, flags=re.MULTILINE)
        printed = re.sub(r"\n+Additional error details:\n(?:.+\n)*", "\n", printed)
        return printed.replace(self.suffix, "") if self.suffix else printed


class Terminal:
    """参加者の端末。コマンドの出力を、標準エラーも含めて画面に出る順に返す。"""

    MARK = "--- block ended ---"

    def __init__(self, folder: Path, place: Place) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self.place = place
        self.shell = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={
                **kept,
                **place.environment,
                "HOME": str(folder),
                "AWS_CONFIG_FILE": str(folder / "aws-config"),
                "AWS_EC2_METADATA_DISABLED": "true",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.type(PREPARE[0])
        self.type(
            f"export FUNCTION_NAME=$FUNCTION_NAME{place.suffix} ROLE_NAME=$ROLE_NAME{place.suffix}"
        )
        if place.real_time:  # venv の aws ではなく、もとの PATH の aws を使う
            self.type(f'aws() {{ "{shutil.which("aws")}" "$@"; }}')
        else:
            self.type("sleep() { python -m tests.idle; }")

    def type(self, command: str) -> str:
        named = r"(--durable-execution-name \S+)"  # アカウントとリージョンで一意にする
        command = re.sub(named, rf"\1{self.place.suffix}", command)
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        self.shell.stdin.write(f"{command}\necho '{self.MARK}'\n")
        self.shell.stdin.flush()
        return "".join(iter(self.shell.stdout.readline, f"{self.MARK}\n"))

    def leave_an_order_waiting(self) -> None:
        """承認を待つ注文を残す。片付けは、これを止めなければならない。"""
        [command] = [command for command, _ in LESSON if "order-200" in command]
        self.type(command.partition("sleep 5")[0].replace("order-200", "order-999") + "sleep 5\n")

    def check(self, block: Block) -> None:
        command, shown = block
        printed = self.place.masked(self.type(command))
        if shown and self.place.suffix:  # 名前が長い分だけ、表の幅も違う
            printed, shown = squeezed(printed), squeezed(shown)
        if shown is None:
            assert not ERRORS.search(printed), printed
        else:
            assert_shown(printed, shown)


def squeezed(text: str) -> str:
    return re.sub(r"([ -])\1+", r"\1", text)


@pytest.fixture
def local_aws(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """README の 1 行で起動した手元の AWS。ポートだけは空いているものを選ぶ。"""
    arguments = [*without_setup(LOCAL_AWS[0], "tests/"), "--port", "0"]
    with subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_every_aws_command_prints_what_is_shown(
    folder: Path, local_aws: "subprocess.Popen[str]"
) -> None:
    assert local_aws.stdout is not None
    expected = str(LOCAL_AWS[1])
    last_line = expected.splitlines()[-1]
    printed = "".join(iter(local_aws.stdout.readline, f"{last_line}\n")) + last_line
    endpoint = re.findall(r"http://127.0.0.1:\d+", printed)[0]
    assert_shown(printed.replace(endpoint, "http://127.0.0.1:4566"), expected)

    exports = dict(re.findall(r"(\w+)=(\S*)", re.sub(r",?\$\S*no_proxy\S*", "", printed)))
    terminal = Terminal(folder, Place(exports))
    assert len(LESSON) == 6
    assert len(WITH_CLI) == 9
    for block in [*LESSON, *WITH_CLI]:
        terminal.check(block)
    terminal.leave_an_order_waiting()
    for block in CLEAN_UP:
        terminal.check(block)

    local_aws.send_signal(signal.SIGINT)
    events, _ = local_aws.communicate(timeout=10)
    assert local_aws.returncode == 0
    assert re.findall(r"order-300  (\S+)", events) == [
        "待ち",
        "プロセスが落ちた",
        "完了",
        "実行終了",
    ]


@pytest.mark.aws
def test_every_aws_command_prints_in_an_account_what_is_shown(folder: Path) -> None:
    """`--aws` のときだけ動く。待ち時間は本物。手元の AWS でだけできる演習は除き、必ず片付ける。"""
    session = boto3.Session()
    keys = session.get_credentials().get_frozen_credentials()
    environment = {
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_SESSION_TOKEN": keys.token or "",
        "AWS_DEFAULT_REGION": str(session.region_name),
        "AWS_REGION": str(session.region_name),
    }
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "HTTPS_PROXY", "NO_PROXY"):
        environment |= {name: os.environ[name]} if name in os.environ else {}
    place = Place({k: v for k, v in environment.items() if v}, f"-{uuid.uuid4().hex[:8]}")
    terminal = Terminal(folder, place)
    kill = blocks(section(EXERCISES, "## プロセスを殺してみる"))
    try:
        for block in [*LESSON, *(block for block in WITH_CLI if block not in kill)]:
            terminal.check(block)
        terminal.leave_an_order_waiting()
    finally:
        terminal.type(CLEAN_UP[0][0])
    terminal.check(CLEAN_UP[1])


def run_in_account(folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`pytest tests/test_readme.py --aws` を、この環境変数の AWS で実行する。"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "-m", "pytest", "tests/test_readme.py", "--aws"],
        cwd=folder,
        env={**kept, "HOME": str(folder), "AWS_EC2_METADATA_DISABLED": "true", "PATH": path}
        | environment,
        capture_output=True,
        text=True,
    )


def test_account_without_credentials_gets_one_sentence(folder: Path) -> None:
    done = run_in_account(folder, AWS_DEFAULT_REGION="us-west-2")
    assert done.returncode != 0
    sentence = done.stderr.strip().splitlines()[0]
    assert sentence.endswith("README の「準備」のとおりに設定してください。")
    assert "Traceback" not in done.stderr + done.stdout


def everything(aws: LocalAws) -> list[str]:
    session = boto3.Session("test", "test", region_name="us-west-2")
    functions, roles, groups = (
        session.client(name, endpoint_url=aws.endpoint) for name in ("lambda", "iam", "logs")
    )
    return [
        *(function["FunctionName"] for function in functions.list_functions()["Functions"]),
        *(role["RoleName"] for role in roles.list_roles()["Roles"]),
        *(group["logGroupName"] for group in groups.describe_log_groups()["logGroups"]),
    ]


@pytest.mark.sweep
@pytest.mark.parametrize("broken", [False, True])
def test_account_is_tried_out_and_left_clean_even_after_a_failure(
    folder: Path, broken: bool
) -> None:
    if broken:
        readme = folder / "README.md"
        readme.write_text(README.replace("を作ります\n", "を消します\n"))
    with LocalAws() as aws:
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        region = {"AWS_ENDPOINT_URL": aws.endpoint, "AWS_DEFAULT_REGION": "us-west-2"}
        before = everything(aws)  # ほかのテストが残したもの
        done = run_in_account(folder, **keys, **region, NO_PROXY="127.0.0.1")
        assert (done.returncode == 0) is not broken, done.stdout
        assert ("を消します" in done.stdout) is broken
        assert everything(aws) == before
