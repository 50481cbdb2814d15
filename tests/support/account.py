"""ローカル AWS のアカウント: boto3 のクライアントと、よく使う手順。"""

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

import deploy

REGION = "ap-northeast-1"
TRUST = (deploy.ROOT / "trust-policy.json").read_text("utf-8")
DURABLE = (deploy.ROOT / "durable-policy.json").read_text("utf-8")


def eventually(look: Callable[[], Any]) -> Any:
    """look が真になるのを待ち、その値を返す。"""
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline, "60 秒待っても起きない"
        time.sleep(0.1)
    return found


def refused(code: str, call: Callable[..., Any], **parameters: Any) -> str:
    """call が code で拒否されることを確認し、メッセージを返す。"""
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    assert caught.value.response["Error"]["Code"] == code
    return str(caught.value.response["Error"]["Message"])


class Account:
    def __init__(self, endpoint: str, access_key: str, region: str = REGION) -> None:
        self.endpoint, self.access_key = endpoint, access_key
        self.environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": region,
        }
        session = boto3.Session(access_key, "test", region_name=region)
        options: Any = {"endpoint_url": endpoint, "config": Config(retries={"max_attempts": 0})}
        clients = [session.client(name, **options) for name in ("iam", "sts", "lambda", "logs")]
        self.iam, self.sts, self.functions, self.logs = clients

    def role(self, durable: str = DURABLE) -> str:
        """README の「1. IAM ロールの作成」のロールを、durable の権限だけで作成し、ARN を返す。"""
        name = f"role-{uuid.uuid4().hex[:8]}"
        created = self.iam.create_role(RoleName=name, AssumeRolePolicyDocument=TRUST)
        self.iam.put_role_policy(RoleName=name, PolicyName="durable", PolicyDocument=durable)
        return str(created["Role"]["Arn"])

    def create(self, code: bytes, role: str | None = None, **changes: Any) -> str:
        """deploy.py と同じ設定で関数を作成し、バージョン 1 を発行する。None を渡した設定は省く。"""
        name = f"order-processing-durable-{uuid.uuid4().hex[:8]}"
        names = {"FunctionName": name, "Role": role or self.role()}
        settings = {**deploy.SETTINGS, **names, "Code": {"ZipFile": code}, **changes}
        self.functions.create_function(**{k: v for k, v in settings.items() if v is not None})
        self.functions.publish_version(FunctionName=settings["FunctionName"])
        return str(settings["FunctionName"])

    def start(self, function: str, payload: Any, **changes: Any) -> str:
        """非同期で呼び出し、実行の ARN を返す。"""
        asked = {"FunctionName": function, "Qualifier": "1", "InvocationType": "Event", **changes}
        answer = self.functions.invoke(Payload=json.dumps(payload), **asked)
        return str(answer["DurableExecutionArn"])

    def describe(self, arn: str) -> Any:
        return self.functions.get_durable_execution(DurableExecutionArn=arn)

    def ended(self, arn: str) -> Any:
        return eventually(lambda: (e := self.describe(arn))["Status"] != "RUNNING" and e)

    def result(self, arn: str) -> Any:
        execution = self.ended(arn)
        assert execution["Status"] == "SUCCEEDED", execution
        return json.loads(execution["Result"])

    def history(self, arn: str) -> Any:
        return self.functions.get_durable_execution_history(DurableExecutionArn=arn)["Events"]

    def callback(self, arn: str) -> str:
        """実行がコールバックを待って止まるまで待ち、その ID を返す。"""
        eventually(lambda: self.history(arn)[-1]["EventType"] == "InvocationCompleted")
        found = [event.get("CallbackStartedDetails") for event in self.history(arn)]
        return str(next(filter(None, found))["CallbackId"])

    def send(self, callback: str, result: str | bytes) -> None:
        self.functions.send_durable_execution_callback_success(CallbackId=callback, Result=result)
