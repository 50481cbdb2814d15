"""手元の AWS に app.py をデプロイした店。外の世界は、プロセスが死んでも残るファイルで表す。"""

import contextlib
import io
import json
import time
import uuid
import zipfile
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

import deploy
from tests.local_aws.gateway import LocalAws

ROOT = Path(deploy.__file__).parent
PATIENCE = 60  # 秒


class Shop:
    """README と同じロールとポリシーで作った関数と、その注文。"""

    def __init__(self, server: LocalAws, outside: Path, *names: str) -> None:
        options = {
            "endpoint_url": server.endpoint,
            "region_name": "ap-northeast-1",
            "aws_access_key_id": "test",
            "aws_secret_access_key": "test",
            "config": Config(max_pool_connections=50, retries={"max_attempts": 0}),
        }
        self.outside = outside
        self.iam, self.functions = boto3.client("iam", **options), boto3.client("lambda", **options)
        trust = (ROOT / "trust-policy.json").read_text("utf-8")
        self.role = f"shop-{uuid.uuid4().hex[:8]}"
        role = self.iam.create_role(RoleName=self.role, AssumeRolePolicyDocument=trust)["Role"]
        self.allow(json.loads((ROOT / "durable-policy.json").read_text("utf-8")))
        code = io.BytesIO(deploy.build_zip())
        with zipfile.ZipFile(code, "a") as archive:
            archive.write(ROOT / "tests" / "outside.py", "outside.py")
        settings = deploy.desired_settings(role["Arn"]) | {
            "Handler": "outside.handler",
            "Environment": {"Variables": {"OUTSIDE": str(outside)}},
        }
        for name in names or [deploy.FUNCTION_NAME]:
            with contextlib.suppress(self.functions.exceptions.ResourceNotFoundException):
                self.functions.delete_function(FunctionName=name)  # 前の店の関数
            self.functions.create_function(
                FunctionName=name, Code={"ZipFile": code.getvalue()}, Publish=True, **settings
            )

    def allow(self, policy: dict[str, Any]) -> None:
        document = json.dumps(policy)
        self.iam.put_role_policy(RoleName=self.role, PolicyName="durable", PolicyDocument=document)

    def run(self, order: dict[str, Any], function: str = deploy.FUNCTION_NAME) -> dict[str, Any]:
        """注文を終わりまで実行し、結果か、失敗の errorType と errorMessage を返す。"""
        answer = self.functions.invoke(
            FunctionName=function, Qualifier="1", Payload=json.dumps(order)
        )
        result: dict[str, Any] = json.loads(answer["Payload"].read())
        return result

    def start(self, order: dict[str, Any]) -> str:
        """注文を始め、実行の ARN を返す。"""
        answer = self.functions.invoke(
            FunctionName=deploy.FUNCTION_NAME,
            Qualifier="1",
            InvocationType="Event",
            DurableExecutionName=order["order_id"],
            Payload=json.dumps(order),
        )
        return str(answer["DurableExecutionArn"])

    def answer(self, arn: str, answer: dict[str, Any]) -> None:
        """注文が承認を求めるのを待ち、答えを送る。"""
        callback_id = None
        deadline = time.monotonic() + PATIENCE
        while callback_id is None:
            assert time.monotonic() < deadline, arn
            events = self.functions.get_durable_execution_history(DurableExecutionArn=arn)["Events"]
            for event in events:
                if event["EventType"] == "CallbackStarted":
                    callback_id = event["CallbackStartedDetails"]["CallbackId"]
        self.functions.send_durable_execution_callback_success(
            CallbackId=callback_id, Result=json.dumps(answer)
        )

    def ended(self, arn: str) -> dict[str, Any]:
        """注文が終わるのを待ち、結果を返す。"""
        deadline = time.monotonic() + PATIENCE
        while (execution := self.functions.get_durable_execution(DurableExecutionArn=arn))[
            "Status"
        ] == "RUNNING":
            assert time.monotonic() < deadline, arn
            time.sleep(0.05)
        result: dict[str, Any] = json.loads(execution["Result"])
        return result

    def done(self, kind: str) -> dict[str, Any]:
        """外の世界に起きたこと（kind は charge か notice）を、冪等キーごとに返す。"""
        return {
            file.name.removeprefix(f"{kind}-"): json.loads(file.read_text())
            for file in self.outside.glob(f"{kind}-order-*")
        }

    def asked(self, kind: str) -> list[str]:
        """外の世界が頼まれた冪等キーを、頼まれた順に返す。"""
        file = self.outside / f"{kind}-asked"
        return file.read_text().split() if file.exists() else []
