"""ローカル AWS にデプロイした注文システム。外部サービスの帳簿は、プロセスが落ちても残る。"""

import contextlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import deploy
from tests.local_aws.gateway import LocalAws
from tests.support.account import Account
from tests.support.outside import OutsideServices

ROOT = Path(deploy.__file__).parent


class OrderSystem(Account):
    """README と同じロールとポリシーで作成した関数と、その注文。"""

    def __init__(self, server: LocalAws, books: Path, *names: str) -> None:
        super().__init__(server.endpoint, server.access_key)
        self.services = OutsideServices(books)
        trust = (ROOT / "trust-policy.json").read_text("utf-8")
        self.role_arn = self.role(None, AssumeRolePolicyDocument=trust)
        self.permit(json.loads((ROOT / "durable-policy.json").read_text("utf-8")))
        code = io.BytesIO(deploy.build_zip())
        with zipfile.ZipFile(code, "a") as archive:
            archive.write(ROOT / "tests" / "support" / "outside.py", "outside.py")
        settings = deploy.desired_settings(self.role_arn) | {
            "Handler": "outside.handler",
            "Environment": {"Variables": {"BOOKS": str(books)}},
        }
        for name in names or [deploy.FUNCTION_NAME]:
            with contextlib.suppress(self.functions.exceptions.ResourceNotFoundException):
                self.functions.delete_function(FunctionName=name)  # 前のテストの関数
            self.create(code.getvalue(), FunctionName=name, **settings)

    def permit(self, document: dict[str, Any]) -> None:
        self.allow(self.role_arn, json.dumps(document))

    def order(self, order: dict[str, Any], function: str = deploy.FUNCTION_NAME) -> str:
        """注文を開始し、実行の ARN を返す。"""
        return self.start(function, order)
