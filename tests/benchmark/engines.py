"""一つのプロセスで注文を実行する速さ: 公式ランナーと、比べる相手の DBOS。"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.local_run import README_ORDER

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements-dbos.txt")
VENV = ROOT / ".venv-dbos"
DBOS_SCRIPT = "tests/benchmark/dbos_orders.py"
ONE_BY_ONE, AT_ONCE = 10, 100

# 最初の注文までに打つコマンド。DBOS は quickstart、PostgreSQL は Debian の流儀。
OUR_COMMANDS = ["python3 -m venv .venv", "pip install -r requirements.txt", "python app.py"]
DBOS_COMMANDS = ["python3 -m venv .venv", "pip install dbos", "python main.py"]
POSTGRES_COMMANDS = [
    "sudo apt-get install postgresql",
    "sudo -u postgres createuser --createdb $USER",
    "export DBOS_SYSTEM_DATABASE_URL=postgresql:///orders",
]


class UnavailableError(Exception):
    """比べる相手を動かせない。メッセージは理由。"""


@dataclass(frozen=True)
class Speed:
    """プロセスを始めてから 1 件目が終わるまでの秒数と、1 秒あたりの件数。"""

    first: float
    one_by_one: float
    at_once: float
    idle_invocation: float = 0.0


def run(command: list[str], folder: Path = ROOT, **environment: str) -> Speed:
    """速さを JSON の行で表示する子プロセスを動かす。途中で終われば UnavailableError。"""
    began = time.perf_counter()
    first, last = 0.0, ""
    values: dict[str, Any] = {}
    with subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        assert child.stdout
        for line in child.stdout:
            if line.startswith("{"):
                values |= json.loads(line)
                first = first or time.perf_counter() - began
            last = line.strip() or last
    if child.returncode or values.get("statuses") != ["COMPLETED"]:
        raise UnavailableError(last or "途中で終わりました")
    return Speed(first, values["one_by_one"], values["at_once"], values.get("idle_invocation", 0.0))


def official_runner() -> Speed:
    module = f"{__package__}.first_orders"
    return run([sys.executable, "-m", module, str(ONE_BY_ONE), str(AT_ONCE)])


def dbos() -> tuple[Speed, str, list[str]]:
    """DBOS の速さと、使ったデータベースと、打つコマンド。だめなら UnavailableError。"""
    python = str(install_dbos())
    counts = (str(ONE_BY_ONE), str(AT_ONCE))
    command = [python, str(ROOT / DBOS_SCRIPT), json.dumps(README_ORDER), *counts]
    with tempfile.TemporaryDirectory() as folder:
        try:
            return run(command, Path(folder)), f"SQLite {sqlite3.sqlite_version}", DBOS_COMMANDS
        except UnavailableError:
            # Python 3.12 からの DBOS は SQLite 3.42 の関数を使い、Debian 12 では起動できない。
            with postgres() as (url, version):
                speed = run(command, Path(folder), DBOS_SYSTEM_DATABASE_URL=url)
                return speed, version, DBOS_COMMANDS + POSTGRES_COMMANDS


def install_dbos() -> Path:
    """DBOS だけの venv を、初めて使うときに作る。"""
    python, marker = VENV / "bin" / "python", VENV / "installed.txt"
    wanted = f"{sys.version}\n{REQUIREMENTS.read_text('utf-8')}"
    if not marker.exists() or marker.read_text("utf-8") != wanted:
        shutil.rmtree(VENV, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "venv", str(VENV)],
            [str(python), "-m", "pip", "install", "-q", "-r", str(REQUIREMENTS)],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                last = " ".join(done.stderr.strip().splitlines()[-1:])
                raise UnavailableError(f"DBOS を入れられません: {last}")
        marker.write_text(wanted, "utf-8")
    return python


@contextmanager
def postgres() -> Iterator[tuple[str, str]]:
    """自分だけの PostgreSQL を一時フォルダーに作り、終わりに止める。"""
    found = shutil.which("pg_ctl") or next(
        map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), reverse=True)), None
    )
    if found is None:
        raise UnavailableError(
            f"SQLite {sqlite3.sqlite_version} では動かず、PostgreSQL もありません"
            " (apt-get install postgresql で入ります)"
        )
    # PostgreSQL は root では動かない。
    root = os.geteuid() == 0
    prefix = ["runuser", "-u", "postgres", "--"] if root else []
    with tempfile.TemporaryDirectory() as folder:
        if root:
            shutil.chown(folder, "postgres")

        def control(*arguments: str) -> None:
            command = [*prefix, found, "-D", f"{folder}/data", "-w", "-s", *arguments]
            subprocess.run(
                command, cwd="/", check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

        # ソケットは一時フォルダーの中だけに置き、TCP では受けない。
        options = f"-c listen_addresses= -c unix_socket_directories={folder}"
        try:
            control("init", "-o", "-A trust -U postgres")
            control("-l", f"{folder}/log", "-o", options, "start")
        except (OSError, subprocess.CalledProcessError) as error:
            raise UnavailableError(f"PostgreSQL が起動しません: {error}") from error
        try:
            url = f"postgresql://postgres@/orders?host={folder}"
            version = subprocess.check_output([found, "--version"], text=True).split()[2]
            yield url, f"PostgreSQL {version}"
        finally:
            control("-m", "immediate", "stop")
