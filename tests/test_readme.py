"""README.md と演習のコマンドを書いてある順に実行し、書いてある出力と比べる。"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import boto3
import pytest

import app
from tests.local_aws.gateway import LocalAws
from tests.local_run import README_ORDER
from tests.local_run.runner import LocalRunner, OrderClock
from tests.support.account import Account, eventually
from tests.support.flows import FLOWS, outcome
from tests.support.terminal import FAST, read_to
from tests.timeline import width

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
EXERCISES = (ROOT / "tests" / "README.md").read_text("utf-8")
Block = tuple[str, str | None]
OUTCOMES = re.findall(
    r"(?ms)^([A-Z_]+)(?:（[^）]*）)?:\n\n```bash\n(.*?)```\n\n```json\n(.*?)```$", EXERCISES
)
SETUP = ["python3 -m venv .venv", ".venv/bin/pip install -q -r {}requirements.txt"]
ERRORS = re.compile(r"(?m)An error occurred|^usage: aws|Traceback|command not found|No such file")


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
CREATE = [*blocks(section(README, "### 1.")), *blocks(section(README, "### 2."))]
LESSON = [*CREATE, *blocks(section(README, "### 3.")), *blocks(section(README, "### 4."))]
CLEAN_UP = blocks(section(README, "### 5."))
[TESTS] = blocks(section(README, "## テスト"))
EDITED = blocks(section(EXERCISES, "## 止めている間に"))
WITH_CLI = [block for block in blocks(EXERCISES) if "aws " in block[0]]
KILL = blocks(section(EXERCISES, "## プロセスを強制終了"))
DEPLOY_AGAIN = blocks(section(EXERCISES, "## 待っている間に"))
LEFT_WAITING: list[Block] = [  # 承認を待つ注文を残す。片付けは、これを止めなければならない
    (f"{command.partition('sleep 5')[0]}sleep 5".replace("order-200", "order-999"), None)
    for command, _ in LESSON
    if "order-200" in command
]
PARTS = [
    [*LESSON, *DEPLOY_AGAIN, *LEFT_WAITING, *CLEAN_UP],
    [*CREATE, *(block for block in WITH_CLI if block not in DEPLOY_AGAIN)],
]


def without_setup(command: str, folder: str = "") -> list[str]:
    """venv を作成する前半を確認し、後半をこの Python で実行する形にして返す。"""
    *setup, program = command.strip().split(" && ")
    assert setup == [step.format(folder) for step in SETUP]
    return [sys.executable, *program.split()[1:]]


def without_times(text: str) -> str:
    """実行のたびに変わる時刻、ジッター、図の桁を伏せる。図の行には、名前と | * x だけを残す。"""
    waits, scale = r"(\d+ 秒後|すぐ)に再|\d+ 秒待", r"^ +0 . +\d+\.\d [秒分]"
    times = rf"^ *\d+\.\d 秒|{waits}|\d+\.\d 秒[ので]|{scale}|\d+\.\d 秒$"
    text = re.sub(times, "N 秒", text, flags=re.MULTILINE)
    return re.sub(
        r"(?m)^(\S+)  ([-#|*x ]+)(動.*)?$",
        lambda row: " ".join([row[1], *re.findall(r"[|*x]", row[2]), row[3] or ""]),
        text,
    )


def assert_shown(printed: str, expected: str | None) -> None:
    """… は実行のたびに変わる部分を、… だけの行は省略した行を表す。"""
    assert expected is not None
    printed, expected = (f"{without_times(text).strip()}\n" for text in (printed, expected))
    parts = re.split(r"(?m)(^…\n|…)", expected)
    pattern = "".join({"…": ".+?", "…\n": "(?s:.+)"}.get(part, re.escape(part)) for part in parts)
    if not re.fullmatch(pattern, printed):
        assert printed == expected  # 違いを見せる


# ---- 手元で ----------------------------------------------------------------------

IDLE = "ハンドラーは動きません"


@pytest.mark.parametrize("session", [[FIRST], [STOP, GO_ON], EDITED], ids=range(3))
def test_app_prints_what_is_shown_within_80_columns(folder: Path, session: list[Block]) -> None:
    for command, shown in session:
        stopped, again = "^C" in str(shown), shown == GO_ON[1]
        program = command.rpartition(" && ")[2].replace("python app.py", f"python {' '.join(FAST)}")
        process = subprocess.Popen(
            ["bash", "-c", f"exec {program}" if stopped else program],
            cwd=folder,
            # 再開するときは、遅い機械でも、待機が終わる前に始まるように
            env=os.environ | {"FREEZE": IDLE if stopped else "", "SPEED": "2" if again else "5"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        printed = ""
        if stopped:
            os.waitpid(process.pid, os.WUNTRACED)
            printed = read_to(f"{IDLE}\n", process) + "^C"
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGCONT)
        printed += process.communicate(timeout=300)[0]
        assert process.returncode == (130 if stopped else 0)
        assert_shown(printed, shown)
        assert [line for line in printed.splitlines() if width(line) > 80] == []


@pytest.mark.parametrize(("status", "command", "shown"), OUTCOMES)
def test_order_to_paste_ends_as_the_exercise_says(status: str, command: str, shown: str) -> None:
    *program, order = shlex.split(command)
    assert program == [".venv/bin/python", "app.py"]
    with LocalRunner(app.handler, clock=OrderClock(300), poll_interval=0.01) as runner:
        arn = runner.run_async(input=order, execution_timeout=36_000)
        if status == "REJECTED":
            answer = json.dumps({"approved": False, "approver": "sato"}).encode()
            runner.send_callback_success(runner.wait_for_callback(arn), answer)
        assert outcome(runner.wait_for_result(arn)) == json.loads(shown)


def test_all_outcomes_are_listed_and_can_be_pasted() -> None:
    table = re.findall(r"^\| ([A-Z_]+) \|[^|]*\|$", README, re.MULTILINE)
    assert table == [status for status, _, _ in OUTCOMES]
    assert set(table) == {flow.status for flow in FLOWS}
    stock = re.findall(r"(prod-\d+) が (\d+) 個", README)
    assert {product: int(number) for product, number in stock} == app.STOCK


def test_readme_order_is_the_one_that_the_tests_use() -> None:
    orders = re.findall(r'\{"order_id": "order-123", "items".*?\]\}', README)
    assert {json.dumps(json.loads(order)) for order in orders} == {json.dumps(README_ORDER)}


def test_price_in_the_comparison_is_the_one_that_the_benchmark_prints() -> None:
    told = re.findall(r"注文 100 万件 \| (\d+) 米ドル \| (\d+) 米ドル", README)
    command = [sys.executable, "-m", "tests.benchmark"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    assert re.findall(r"合計 +(\d+) .*\nStep Functions +(\d+) ", done.stdout) == told
    assert re.findall(r"\S+ の公開料金（.+?時点）", done.stdout)[0][1:] in README


def test_second_command_is_what_ci_runs_and_both_install_what_they_need() -> None:
    assert without_setup(FIRST[0])[1:] == ["app.py"]
    assert without_setup(TESTS[0], "tests/")[1:] == ["-m", "pytest", "tests"]
    assert TESTS[0] in (ROOT / ".ci" / "run").read_text("utf-8")


# ---- 壊してみる ------------------------------------------------------------------

EDITS = re.findall(
    r"(?ms)^```diff\n(.*?)^```\n\n```bash\n(.*?)^```\n\n`(test_\w+)`.*?^```text\n(.*?)^```$",
    EXERCISES,
)


@pytest.mark.parametrize(("diff", "command", "test", "shown"), EDITS, ids=range(1, 5))
def test_each_edit_breaks_one_promise(
    folder: Path, diff: str, command: str, test: str, shown: str
) -> None:
    old, new = (
        "".join(f"{line[1:]}\n" for line in diff.splitlines() if line.startswith(sign))
        for sign in "-+"
    )
    program = folder / "app.py"
    assert program.read_text("utf-8").count(old) == 1
    program.write_text(program.read_text("utf-8").replace(old, new), "utf-8")
    done = subprocess.run(
        shlex.split(command), cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert shown in done.stdout
    assert re.search(rf"^FAILED \S+::{test}\b", done.stdout, re.MULTILINE)
    assert re.search(r"^1 failed, 4 passed", done.stdout, re.MULTILINE)


# ---- AWS で ----------------------------------------------------------------------


class Shell:
    """参加者のターミナル。コマンドの出力を、標準エラー出力も含めて画面に出る順に返す。"""

    ENDED, SLEEP = "block ended\n", "sleeping\n"

    def __init__(
        self, folder: Path, environment: dict[str, str], suffix: str = "", orders: Any = None
    ) -> None:
        """orders は Lambda のクライアント。あれば、sleep の代わりに、注文が落ち着くまで待つ。"""
        self.region, self.suffix, self.orders = environment["AWS_DEFAULT_REGION"], suffix, orders
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        here = {"HOME": str(folder), "AWS_CONFIG_FILE": str(folder / "aws-config")}
        self.shell = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={**kept, **environment, **here, "AWS_EC2_METADATA_DISABLED": "true"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        account = self.type(PREPARE[0].replace("SUFFIX=\n", f"SUFFIX={suffix}\n"))
        assert '"Account": "' in account, account
        if suffix:  # venv の aws ではなく、もとの PATH の aws を使う
            self.type(f'aws() {{ "{shutil.which("aws")}" "$@"; }}')
        if orders:
            self.type(f"sleep() {{ printf '{self.SLEEP}'; read -r; }}")

    def type(self, command: str) -> str:
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        if "date +%s" in command:  # 演習がログを探し始める時刻は、秒きざみ
            time.sleep(1 - time.time() % 1)
        self.shell.stdin.write(f"{{\n{command}\nprintf '%s' '{self.ENDED}'\n}}\n")
        printed = ""
        for line in iter(self.shell.stdout.readline, self.ENDED):
            if line == self.SLEEP:
                wait_until_settled(self.orders)
                self.shell.stdin.write("\n")
            else:
                assert line, printed
                printed += line
        return printed

    def check(self, block: Block) -> None:
        command, shown = block
        printed = self.masked(self.type(command))
        if shown is None:
            assert not ERRORS.search(printed), printed
            return
        if self.suffix:  # 名前が長い分だけ、表の幅も違う
            printed, shown = (re.sub(r"([ -])\1+", r"\1", text) for text in (printed, shown))
        assert_shown(printed, shown)

    def masked(self, printed: str) -> str:
        """アカウント、リージョン、名前の末尾、CLI v2 だけの言い回しを、README のものにする。"""
        printed = re.sub(r"(?<=:)\d{12}(?=:)", "123456789012", printed)
        printed = printed.replace(self.region, "ap-northeast-1")
        printed = re.sub(r"^aws: \[ERROR\]: ", "", printed, flags=re.MULTILINE)
        printed = re.sub(r"\n+Additional error details:\n(?:.+\n)*", "\n", printed)
        return printed.replace(self.suffix, "") if self.suffix else printed


def wait_until_settled(client: Any) -> None:
    """どの注文も終わったか、承認者の回答を待っているか、長い支払いの途中になるまで待つ。"""
    for function in client.list_functions()["Functions"]:
        listed = client.list_durable_executions_by_function(FunctionName=function["FunctionName"])
        for order in listed["DurableExecutions"]:
            eventually(partial(is_settled, client, order["DurableExecutionArn"]))


def is_settled(client: Any, arn: str) -> bool:
    history = partial(client.get_durable_execution_history, DurableExecutionArn=arn)
    if client.get_durable_execution(DurableExecutionArn=arn)["Status"] != "RUNNING":
        return True
    events = history()["Events"]
    kinds, last = [event["EventType"] for event in events], events[-1]
    if kinds.count("CallbackStarted") > kinds.count("CallbackSucceeded"):
        return bool(kinds[-1] == "InvocationCompleted")
    if (kinds[-1], last.get("Name")) == ("StepStarted", "pay"):
        time.sleep(1)  # 短い支払いなら、その間に終わる
        return bool(history()["Events"] == events)
    return False


@pytest.fixture
def local_aws(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """README の 1 行で起動したローカル AWS。時計は 5 倍速、ポートは空いているもの。"""
    arguments = [*without_setup(LOCAL_AWS[0], "tests/"), "--port", "0", "--speed", "5"]
    with subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("part", PARTS, ids=["README", "exercises"])
def test_every_aws_command_prints_what_is_shown(
    folder: Path, local_aws: "subprocess.Popen[str]", part: list[Block]
) -> None:
    expected = str(LOCAL_AWS[1])
    printed = read_to(expected.splitlines()[-1], local_aws)
    endpoint = re.findall(r"http://127.0.0.1:\d+", printed)[0]
    assert_shown(printed.replace(endpoint, "http://127.0.0.1:4566"), expected)

    exports = dict(re.findall(r"(\w+)=(\S*)", re.sub(r",?\$\S*no_proxy\S*", "", printed)))
    account = Account(endpoint, exports["AWS_ACCESS_KEY_ID"])
    shell = Shell(folder, exports, orders=account.functions)
    for block in part:
        shell.check(block)
    local_aws.send_signal(signal.SIGINT)
    events, _ = local_aws.communicate(timeout=60)
    assert local_aws.returncode == 0
    ends = ["呼び出し終了（待機）", "呼び出し終了（異常終了）", "呼び出し終了（完了）"]
    killed = re.findall(r"order-300  (\S+?)(?:  |\n)", events)
    assert killed == ([*ends, "実行終了（SUCCEEDED）"] if KILL[0] in part else [])


def test_clean_up_with_empty_names_stops_before_it_asks_aws(folder: Path) -> None:
    names = os.environ | {"FUNCTION_NAME": "", "ROLE_NAME": "", "HOME": str(folder)}
    for command in "\n\n".join(command for command, _ in CLEAN_UP).split("\n\n"):
        done = subprocess.run(
            ["bash", "-c", f'aws() {{ echo "$@"; }}\n{command}'],
            env=names,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.stdout == ""
        assert "parameter null or not set" in done.stderr or command.startswith("rm -f")


SURROUNDINGS = ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "HTTPS_PROXY", "NO_PROXY")


@pytest.mark.aws
def test_every_aws_command_prints_in_an_account_what_is_shown(folder: Path) -> None:
    """`--aws` のときだけ動く。待ち時間は実時間。ローカル AWS 専用の演習は除き、必ず片付ける。"""
    session = boto3.Session()
    keys = session.get_credentials().get_frozen_credentials()
    found = {
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_SESSION_TOKEN": keys.token,
        "AWS_DEFAULT_REGION": session.region_name,
        "AWS_REGION": session.region_name,
        **{name: os.environ.get(name) for name in SURROUNDINGS},
    }
    environment = {name: value for name, value in found.items() if value}
    shell = Shell(folder, environment, f"-{uuid.uuid4().hex[:8]}")
    try:
        for block in [*LESSON, *(b for b in WITH_CLI if b not in KILL), *LEFT_WAITING]:
            shell.check(block)
    finally:
        shell.type(CLEAN_UP[0][0])
    shell.check(CLEAN_UP[1])


def test_account_without_credentials_gets_one_sentence(folder: Path) -> None:
    here = {"HOME": str(folder), "AWS_EC2_METADATA_DISABLED": "true", "AWS_REGION": "us-west-2"}
    command = [sys.executable, "-m", "pytest", "tests/test_readme.py", "--aws"]
    env = os.environ | here
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "README の「準備」のブロック" in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr + done.stdout


def everything(account: Account) -> list[str]:
    return [
        *(function["FunctionName"] for function in account.functions.list_functions()["Functions"]),
        *(role["RoleName"] for role in account.iam.list_roles()["Roles"]),
        *(group["logGroupName"] for group in account.logs.describe_log_groups()["logGroups"]),
    ]


@pytest.mark.sweep
def test_account_is_tried_out_and_left_clean_even_after_a_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """最後の 1 つのほかは、書いてあるとおりの出力になる。"""
    blocks = [*LEFT_WAITING, ("echo 違う出力", "書いてある出力")]
    monkeypatch.setattr(sys.modules[__name__], "LEFT_WAITING", blocks)
    with LocalAws() as aws:
        account = Account(aws.endpoint, aws.access_key, "us-west-2")
        path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        for name, value in (account.environment | path).items():
            monkeypatch.setenv(name, value)
        before = everything(account)  # ほかのテストが残したもの
        with pytest.raises(AssertionError, match="違う出力"):
            test_every_aws_command_prints_in_an_account_what_is_shown(folder)
        assert everything(account) == before
