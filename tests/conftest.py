"""テストの共通部品: 冪等キーを守らせる外の世界の代役と、注文を実行する道具。"""

import json
import logging
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from aws_durable_execution_sdk_python_testing.runner import DurableFunctionTestResult
from botocore.exceptions import BotoCoreError, ClientError

import app
import deploy
from tests.support.runner import LocalRunner

ROOT = Path(app.__file__).parent
SDK_LOGGERS = ("aws_durable_execution_sdk_python", "aws_durable_execution_sdk_python_testing")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--aws", action="store_true", help="README のコマンドを本物の AWS で実行する")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """--aws なら、ほかに何もしないうちに、AWS を使えるかを 1 文で確かめる。"""
    if config.getoption("--aws"):
        config.option.numprocesses = 0
        try:
            boto3.client("lambda").list_functions(MaxItems=1)
        except (BotoCoreError, ClientError) as error:
            raise pytest.UsageError(deploy.advice_for(error)) from error


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """実時間で待つ、いちばん長いテストを先に始め、ほかのテストをその間に済ませる。"""
    in_account = config.getoption("--aws")
    items[:] = [item for item in items if bool(item.get_closest_marker("aws")) == in_account]
    items.sort(key=lambda item: not item.name.startswith("test_every_aws_command"))


class OutsideWorld:
    """決済代行会社とお客様の代役。本物と同じく、冪等キーで二度目を見分け、答えを失う。

    scripts には、頼まれたことの名前ごとに、1 回目からの運命を 1 字ずつ書く。その先は答える。
    A: 起きて、答える。L: 起きるが、答えが届かない。N: 頼みが届かず、起きない。
    """

    def __init__(self) -> None:
        self.payment_calls: list[tuple[str, int]] = []
        self.charges: dict[str, int] = {}
        self.answers: dict[str, str] = {}
        self.cancelled: list[str] = []
        self.deliveries: list[str] = []
        self.inbox: dict[str, dict[str, Any]] = {}
        self.scripts: dict[str, str] = {}
        self._asked: Counter[str] = Counter()
        self._charge_card = app.charge_card

    def charge_card(
        self, idempotency_key: str, amount: int, simulate: dict[str, Any], attempt: int
    ) -> str:
        self.payment_calls.append((idempotency_key, amount))
        with self._fate(idempotency_key, attempt):
            if idempotency_key in self.cancelled:
                raise RuntimeError("取り消したキーの請求を断りました")
            if idempotency_key not in self.charges:
                payment_id = self._charge_card(idempotency_key, amount, simulate, attempt)
                self.charges[idempotency_key] = amount
                self.answers[idempotency_key] = payment_id
            elif self.charges[idempotency_key] != amount:
                raise RuntimeError("同じ冪等キーで金額の違う請求を断りました")
        return self.answers[idempotency_key]

    def cancel_charge(self, idempotency_key: str) -> None:
        with self._fate(f"{idempotency_key}-cancellation"):
            self.cancelled.append(idempotency_key)
            self.charges.pop(idempotency_key, None)

    def send_notification(self, idempotency_key: str, result: dict[str, Any]) -> None:
        with self._fate(f"{result['order_id']}-notice"):
            self.deliveries.append(idempotency_key)
            self.inbox.setdefault(idempotency_key, result)

    @contextmanager
    def _fate(self, name: str, attempt: int = 0) -> Iterator[None]:
        """頼まれたことを scripts に書かれた運命にあわせる。"""
        self._asked[name] += 1
        turn = (attempt or self._asked[name]) - 1
        fate = self.scripts.get(name, "")[turn : turn + 1]
        if fate == "N":
            raise app.NoAnswerError(f"{name} の頼みが届かない")
        yield
        if fate == "L":
            raise app.NoAnswerError(f"{name} の答えが届かない")


@pytest.fixture(autouse=True)
def quiet_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """失敗した試行のたびに SDK が出すトレースバックを黙らせる。"""
    for name in SDK_LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.CRITICAL + 1)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> OutsideWorld:
    """app の外の世界を、数を数える代役に差し替える。"""
    world = OutsideWorld()
    monkeypatch.setattr(app, "charge_card", world.charge_card)
    monkeypatch.setattr(app, "cancel_charge", world.cancel_charge)
    monkeypatch.setattr(app, "send_notification", world.send_notification)
    return world


@pytest.fixture
def runner(world: OutsideWorld) -> Iterator[LocalRunner]:
    """待ち時間を飛ばす公式のローカルランナー。"""
    with LocalRunner(app.handler, poll_interval=0.01) as runner:
        yield runner


RunOrder = Callable[..., DurableFunctionTestResult]


@pytest.fixture
def run_order(runner: LocalRunner) -> RunOrder:
    """注文を終わりまで実行する。answer があれば、承認を求められたときに送る。"""

    def run(order: Any, answer: bytes | None = None) -> DurableFunctionTestResult:
        arn = runner.run_async(input=json.dumps(order), execution_timeout=30)
        if answer is not None:
            runner.send_callback_success(runner.wait_for_callback(arn), answer)
        return runner.wait_for_result(arn, timeout=30)

    return run


def order_of(price: int = 1000, quantity: int = 2, **extra: Any) -> dict[str, Any]:
    """在庫のある商品 1 行の注文を作る。"""
    item = {"product_id": "prod-001", "price": price, "quantity": quantity}
    return {"order_id": "order-123", "items": [item], **extra}


def outcome(result: DurableFunctionTestResult) -> dict[str, Any]:
    """成功した実行の結果を読む。"""
    assert result.error is None
    assert result.result is not None
    value: dict[str, Any] = json.loads(result.result)
    return value


def step_names(result: DurableFunctionTestResult) -> list[str | None]:
    """記録された操作の名前を、始まった順に並べる。"""
    return [operation.name for operation in result.operations]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """clone したばかりのフォルダー。"""
    names = subprocess.check_output(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True
    ).split()
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for arguments in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "clone"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    return tmp_path
