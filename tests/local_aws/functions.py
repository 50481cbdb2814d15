"""moto の Lambda 関数に、moto が保持しない設定と、AWS と同じバージョンの発行を追加する。"""

import uuid
from typing import Any

import moto.awslambda.models
from moto.awslambda.models import LambdaFunction, lambda_backends

from . import ACCOUNT

LAMBDA = lambda_backends[ACCOUNT]


class Function(LambdaFunction):
    """moto は publish のたびにこのオブジェクトを複製するので、追加した値もバージョンごとに残る。"""

    def __init__(self, *, spec: dict[str, Any], **others: Any) -> None:
        super().__init__(spec=spec, **others)
        self.durable_config: dict[str, int] = spec.get("DurableConfig", {})
        self.logging_config: dict[str, str] = spec.get("LoggingConfig", {})
        # 削除して同じ名前で作り直した関数は、前の関数の実行を引き継がない。
        self.identity = str(uuid.uuid4())

    def get_configuration(self, on_create: bool = False) -> dict[str, Any]:
        configuration = super().get_configuration(on_create)
        logs = {"LogGroup": self.logs_group_name, **self.logging_config}
        return configuration | {"LoggingConfig": logs, "DurableConfig": self.durable_config}

    def update_configuration(self, config_updates: dict[str, Any]) -> dict[str, Any]:
        self.durable_config = self.durable_config | config_updates.get("DurableConfig", {})
        self.logging_config = self.logging_config | config_updates.get("LoggingConfig", {})
        return super().update_configuration(config_updates)

    def update_function_code(self, updated_spec: dict[str, Any]) -> dict[str, Any]:
        self.architectures = updated_spec.get("Architectures", self.architectures)
        return super().update_function_code(updated_spec)

    def set_version(self, version: int) -> None:
        """moto は、最初の発行では、更新されたという印を消さない。"""
        LAMBDA[self.region].get_function(self.function_name).code_or_config_updated = False
        super().set_version(version)


# moto が作成する関数をすべて上のクラスにする。moto の中身を差し替えるのはここだけ。
moto.awslambda.models.LambdaFunction = Function  # type: ignore[assignment, misc]


def qualifier_in(params: dict[str, Any]) -> str | None:
    """「名前:1」の形でも、別のパラメーターでも渡せる。"""
    name = params["FunctionName"].rpartition(":function:")[2]
    return name.partition(":")[2] or params.get("Qualifier")


def find_function(params: dict[str, Any]) -> Function:
    found = LAMBDA[params["Region"]].get_function(params["FunctionName"], qualifier_in(params))
    assert isinstance(found, Function)
    return found


def check_for_moto(operation: str, params: dict[str, Any]) -> None:
    """moto に渡すリクエストのうち、AWS が拒否し、moto が拒否しないものを拒否する。"""
    if operation == "ListVersionsByFunction":
        find_function(params)
    elif operation == "PublishVersion":
        current = find_function(params).code_sha_256
        if (expected := params.get("CodeSha256", current)) != current:
            message = f"CodeSHA256 ({expected}) is different from current CodeSHA256 in $LATEST"
            raise ValueError(f"{message} ({current}).")
