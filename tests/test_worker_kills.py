"""ローカル AWS のワーカーを SIGKILL で強制終了しても、test_crashes.py と同じ結果になること。"""

import io
import zipfile
from itertools import product
from pathlib import Path

import deploy
from tests.local_aws.gateway import LocalAws
from tests.support import outside
from tests.support.account import Account
from tests.support.flows import order_of


def test_sigkill_around_an_effect_changes_nothing(tmp_path: Path) -> None:
    services = outside.OutsideServices(tmp_path)  # 帳簿は、プロセスが落ちても残る
    code = io.BytesIO(deploy.build_zip())
    with zipfile.ZipFile(code, "a") as archive:
        archive.write(outside.__file__, "outside.py")
    kept = {"Variables": {"BOOKS": str(tmp_path)}}
    with LocalAws(speed=20) as server:
        account = Account(server.endpoint, server.access_key)
        function = account.create(code.getvalue(), Handler="outside.handler", Environment=kept)
        for kind, when in product(("charge", "notice"), ("before", "after")):
            order_id = f"order-{when}-{kind}"
            services.kill(kind, when)
            result = account.result(account.start(function, order_of() | {"order_id": order_id}))

            assert result.pop("payment_id").startswith("pay-")
            assert result == {"order_id": order_id, "status": "COMPLETED", "total": 2000}
            ends = (("charge", f"{order_id}-payment"), ("notice", f"{order_id}-COMPLETED"))
            for book, key in ends:
                assert [done for done in services.done(book) if order_id in done] == [key]
                assert services.asked(book).count(key) == 1 + (book == kind)
