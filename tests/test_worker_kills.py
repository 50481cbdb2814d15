"""ローカル AWS のワーカーを SIGKILL で強制終了しても、test_crashes.py と同じ結果になること。"""

import io
import zipfile
from itertools import product
from pathlib import Path

import deploy
from tests.local_aws.gateway import LocalAws
from tests.support import outside
from tests.support.account import Account, eventually
from tests.support.flows import APPROVE, order_of


def test_neither_sigkill_nor_stop_changes_what_was_done(tmp_path: Path) -> None:
    services = outside.OutsideServices(tmp_path)  # 帳簿は、プロセスが落ちても残る
    code = io.BytesIO(deploy.build_zip())
    with zipfile.ZipFile(code, "a") as archive:
        archive.write(outside.__file__, "outside.py")
    kept = {"Variables": {"BOOKS": str(tmp_path)}}
    with LocalAws(speed=20) as server:
        account, clock = Account(server.endpoint, server.access_key), server.executions.clock
        function = account.create(code.getvalue(), Handler="outside.handler", Environment=kept)
        for kind, when in product(("charge", "notice"), ("before", "after")):
            order_id = f"order-{when}-{kind}"
            services.kill(kind, when)
            arn = account.start(function, order_of() | {"order_id": order_id})
            result = account.result(arn)

            assert result.pop("payment_id").startswith("pay-")
            assert result == {"order_id": order_id, "status": "COMPLETED", "total": 2000}
            assert "Runtime exited with error: signal: killed" in str(account.history(arn))
            ends = (("charge", f"{order_id}-payment"), ("notice", f"{order_id}-COMPLETED"))
            for book, key in ends:
                assert [done for done in services.done(book) if order_id in done] == [key]
                assert services.asked(book).count(key) == 1 + (book == kind)

        services.lose_answers("order-123-notice", "NNNN")
        order = order_of(price=50_000, simulate={"payment_timeouts": 0})
        callback = account.callback(stopped := account.start(function, order))
        clock.speed = 0.01  # 通知の再試行は、停止した後になる
        account.send(callback, APPROVE)
        eventually(lambda: "order-123-COMPLETED" in services.asked("notice"))
        account.functions.stop_durable_execution(DurableExecutionArn=stopped)
        clock.speed = 20
        account.result(account.start(function, order_of() | {"order_id": "order-124"}))

        assert account.describe(stopped)["Status"] == "STOPPED"
        assert services.done("charge")["order-123-payment"] == 100_000
        assert services.asked("notice").count("order-123-COMPLETED") == 1
        assert services.asked("cancellation") == []
