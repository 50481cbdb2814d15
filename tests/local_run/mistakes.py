"""app.py のエラーを、型とメッセージと、起きた行で 1 文にする。"""

import re
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

HINTS = {  # メッセージの正規表現と、対処方法
    r"\bcoroutine\b": "。async def ではなく def にしてください",
    r"\bfunction\b": "。ステップは context.step() で実行してください",
}


def tell(app: ModuleType, error: BaseException) -> str:
    """型、メッセージ、app.py の行。ステップなどのエラーなら、元のエラーのもの。"""
    while getattr(error, "error_type", None) and error.__context__:
        error = error.__context__
    kind = getattr(error, "error_type", None) or type(error).__name__
    return described(kind, str(error), line_of(app, error))


def described(kind: str | None, message: str | None, place: str = "") -> str:
    hint = next((HINTS[form] for form in HINTS if re.search(form, message or "")), "")
    inside = (place + hint).removeprefix("。")
    name = (kind or "").rpartition(".")[2]
    return ": ".join(filter(None, (name, message))) + (f"（{inside}）" if inside else "")


def line_of(app: ModuleType, error: BaseException) -> str:
    """エラーが起きた所から最も近い、app.py の行。"""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == app.__file__]
    return f"{Path(str(app.__file__)).name} の {lines[-1]} 行目" if lines else ""


def mismatch(message: str, recorded: Any) -> str:
    """記録にあったもの（recorded はそのオペレーション）と、今回来たもの。"""
    was = {"subtype": repr(recorded.sub_type), "name": repr(recorded.name)}
    came = re.findall(r"(subtype|name) checkpoint=.*? current=(None|'.*?')(?:,|$)", message)
    first, second = (" ".join(it.values()).replace("'", "") for it in (was, was | dict(came)))
    return f"記録では {first}、今回は {second}"
