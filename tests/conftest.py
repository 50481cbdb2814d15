"""すべてのテストに効く設定と、フィクスチャー。部品は support/ にある。"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aws_durable_execution_sdk_python_testing.runner import DurableFunctionTestResult

import app
import deploy
from tests.local_run.runner import LocalRunner
from tests.support.flows import RunOrder
from tests.support.outside import OutsideServices
from tests.support.terminal import Terminal

LONG = ("test_every_aws_command", "test_killed_and_run_again", "test_app_prints")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--aws", action="store_true", help="README のコマンドを実際の AWS で実行する")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """README の「準備」の後のターミナルでも、プロキシの設定があっても、同じように動かす。"""
    if config.getoption("--aws"):
        config.option.numprocesses = 0
        return
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            del os.environ[name]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """長いテストを、それぞれのワーカーが最初に受け取る所に分けて置く。ほかはその間に済む。"""
    in_account = config.getoption("--aws")
    items[:] = [item for item in items if bool(item.get_closest_marker("aws")) == in_account]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for number, item in enumerate([item for item in items if item.name.startswith(LONG)]):
        items.remove(item)
        items.insert(number % workers * (len(items) // workers), item)


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OutsideServices:
    """app の外部サービスを、べき等性キーで 2 度目を見分けるスタブに差し替える。"""
    services = OutsideServices(tmp_path)
    services.replace(monkeypatch.setattr)
    return services


@pytest.fixture
def runner(services: OutsideServices) -> Iterator[LocalRunner]:
    """待ち時間を飛ばす公式ローカルランナー。"""
    with LocalRunner(app.handler, poll_interval=0.01) as runner:
        yield runner


@pytest.fixture
def run_order(runner: LocalRunner) -> RunOrder:
    """注文を完了まで処理する。answer があれば、承認を求められたときに送る。"""

    def run(order: Any, answer: bytes | None = None) -> DurableFunctionTestResult:
        arn = runner.run_async(input=json.dumps(order), execution_timeout=60)
        if answer is not None:
            runner.send_callback_success(runner.wait_for_callback(arn), answer)
        return runner.wait_for_result(arn, timeout=60)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """clone したばかりのフォルダー。パスに空白がある。"""
    clone = tmp_path / "clone of the demo"
    # __pycache__ は、プロセスを始めるたびにコンパイルし直さないように残す
    ignored = shutil.ignore_patterns(".*", "*.pyc.*", "response.json")
    shutil.copytree(deploy.ROOT, clone, ignore=ignored)
    (clone / ".venv").symlink_to(sys.prefix)
    return clone


@pytest.fixture
def terminal(folder: Path, services: OutsideServices) -> Terminal:
    return Terminal(folder, services)
