"""ワーカーのログを、moto の CloudWatch Logs に書く。"""

import json
import time
from typing import Any

from moto.logs.models import logs_backends

from . import ACCOUNT, iam
from .functions import Function


class Log:
    """一度の呼び出しのログを、ロールに許されていれば moto の CloudWatch Logs に書く。"""

    def __init__(self, function: Function, stream: str, request_id: str) -> None:
        self.function, self.stream, self.request_id = function, stream, request_id
        self.backend = logs_backends[ACCOUNT][function.region]
        self.group = log_group(function)
        self.as_json = function.logging_config.get("LogFormat") == "JSON"

    def add(self, event: dict[str, Any]) -> None:
        arn = f"arn:aws:logs:{self.function.region}:{ACCOUNT}:log-group:{self.group}"
        stream_arn = f"{arn}:log-stream:{self.stream}"
        if self.group not in self.backend.groups:
            if iam.refusal(self.function.role, "logs:CreateLogGroup", arn):
                return
            self.backend.ensure_log_group(self.group)
        if not iam.refusal(self.function.role, "logs:PutLogEvents", stream_arn):
            self.backend.ensure_log_stream(self.group, self.stream)
            self.backend.put_log_events(self.group, self.stream, [event])

    def line(self, text: str) -> None:
        self.add({"timestamp": int(time.time() * 1000), "message": text})

    def start(self) -> None:
        version = str(self.function.version)
        text = f"START RequestId: {self.request_id} Version: {version}"
        self._platform("start", {"version": version}, text)

    def end(self, milliseconds: float, status: str) -> None:
        record = {"metrics": {"durationMs": round(milliseconds, 3)}, "status": status}
        text = f"REPORT RequestId: {self.request_id}\tDuration: {milliseconds:.2f} ms"
        self._platform("report", record, text)

    def _platform(self, kind: str, record: dict[str, Any], text: str) -> None:
        if self.as_json:
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            record = {"requestId": self.request_id, **record}
            text = json.dumps({"time": moment, "type": f"platform.{kind}", "record": record})
        self.line(text)


def log_group(function: Function) -> str:
    return function.logging_config.get("LogGroup", function.logs_group_name)
