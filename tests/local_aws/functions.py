"""moto の Lambda 関数に、moto の知らないことを足す。

DurableConfig と LoggingConfig を版ごとに覚え、ロールの信頼ポリシーを確かめ、
コードも設定も変わっていない publish-version には今の版を返す。
"""

import base64
import io
import re
import uuid
import zipfile
from typing import Any

import moto.awslambda.models
from moto.awslambda.exceptions import InvalidParameterValueException
from moto.awslambda.models import LambdaFunction, lambda_backends
from moto.core.exceptions import JsonRESTError

from . import ACCOUNT, iam
from .errors import AwsError

NAME_OR_ARN = re.compile(r"(?:(?:arn:aws:lambda:[\w-]+:)?\d{12}:function:)?([\w-]+)(?::([\w$]+))?")
JSON_LOGS = {"LogFormat": "JSON", "ApplicationLogLevel": "INFO", "SystemLogLevel": "INFO"}
PER_VERSION = {"Version", "FunctionArn", "LastModified", "Description", "RevisionId"}


class Function(LambdaFunction):
    """moto は publish のたびにこの物を写すので、足した値も版ごとに残る。"""

    def __init__(
        self, account_id: str, spec: dict[str, Any], region: str, version: str | int = 1
    ) -> None:
        _check_role(spec["Role"])
        _check_code(spec["Code"])
        super().__init__(account_id, spec, region, version)
        self.durable_config: dict[str, int] | None = None
        self.logging_config: dict[str, str] = JSON_LOGS | spec.get("LoggingConfig", {})
        if "DurableConfig" in spec:
            self.durable_config = _durable_config({"RetentionPeriodInDays": 14}, spec)
        # 消して同じ名前で作り直した関数は、前の関数の実行を引き継がない。
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
            if self.durable_config is None:
                message = "DurableConfig can only be set when the function is created."
                raise InvalidParameterValueException(message)
            self.durable_config = _durable_config(self.durable_config, config_updates)
        self.logging_config = self.logging_config | config_updates.get("LoggingConfig", {})
        return super().update_configuration(config_updates)

    def update_function_code(self, updated_spec: dict[str, Any]) -> dict[str, Any]:
        _check_code(updated_spec)
        self.architectures = updated_spec.get("Architectures", self.architectures)
        return super().update_function_code(updated_spec)

    @property
    def settings(self) -> dict[str, Any]:
        """コードと設定のうち、違えば別の版になるもの。"""
        kept = self.get_configuration().items()
        return {key: value for key, value in kept if key not in PER_VERSION}

    @property
    def code_or_config_updated(self) -> bool:
        """moto が publish の前に見る印。更新したかではなく、前の版と違うかを答える。"""
        *_, published = lambda_backends[ACCOUNT][self.region].list_versions_by_function(
            self.function_name
        )
        return bool(self.settings != published.settings)  # type: ignore[attr-defined]

    @code_or_config_updated.setter
    def code_or_config_updated(self, value: bool) -> None:
        """moto が立てる印は使わない。"""


# moto が作る関数をすべて上の形にする。差し替える場所は、moto ではここだけ。
moto.awslambda.models.LambdaFunction = Function  # type: ignore[misc]


def named(name_or_arn: str, qualifier: str | None) -> tuple[str, str | None]:
    """関数の名前と、:1 のように書かれたか、別に渡された版。"""
    match = NAME_OR_ARN.fullmatch(name_or_arn)
    name, written = match.groups() if match else (name_or_arn, None)
    if written and qualifier and written != qualifier:
        message = "The derived qualifier from the function name does not match the specified one."
        raise AwsError(400, "InvalidParameterValueException", message)
    return name, written or qualifier


def find_function(region: str, name: str, qualifier: str | None = None) -> Function:
    try:
        found = lambda_backends[ACCOUNT][region].get_function(name, qualifier)
    except JsonRESTError as error:
        raise AwsError(error.code, error.error_type, error.message) from error
    assert isinstance(found, Function)
    return found


def _check_role(arn: str) -> None:
    role = iam.find_role(arn)
    if role is None or not iam.trusts_lambda(role):
        message = "The role defined for the function cannot be assumed by Lambda."
        raise InvalidParameterValueException(message)


def _check_code(code: dict[str, Any]) -> None:
    if not zipfile.is_zipfile(io.BytesIO(base64.b64decode(code.get("ZipFile", "")))):
        message = "Could not unzip uploaded file. The local AWS reads code from ZipFile only."
        raise InvalidParameterValueException(message)


def _durable_config(current: dict[str, int], spec: dict[str, Any]) -> dict[str, int]:
    config: dict[str, int] = current | spec["DurableConfig"]
    if "ExecutionTimeout" not in config:
        raise InvalidParameterValueException("DurableConfig requires ExecutionTimeout.")
    return config
