"""ローカル AWS のワーカーを SIGKILL で強制終了しても、test_crashes.py と同じ結果になること。"""

import json
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from werkzeug.wrappers import Response

from tests.local_aws.executions import Params
from tests.local_aws.functions import Function
from tests.local_aws.gateway import LocalAws
from tests.support.flows import order_of
from tests.support.order_system import OrderSystem


class DeadlyAws(LocalAws):
    """指定したチェックポイント API の呼び出しの前か後に、呼び出したプロセスを強制終了する。"""

    calls = 0
    kills = 0
    death: tuple[str, int] | None = None

    def durable(self, operation: str, params: Params, caller: Function | None) -> Response:
        if operation != "CheckpointDurableExecution":
            return super().durable(operation, params, caller)
        self.calls += 1
        number = self.calls
        self.strike("before", number)
        response = super().durable(operation, params, caller)
        self.strike("after", number)
        return response

    def strike(self, when: str, number: int) -> None:
        if self.death != (when, number):
            return
        for worker in list(self.workers.busy):
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            self.kills += 1


@pytest.fixture(scope="module")
def server() -> Iterator[DeadlyAws]:
    with DeadlyAws(speed=20) as server:
        yield server


@pytest.fixture(scope="module")
def system(server: DeadlyAws, tmp_path_factory: pytest.TempPathFactory) -> OrderSystem:
    return OrderSystem(server, tmp_path_factory.mktemp("outside"))


def completed(system: OrderSystem, order_id: str) -> None:
    """注文が 1 回だけ請求され、1 回だけ通知されて、COMPLETED で終わることを確認する。"""
    result = system.result(system.order(order_of() | {"order_id": order_id}))

    assert result.pop("payment_id").startswith("pay-")
    assert result == {"order_id": order_id, "status": "COMPLETED", "total": 2000}
    for kind, key in (("charge", f"{order_id}-payment"), ("notice", f"{order_id}-COMPLETED")):
        assert [done for done in system.services.done(kind) if order_id in done] == [key]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", range(1, 7))
def test_sigkill_around_each_checkpoint_changes_nothing(
    server: DeadlyAws, system: OrderSystem, when: str, call: int
) -> None:
    server.calls, server.kills, server.death = 0, 0, (when, call)
    completed(system, f"order-{when}-{call}")
    assert server.kills == 1


@pytest.mark.parametrize(("kind", "times"), [("charge", 3), ("notice", 2)])
def test_sigkill_between_an_effect_and_its_checkpoint_is_recognised_by_its_key(
    server: DeadlyAws, system: OrderSystem, kind: str, times: int
) -> None:
    server.death = None
    system.services.kill(kind, "after")
    completed(system, f"order-{kind}")
    assert [f"order-{kind}" in key for key in system.services.asked(kind)].count(True) == times


def test_two_hundred_orders_with_approvals_in_random_order_are_not_mixed_up(
    server: DeadlyAws, system: OrderSystem
) -> None:
    server.death = None
    randomly = random.Random(20261123)
    orders: dict[str, dict[str, Any]] = {}
    for number in range(200):
        price = 100_000 + number if number % 2 else 1000 + number
        timeouts = {"payment_timeouts": number % 3 % 2}
        order = order_of(price=price, quantity=1, simulate=timeouts)
        orders[f"order-{number:03}"] = order | {"order_id": f"order-{number:03}"}
    with ThreadPoolExecutor(20) as pool:
        arns = dict(zip(orders, pool.map(system.order, orders.values()), strict=True))
    assert len(set(arns.values())) == 200

    asked = [name for name, order in orders.items() if order["items"][0]["price"] >= 100_000]
    randomly.shuffle(asked)
    approved = {name: randomly.random() < 0.5 for name in asked}
    for name in asked:
        answer = {"approved": approved[name], "approver": f"for-{name}"}
        system.send(system.callback(arns[name]), json.dumps(answer))

    for name, order in orders.items():
        result = system.result(arns[name])
        total = order["items"][0]["price"]
        status = "COMPLETED" if approved.get(name, True) else "REJECTED"
        assert (result["order_id"], result["status"], result["total"]) == (name, status, total)
        assert result.get("approver") == (f"for-{name}" if name in approved else None)
    paid = {name: order["items"][0]["price"] for name, order in orders.items()}
    charges = system.services.done("charge")
    assert {key: yen for key, yen in charges.items() if key.removesuffix("-payment") in orders} == {
        f"{name}-payment": yen for name, yen in paid.items() if approved.get(name, True)
    }
    notices = [key for key in system.services.done("notice") if key.rsplit("-", 1)[0] in orders]
    assert len(notices) == 200
