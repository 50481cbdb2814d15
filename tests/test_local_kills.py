"""`python app.py` を本物の SIGKILL で殺しては続けても、請求も知らせも結果も変わらないこと。

外の世界は outside.py の、ファイルに書く帳簿。標本のほかは `-m sweep` で動く。
"""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import order_of

WAIT, BETWEEN, QUESTION, PAYING = "short_wait: あと", "再試行します", "だれが決めますか", "paying"
BEFORE = {kind: f"{kind}-before-kills" for kind in ("charge", "cancellation", "notice")}
AFTER = {kind: f"{kind}-after-kills" for kind in ("charge", "cancellation", "notice")}
ONCE, LASTING = {"payment_timeouts": 1}, {"payment_timeouts": 0, "payment_seconds": 2}
LOST = {"payment_timeouts": 0, "lost_answers": 4}
APPROVE, REJECT = b"sato\nyes\n", b"sato\nno\n"


@dataclass(frozen=True)
class Flow:
    """結果、注文、端末で打つ答えと、それぞれの注文を殺していく場所。"""

    status: str
    order: dict[str, Any]
    answer: bytes
    deaths: list[list[str]]


FLOWS = [
    Flow("COMPLETED", order_of(simulate=ONCE), b"", [
        [BETWEEN], [WAIT], [BEFORE["charge"]], [AFTER["charge"]], [BEFORE["notice"]],
        [AFTER["notice"]], [WAIT, BETWEEN], [WAIT, AFTER["charge"], AFTER["notice"]],
    ]),
    Flow("COMPLETED", order_of(simulate=LASTING), b"", [
        [PAYING, PAYING, AFTER["notice"]], [PAYING],
    ]),
    Flow("COMPLETED", order_of(50_000, simulate=ONCE), APPROVE, [
        [QUESTION, AFTER["charge"]], [QUESTION], [BETWEEN], [AFTER["notice"]],
        [QUESTION, BETWEEN, BEFORE["notice"]],
    ]),
    Flow("OUT_OF_STOCK", order_of(quantity=5000), b"", [
        [AFTER["notice"], BEFORE["notice"]], [BEFORE["notice"]], [AFTER["notice"]],
    ]),
    Flow("REJECTED", order_of(50_000), REJECT, [
        [QUESTION, QUESTION, AFTER["notice"]], [QUESTION], [BEFORE["notice"]],
    ]),
    Flow("APPROVAL_TIMED_OUT", order_of(50_000), b"", [
        [QUESTION, BEFORE["notice"]], [QUESTION], [AFTER["notice"]],
    ]),
    Flow("PAYMENT_DECLINED", order_of(simulate={"card_declined": True}), b"", [
        [WAIT, AFTER["notice"]], [BEFORE["notice"]], [AFTER["notice"]],
    ]),
    Flow("PAYMENT_FAILED", order_of(simulate=LOST), b"", [
        [BETWEEN, AFTER["cancellation"], AFTER["notice"]], [BETWEEN], [AFTER["charge"]],
        [BEFORE["cancellation"]], [AFTER["cancellation"]], [BEFORE["notice"]], [AFTER["notice"]],
    ]),
]  # fmt: skip
DEATHS = [
    pytest.param(
        flow, deaths, marks=[pytest.mark.sweep] if n else [], id=f"{flow.status}-{'-'.join(deaths)}"
    )
    for flow in FLOWS
    for n, deaths in enumerate(flow.deaths)
]


def live(folder: Path, books: Path, flow: Flow, death: str | None) -> tuple[int, str]:
    """注文を始めるか続ける。death で殺し、なければ終わりまで見て、終了コードと画面を返す。"""
    seconds = "5" if flow.status == "APPROVAL_TIMED_OUT" else "600"
    controller, keyboard = pty.openpty()
    os.write(controller, b"" if death == QUESTION else flow.answer)
    if death in [*BEFORE.values(), *AFTER.values()]:
        (books / str(death)).touch()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.outside", json.dumps(flow.order)],
        cwd=folder,
        env=os.environ | {"OUTSIDE": str(books), "APPROVAL_SECONDS": seconds},
        stdin=keyboard,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        screen, seen = process.stdout, ""
        asked = len(book(books, "charge-asked"))
        for char in iter(lambda: screen.read(1), ""):
            seen += char
            if death and (death in seen or (death == PAYING and "check_stock" in seen)):
                while death == PAYING and len(book(books, "charge-asked")) == asked:
                    time.sleep(0.01)
                process.kill()
                break
    os.close(controller)
    os.close(keyboard)
    return process.returncode, seen


def book(books: Path, name: str) -> list[str]:
    return (books / name).read_text().split() if (books / name).exists() else []


def entries(books: Path, kind: str) -> dict[str, Any]:
    found = books.glob(f"{kind}-order-*")
    return {file.name.removeprefix(f"{kind}-"): json.loads(file.read_text()) for file in found}


@pytest.fixture
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("books")


def test_at_least_24_deaths_over_all_six_outcomes() -> None:
    assert len(DEATHS) >= 24
    assert len({flow.status for flow in FLOWS}) == 6
    assert {len(deaths) for flow in FLOWS for deaths in flow.deaths} == {1, 2, 3}


@pytest.mark.parametrize(("flow", "deaths"), DEATHS)
def test_killed_and_run_again_the_order_ends_as_if_it_had_not_been(
    folder: Path, books: Path, flow: Flow, deaths: list[str]
) -> None:
    for death in deaths:
        code, seen = live(folder, books, flow, death)
        assert code == -signal.SIGKILL, seen
    code, seen = live(folder, books, flow, None)
    assert code == 0, seen
    result = json.loads(seen[seen.index("\n{") :])

    total = sum(item["price"] * item["quantity"] for item in flow.order["items"])
    expected = {"order_id": "order-123", "status": flow.status, "total": total}
    assert expected.items() <= result.items()
    charged = {"order-123-payment": total} if flow.status == "COMPLETED" else {}
    assert entries(books, "charge") == charged
    assert entries(books, "notice") == {f"order-123-{flow.status}": result}
    assert list((folder / ".orders").iterdir()) == []
    for step in ("受け付けました", "在庫を確認しました", "承認を頼みました"):
        assert step not in seen
