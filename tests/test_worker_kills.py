"""ローカル AWS のワーカーを SIGKILL で強制終了しても、test_crashes.py と同じ結果になること。"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

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
    result = system.result(system.start(system.function, order_of() | {"order_id": order_id}))

    assert result.pop("payment_id").startswith("pay-")
    assert result == {"order_id": order_id, "status": "COMPLETED", "total": 2000}
    for book, key in (("charge", f"{order_id}-payment"), ("notice", f"{order_id}-COMPLETED")):
        assert [done for done in system.services.done(book) if order_id in done] == [key]
        retried = book == "charge"  # 1 回目は応答がない
        assert system.services.asked(book).count(key) == 1 + retried + (book == kind)
