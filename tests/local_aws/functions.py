"""moto の Lambda 関数に、moto が対応していない機能を追加する。

DurableConfig と LoggingConfig をバージョンごとに保持し、ロールの信頼ポリシーを検証し、
バージョンを AWS と同じように発行、削除する。
"""

import re
import uuid
from typing import Any

import moto.awslambda.models
from moto.awslambda.models import LambdaFunction, lambda_backends

from . import ACCOUNT, iam
from .errors import AwsError

LAMBDA = lambda_backends[ACCOUNT]
JSON_LOGS = {"LogFormat": "JSON", "ApplicationLogLevel": "INFO", "SystemLogLevel": "INFO"}


class Function(LambdaFunction):
    """moto は publish のたびにこのオブジェクトを複製するので、追加した値もバージョンごとに残る。"""

    def __init__(
        self, account_id: str, spec: dict[str, Any], region: str, version: str | int = 1
    ) -> None:
        _check_role(spec["Role"])
        self.published: list[int] = []  # 発行したすべての番号。複製とも共有する
        self.revision = ""
        super().__init__(account_id, spec, region, version)
        self.durable_config: dict[str, int] | None = None
        self.logging_config: dict[str, str] = JSON_LOGS | spec.get("LoggingConfig", {})
        if "DurableConfig" in spec:
            self.durable_config = {"RetentionPeriodInDays": 14} | spec["DurableConfig"]
        # 削除して同じ名前で作り直した関数は、前の関数の実行を引き継がない。
        self.identity = str(uuid.uuid4())

    def get_configuration(self, on_create: bool = False) -> dict[str, Any]:
        configuration = super().get_configuration(on_create)
        configuration["LoggingConfig"] = {"LogGroup": self.logs_group_name, **self.logging_config}
        if self.durable_config:
            configuration["DurableConfig"] = self.durable_config
        return configuration

    def update_configuration(self, config_updates: dict[str, Any]) -> dict[str, Any]:
        if "Role" in config_updates:
            _check_role(config_updates["Role"])
        if "DurableConfig" in config_updates:
            self.durable_config = (self.durable_config or {}) | config_updates["DurableConfig"]
        self.logging_config = self.logging_config | config_updates.get("LoggingConfig", {})
        return super().update_configuration(config_updates)

    def set_version(self, version: int) -> None:
        """moto は、残っているバージョンの数から番号を決め、削除した番号をもう一度使ってしまう。"""
        self.published.append(len(self.published) + 1)
        super().set_version(self.published[-1])

    @property
    def code_or_config_updated(self) -> bool:
        """moto が publish の前に見るフラグ。残っている最後のバージョンの後で更新されたか。"""
        *_, last = LAMBDA[self.region].list_versions_by_function(self.function_name)
        assert isinstance(last, Function)
        return last.revision != self.revision

    @code_or_config_updated.setter
    def code_or_config_updated(self, updated: bool) -> None:
        if updated:
            self.revision = str(uuid.uuid4())


# moto が作成する関数をすべて上のクラスにする。moto の中身を差し替えるのはここだけ。
moto.awslambda.models.LambdaFunction = Function  # type: ignore[misc]


def named(params: dict[str, Any]) -> tuple[str, str | None]:
    """関数名と修飾子。修飾子は「名前:1」の形でも、別のパラメーターでも渡せる。"""
    full = params["FunctionName"]
    name, _, written = re.sub(r"^(arn:.*|\d{12}):function:", "", full).partition(":")
    check_arn(params, "FunctionName")
    return name, written or params.get("Qualifier")


def check_arn(params: dict[str, Any], key: str) -> None:
    """別のリージョンか別のアカウントの ARN を拒否する。"""
    here, arn = f"arn:aws:lambda:{params['Region']}:{ACCOUNT}:", params[key]
    if arn.startswith("arn:") and not arn.startswith(here):
        raise AwsError(403, "AccessDeniedException", f"{arn} is not one of {here}*")


def find_function(params: dict[str, Any]) -> Function:
    found = LAMBDA[params["Region"]].get_function(*named(params))
    assert isinstance(found, Function)
    return found


def check_for_moto(operation: str, params: dict[str, Any]) -> None:
    """moto に渡すリクエストのうち、AWS が拒否し、moto が拒否しないものを拒否する。"""
    if "FunctionName" not in params:
        return
    _, qualifier = named(params)
    if operation == "ListVersionsByFunction":
        find_function(params)
    elif operation == "DeleteFunction" and qualifier == "$LATEST":
        raise ValueError("$LATEST version cannot be deleted without deleting the function.")
    elif operation == "PublishVersion":
        current = find_function(params).code_sha_256
        if (expected := params.get("CodeSha256", current)) != current:
            message = f"CodeSHA256 ({expected}) is different from current CodeSHA256 in $LATEST"
            raise ValueError(f"{message} ({current}).")


def _check_role(arn: str) -> None:
    role = iam.find_role(arn)
    if role is None or not iam.trusts_lambda(role):
        raise ValueError("The role defined for the function cannot be assumed by Lambda.")
