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
import deploy
from tests.benchmark import prices
from tests.benchmark.per_order import measure
from tests.local_run import README_ORDER
from tests.support.account import Account, eventually
from tests.support.flows import FLOWS
from tests.support.terminal import FAST, read_to
from tests.timeline import width

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
EXERCISES = (ROOT / "tests" / "EXERCISES.md").read_text("utf-8")
SETUP = ["python3 -m venv .venv", ".venv/bin/pip install -q -r {}requirements.txt"]
PIPE = subprocess.PIPE
SCREEN: Any = {"stdin": PIPE, "stdout": PIPE, "stderr": subprocess.STDOUT, "text": True}
ERRORS = re.compile(r"(?m)An error occurred|^usage: aws|Traceback|command not found|No such file")


def blocks(text: str) -> list[tuple[str, str]]:
    """コードブロックの言語と中身。text は、すぐ上のコマンドの出力。"""
    return re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text)


def section(text: str, title: str) -> str:
    """title の見出しから、同じか上の深さの次の見出しまで。# だけの行は、コマンドの注釈でもある。"""
    depth = len(title.split()[0])
    return re.split(rf"^#{{2,{depth}}} ", text.partition(f"\n{title}")[2], flags=re.MULTILINE)[0]


def commands(text: str) -> list[tuple[str, str | None]]:
    """コマンドと、示されていればその出力。"""
    found = [*blocks(text), ("", "")]
    return [
        (command, output if following == "text" else None)
        for (language, command), (following, output) in pairwise(found)
        if language == "bash"
    ]


FIRST = commands(section(README, "## まず 1 件"))[0][0]
LOCAL_AWS, PREPARE = commands(section(README, "### 準備"))
CREATE = [*commands(section(README, "### 1.")), *commands(section(README, "### 2."))]
[START] = commands(section(README, "### 3."))
CLEAN_UP = commands(section(README, "### 5."))
[TESTS] = commands(section(README, "## テスト"))
LESSON = [*CREATE, START, *commands(section(README, "### 4."))]
LEFT_WAITING = [  # 承認を待つ注文を残す。片付けは、これを止めなければならない
    (f"{command.partition('sleep 5')[0]}sleep 5".replace("order-200", "order-999"), None)
    for command, _ in LESSON
    if "order-200" in command
]
WITH_CLI = [block for block in commands(EXERCISES) if "aws " in block[0]]
[KILL] = [block for block in WITH_CLI if "pkill" in block[0]]
ANSWER = section(EXERCISES, "## 演習 4 の解答例")


def without_setup(command: str, folder: str = "") -> list[str]:
    """venv を作成する前半を確認し、後半をこの Python で実行する形にして返す。"""
    *setup, program = command.strip().split(" && ")
    assert setup == [step.format(folder) for step in SETUP]
    return [sys.executable, *program.split()[1:]]


def without_times(text: str) -> str:
    """実行のたびに変わる時刻、ジッター、図の桁を伏せる。図の行には、名前と | * x だけを残す。"""
    waits, scale = r"(\d 秒後|すぐ)に再|あと \d 秒待", r"^ +0 . +\d+\.\d [秒分]"
    times = rf"^ *\d+\.\d 秒|{waits}|\d+\.\d 秒[ので]|{scale}|\d+\.\d 秒$"
    text = re.sub(times, "N 秒", text, flags=re.MULTILINE)
    return re.sub(
        r"(?m)^( *\S+)  +([-#|*x ]+)(動.*)?$",
        lambda row: " ".join([row[1], *re.findall(r"[|*x]", row[2]), row[3] or ""]),
        text,
    )


def assert_shown(printed: str, expected: str) -> None:
    """… は実行のたびに変わる部分を、… だけの行は省略した行を表す。"""
    printed, expected = (f"{without_times(text).strip()}\n" for text in (printed, expected))
    parts = re.split(r"(?m)(^…\n|…)", expected)
    pattern = "".join({"…": ".*?", "…\n": "(?s:.*)"}.get(part, re.escape(part)) for part in parts)
    if not re.fullmatch(pattern, printed):
        assert printed == expected  # 違いを見せる


def edit(folder: Path, diff: str) -> None:
    """app.py に diff を当てる。… は変更箇所の区切り。"""
    program = folder / "app.py"
    for change in diff.split("…\n"):
        old, new = (
            "".join(f"{line[1:]}\n" for line in change.splitlines() if line[:1] in (" ", sign, ""))
            for sign in "-+"
        )
        assert program.read_text("utf-8").count(old) == 1, old
        program.write_text(program.read_text("utf-8").replace(old, new), "utf-8")


# ---- 手元で ----------------------------------------------------------------------


def run(folder: Path, command: str, shown: str, again: bool) -> str:
    """`python app.py` の注文を 5 倍速で処理する。shown の ^C の所で Ctrl-C を押す。"""
    program = command.rpartition(" && ")[2].replace("python app.py", f"python {' '.join(FAST)}")
    stopped = shown.partition("\n^C")[0].splitlines()[-1][-12:] if "^C" in shown else ""
    process: subprocess.Popen[str] = subprocess.Popen(
        ["bash", "-c", f"exec {program}" if stopped else program],
        cwd=folder,
        # 再開するときは、遅いマシンでも、待機が終わる前に始まるように
        env=os.environ | {"FREEZE": stopped, "SPEED": "2" if again else "5"},
        **SCREEN,
    )
    printed: str = ""
    if stopped:
        os.waitpid(process.pid, os.WUNTRACED)
        printed = read_to(f"{stopped}\n", process) + "^C"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
    printed += process.stdout.read()  # type: ignore[union-attr]
    assert process.wait(timeout=60) in ((130,) if stopped else (0, 1))
    return printed


LOCAL = {
    "README": section(README, "## まず 1 件"),
    **{f"exercise {n}": section(EXERCISES, f"## {n}.") for n in (1, 2, 3, 8, 9)},
}


@pytest.mark.parametrize("part", LOCAL)
def test_app_prints_what_is_shown_within_80_columns(folder: Path, part: str) -> None:
    """出力がコマンドの下に続けて示されていれば、1 回の実行の抜粋か、もう一度実行したもの。"""
    command = printed = last = ""
    for language, text in blocks(LOCAL[part]):
        if language == "diff":
            edit(folder, text)
            printed = ""
        elif language == "bash":
            command, printed, last = (text if "app.py" in text else ""), "", ""
        elif language == "text" and command:
            if not printed or "^C" in last:
                again = "^C" in last or text.startswith("前回")
                printed, last = run(folder, command, text, again), text
            assert_shown(printed, text)
            lines = printed.splitlines() if part == "README" else []
            assert [line for line in lines if width(line) > 80] == []


def test_all_outcomes_are_listed_and_can_be_pasted() -> None:
    table = re.findall(r"^\| ([A-Z_]+) \|[^|]*\|$", README, re.MULTILINE)
    shown = re.findall(r'^  "status": "(\w+)",$', section(EXERCISES, "## 8."), re.MULTILINE)
    assert set(table) == set(shown) == {flow.status for flow in FLOWS}
    stock = re.findall(r"(prod-\d+) が (\d+) 個", README)
    assert {product: int(number) for product, number in stock} == app.STOCK


def test_lines_of_the_handler_stand_in_app_as_they_stand_in_readme() -> None:
    [excerpt] = [text for language, text in blocks(README) if language == "python"]
    handler, place = (ROOT / "app.py").read_text("utf-8").partition("def handler")[2], 0
    for part in excerpt.split("…\n"):
        place = handler.index(part, place)
    assert 10 <= len(excerpt.splitlines()) <= 20


def test_lessons_stay_short_and_their_minutes_add_up() -> None:
    first, step_1 = README.index(FIRST), README.index("\n### 1.")
    assert (README[:first].count("\n") < 22, README[:step_1].count("\n") < 180) == (True, True)
    assert max(README.count("\n"), EXERCISES.count("\n")) <= 350
    [*parts, total] = map(int, re.findall(r"(\d+) 分 \|", README))
    assert sum(parts) == total
    starred = map(int, re.findall(r"★\n約 (\d+) 分", EXERCISES))
    assert f"| {sum(starred)} 分 |" in README


def test_price_in_the_comparison_is_the_one_that_the_benchmark_prints() -> None:
    ours, theirs = re.findall(r"100 万件 \| (\d+) 米ドル \| (\d+) 米ドル", README)[0]
    bill = prices.bill(measure(app.handler, README_ORDER), 256, 1)
    assert int(ours) == round(bill.total)
    assert int(theirs) == prices.step_functions("README の注文")


def test_second_command_is_what_ci_runs_and_both_install_what_they_need() -> None:
    assert without_setup(FIRST)[1:] == ["app.py"]
    assert without_setup(TESTS[0], "tests/")[1:] == ["-m", "pytest", "tests"]
    assert TESTS[0] in (ROOT / ".ci" / "run").read_text("utf-8")


# ---- 壊してみる、ステップを 1 つ書く --------------------------------------------------


def marks(folder: Path, page: str) -> str:
    """page のただ 1 つの pytest のコマンドの出力。"""
    [command] = [text for _, text in blocks(page) if "pytest" in text]
    done = subprocess.run(shlex.split(command), cwd=folder, capture_output=True, text=True)
    assert done.returncode == ("failed" in done.stdout), done.stdout
    return done.stdout


BREAK = section(EXERCISES, "## 7.")
BROKEN = re.findall(r"(?ms)^```diff\n(.*?)^```\n表示: 「(.*?)」", BREAK)


@pytest.mark.parametrize(("diff", "sentence"), BROKEN, ids=range(len(BROKEN)))
def test_each_edit_breaks_a_promise_to_the_customer(folder: Path, diff: str, sentence: str) -> None:
    edit(folder, diff)
    shown = marks(folder, BREAK)
    assert sentence in shown.splitlines()
    assert "1 failed, 4 passed" in shown


OWN_STEP = section(EXERCISES, "## 4.")
STEP = "context.step(arrange_shipment(order, shipment_key), config=STEP)"
UNDO = "        context.step(cancel_payment(payment_key), config=STEP)\n        return"
WRONG = [
    (STEP, STEP, "4 passed"),
    (STEP, 'request_shipment(shipment_key, order["order_id"])', "注文の完了が通知されません。"),
    ("request_shipment(shipment_key", 'request_shipment(f"{ctx.attempt}"', "2 回発送されました。"),
    (
        f'{UNDO} context.step(notify(order, "SHIP',
        '        return context.step(notify(order, "SHIP',
        "円が請求されたまま",
    ),
]


@pytest.mark.parametrize(("old", "new", "words"), WRONG, ids=["right", "outside", "key", "saga"])
def test_own_step_is_marked(folder: Path, old: str, new: str, words: str) -> None:
    solve(folder)
    program = folder / "app.py"
    answer = program.read_text("utf-8")
    assert answer.count(old) == 1
    program.write_text(answer.replace(old, new), "utf-8")
    assert words in marks(folder, OWN_STEP)


def solve(folder: Path) -> None:
    [stub] = [text for language, text in blocks(OWN_STEP) if language == "python"]
    for _, diff in blocks(ANSWER):
        edit(folder, diff)
    with (folder / "app.py").open("a", encoding="utf-8") as program:
        program.write(f"\n\n{stub}")


# ---- AWS で ----------------------------------------------------------------------


class Shell:
    """参加者のターミナル。コマンドの出力を、標準エラー出力も含めて画面に出る順に返す。"""

    ENDED, SLEEP = "block ended\n", "sleeping "

    def __init__(
        self, folder: Path, environment: dict[str, str], suffix: str = "", orders: Any = None
    ) -> None:
        """orders は Lambda のクライアント。あれば、sleep の代わりに、注文が落ち着くまで待つ。"""
        self.region, self.suffix, self.orders = environment["AWS_DEFAULT_REGION"], suffix, orders
        self.folder, self.slept = folder, 0
        self.seen: dict[str, int] = {}
        self.needed: dict[str, float] = {}
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        here = {"HOME": str(folder), "AWS_CONFIG_FILE": str(folder / "aws-config")}
        self.shell = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env={**kept, **environment, **here, "AWS_EC2_METADATA_DISABLED": "true"},
            bufsize=1,
            **SCREEN,
        )
        prepared = self.type(PREPARE[0].replace("SUFFIX=\n", f"SUFFIX={suffix}\n"))
        assert re.match(r'\{\n +"UserId"', prepared), prepared
        if suffix:  # venv の aws ではなく、もとの PATH の aws を使う
            self.type(f'aws() {{ "{shutil.which("aws")}" "$@"; }}')
        if orders:
            self.type(f"sleep() {{ printf '{self.SLEEP}%s\\n' \"$1\"; read -r; }}")

    def type(self, command: str) -> str:
        assert self.shell.stdin
        assert self.shell.stdout
        if "date +%s" in command:  # 演習がログを探し始める時刻は、秒きざみ
            time.sleep(1 - time.time() % 1)
        self.shell.stdin.write(f"{{\n{command}\nprintf '%s' '{self.ENDED}'\n}}\n")
        printed = ""
        for line in iter(self.shell.stdout.readline, self.ENDED):
            if line.startswith(self.SLEEP):
                self.settle(int(line.removeprefix(self.SLEEP)))
                self.shell.stdin.write("\n")
            else:
                assert line, printed
                printed += line
        return printed

    def settle(self, seconds: int) -> None:
        """注文が落ち着くまで待ち、その間に必要だった待機と再試行の秒数を数える。"""
        self.slept += seconds
        for function in self.orders.list_functions()["Functions"]:
            name = {"FunctionName": function["FunctionName"]}
            listed = self.orders.list_durable_executions_by_function(**name)
            for arn in (order["DurableExecutionArn"] for order in listed["DurableExecutions"]):
                events = eventually(partial(settled, self.orders, arn))
                new, self.seen[arn] = events[self.seen.get(arn, 0) :], len(events)
                self.needed[arn] = self.needed.get(arn, 2) + sum(map(seconds_of, new))

    def check(self, command: str, shown: str | None) -> None:
        """sleep は、このコマンドが見る注文を、2 秒の余裕を持って待つ。"""
        if "NEW=" in command:  # 演習 4: 自分のステップを書いてからデプロイする
            solve(self.folder)
        self.slept, self.needed = 0, {}
        printed, seen = self.masked(self.type(command)), self.type('echo "$ARN $NEW"').split()
        for arn, seconds in self.needed.items():
            assert seconds <= self.slept or (arn not in seen and arn.split("/")[2] not in command)
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


def seconds_of(event: Any) -> float:
    """イベントが始めた待機か、再試行までの秒数。ジッターは、いちばん長い場合とする。"""
    retry = event.get("StepFailedDetails", {}).get("RetryDetails", {})
    waiting = 5 if "NextAttemptDelaySeconds" in retry else 0
    return float(event.get("WaitStartedDetails", {}).get("Duration", waiting))


def settled(client: Any, arn: str) -> Any:
    """終わったか、承認者の回答を待っているか、長い支払いの途中の注文の履歴。ほかは None。"""
    history = partial(client.get_durable_execution_history, DurableExecutionArn=arn)
    running = client.get_durable_execution(DurableExecutionArn=arn)["Status"] == "RUNNING"
    events = history()["Events"]
    kinds, last = [event["EventType"] for event in events], events[-1]
    if not running:
        return events
    if kinds.count("CallbackStarted") > kinds.count("CallbackSucceeded"):
        return events if kinds[-1] == "InvocationCompleted" else None
    if (kinds[-1], last.get("Name")) == ("StepStarted", "pay"):
        time.sleep(1)  # 短い支払いなら、その間に終わる
        return events if history()["Events"] == events else None
    return None


@pytest.fixture
def local_aws(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """README の 1 行で起動したローカル AWS。時計は 5 倍速、ポートは空いているもの。"""
    arguments = [*without_setup(LOCAL_AWS[0], "tests/"), "--port", "0", "--speed", "5"]
    with subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("part", ["README", "exercises"])
def test_every_aws_command_prints_what_is_shown(
    folder: Path, local_aws: "subprocess.Popen[str]", part: str
) -> None:
    shown = str(LOCAL_AWS[1])
    printed = read_to(shown.splitlines()[-1], local_aws)
    assert_shown(printed, shown)
    exports = dict(re.findall(r"(\w+)=(\S*)", re.sub(r",?\$\S*no_proxy\S*", "", printed)))
    account = Account(exports["AWS_ENDPOINT_URL"], exports["AWS_ACCESS_KEY_ID"])
    shell = Shell(folder, exports, orders=account.functions)
    if part == "README":
        for command, output in [*LESSON, *LEFT_WAITING, *CLEAN_UP]:
            shell.check(command, output)
        again = shell.type(CLEAN_UP[0][0])
        assert set(re.findall(r"\((\w+)\)", again)) == {"NoSuchEntity", "ResourceNotFoundException"}
    else:
        for command, output in [*CREATE, *WITH_CLI]:
            shell.check(command, output)
    local_aws.send_signal(signal.SIGINT)
    events, _ = local_aws.communicate(timeout=60)
    assert local_aws.returncode == 0
    ends = ["呼び出し終了（待機）", "呼び出し終了（異常終了）", "呼び出し終了（完了）"]
    killed = re.findall(r"order-300  (\S+?)(?:  |\n)", events)
    assert killed == ([] if part == "README" else [*ends, "実行終了（SUCCEEDED）"])


def test_command_of_deploy_is_the_one_of_step_3_and_its_order_is_everywhere() -> None:
    names = {"FUNCTION_NAME": "order-processing-durable-sato", "SUFFIX": "-sato"}
    words = f'aws() {{ printf "%s\\n" aws "$@"; }}\n{START[0]}'
    shown = subprocess.check_output(["bash", "-c", words], env=os.environ | names, text=True)
    printed = deploy.NEXT.format(name=names["FUNCTION_NAME"], version=1, suffix="-sato")
    command = printed.partition("\n\n")[2].replace("\\\n", "")
    assert shlex.split(command) == shown.splitlines()
    orders = re.findall(r'\{"order_id": "order-123", "items".*?\]\}', README + printed)
    assert [json.loads(order) for order in orders] == [README_ORDER] * 2


@pytest.mark.parametrize("venv_aws", ["broken", "absent"])
def test_prepare_finds_the_right_aws_quietly(tmp_path: Path, venv_aws: str) -> None:
    """パスの空白で .venv の aws を起動できなければ awscli を、なければ PATH の aws を使う。"""
    scripts = {
        ".venv/bin/activate": 'PATH="$PWD/.venv/bin:$PATH"\nsetopt() { echo "setopt $1"; }',
        ".venv/bin/python3": '#!/bin/sh\necho "python3 $@"',
        "other/aws": '#!/bin/sh\necho "v2 $@"',
    }
    if venv_aws == "broken":
        scripts[".venv/bin/aws"] = "#!/no/such/python\n"
    for name, text in scripts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}/other:/usr/bin:/bin", "ZSH_VERSION": "5"}
    command = ["bash", "-c", PREPARE[0].replace("SUFFIX=\n", "SUFFIX=sato\n")]
    done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True)
    cli = "python3 -m awscli" if venv_aws == "broken" else "v2"
    asked = ("configure set cli_binary_format raw-in-base64-out", "sts get-caller-identity")
    hyphen, *others = done.stdout.splitlines()
    assert "- で始めて" in hyphen
    assert others == ["setopt interactivecomments", *(f"{cli} {words}" for words in asked)]
    assert done.stderr == ""


SURROUNDINGS = ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "HTTPS_PROXY", "NO_PROXY")


@pytest.mark.aws
def test_every_aws_command_prints_in_an_account_what_is_shown(folder: Path) -> None:
    """`--aws` のときだけ動く。待ち時間は実時間。ローカル AWS 専用の演習は除き、必ず片付ける。"""
    session = boto3.Session()
    keys = session.get_credentials().get_frozen_credentials()
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    found = {name: os.environ.get(name) for name in SURROUNDINGS}
    found |= dict(zip(names, (keys.access_key, keys.secret_key, keys.token), strict=True))
    found |= dict.fromkeys(("AWS_DEFAULT_REGION", "AWS_REGION"), session.region_name)
    environment = {name: value for name, value in found.items() if value}
    shell = Shell(folder, environment, f"-{uuid.uuid4().hex[:8]}")
    try:
        for command, shown in [*LESSON, *(b for b in WITH_CLI if b != KILL), *LEFT_WAITING]:
            shell.check(command, shown)
    finally:
        shell.type(CLEAN_UP[0][0])
    shell.check(*CLEAN_UP[1])
