"""ローカル AWS のワーカーを SIGKILL で強制終了しても、test_crashes.py と同じ結果になること。"""

import io
import json
import random
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import deploy
from tests.local_aws.gateway import LocalAws
from tests.support import outside
from tests.support.account import Account
from tests.support.flows import order_of
from tests.support.outside import OutsideServices


class OrderSystem(Account):
    """デプロイした注文システム。外部サービスの帳簿は、プロセスが落ちても残る。"""

    def __init__(self, server: LocalAws, books: Path) -> None:
        super().__init__(server.endpoint, server.access_key)
        self.services = OutsideServices(books)
        code = io.BytesIO(deploy.build_zip())
        with zipfile.ZipFile(code, "a") as archive:
            archive.write(Path(outside.__file__), "outside.py")
        kept = {"Variables": {"BOOKS": str(books)}}
        self.function = self.create(code.getvalue(), Handler="outside.handler", Environment=kept)

    def order(self, order: dict[str, Any]) -> str:
        return self.start(self.function, order)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrderSystem]:
    with LocalAws(speed=5) as server:
        yield OrderSystem(server, tmp_path_factory.mktemp("books"))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["charge", "notice"])
def test_sigkill_around_an_effect_changes_nothing(
    system: OrderSystem, kind: str, when: str
) -> None:
    order_id = f"order-{when}-{kind}"
    system.services.kill(kind, when)
    result = system.result(system.order(order_of() | {"order_id": order_id}))

    assert result.pop("payment_id").startswith("pay-")
    assert result == {"order_id": order_id, "status": "COMPLETED", "total": 2000}
    for book, key in (("charge", f"{order_id}-payment"), ("notice", f"{order_id}-COMPLETED")):
        assert [done for done in system.services.done(book) if order_id in done] == [key]
        retried = book == "charge"  # 1 回目は応答がない
        assert system.services.asked(book).count(key) == 1 + retried + (book == kind)


def test_forty_orders_with_approvals_in_random_order_are_not_mixed_up(
    system: OrderSystem,
) -> None:
    randomly = random.Random(20261123)
    orders: dict[str, dict[str, Any]] = {}
    for number in range(40):
        price = 100_000 + number if number % 2 else 1000 + number
        order = order_of(price=price, quantity=1, simulate={"payment_timeouts": number % 3 % 2})
        orders[f"order-{number:03}"] = order | {"order_id": f"order-{number:03}"}
    with ThreadPoolExecutor(20) as pool:
        arns = dict(zip(orders, pool.map(system.order, orders.values()), strict=True))

    asked = [name for name, order in orders.items() if order["items"][0]["price"] >= 100_000]
    randomly.shuffle(asked)
    approved = {name: randomly.random() < 0.5 for name in asked}
    for name in asked:
        answer = {"approved": approved[name], "approver": f"for-{name}"}
        system.send(system.callback(arns[name]), json.dumps(answer))

    results = {name: system.result(arns[name]) for name in orders}
    charges, notices = system.services.done("charge"), system.services.done("notice")
    for name, order in orders.items():
        total = order["items"][0]["price"]
        status = "COMPLETED" if approved.get(name, True) else "REJECTED"
        told = {"order_id": name, "status": status, "total": total}
        assert told.items() <= results[name].items()
        assert results[name].get("approver") == (f"for-{name}" if name in approved else None)
        assert charges.get(f"{name}-payment") == (total if status == "COMPLETED" else None)
        assert notices[f"{name}-{status}"] == results[name]
