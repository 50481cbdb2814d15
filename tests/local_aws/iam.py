"""moto の IAM に置かれたロールで、Lambda が何をしてよいかを決める。

moto 自身の判定器は `$LATEST` の `$` や `NotResource` を読み違えるので、文書だけを moto から借りる。
Condition や NotAction のある文は、Allow なら許さず、Deny なら拒む (厳しい側に倒す)。
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from moto.iam.exceptions import NotFoundException
from moto.iam.models import Role, iam_backends

from . import ACCOUNT

PLAIN = {"Sid", "Effect", "Action", "Resource"}


def find_role(arn: str) -> Role | None:
    try:
        return iam_backends[ACCOUNT]["aws"].get_role_by_arn(arn)
    except NotFoundException:
        return None


def refusal(role_arn: str, action: str, resource: str) -> str | None:
    """許されるなら None、そうでなければ AWS と同じ言い方の理由。"""
    statements = [
        statement
        for document in _policies(find_role(role_arn))
        for statement in _listed(json.loads(document)["Statement"])
        if _names(statement, "Action", action) and _names(statement, "Resource", resource)
    ]
    if any(statement["Effect"] == "Deny" for statement in statements):
        return "with an explicit deny in an identity-based policy"
    if any(s["Effect"] == "Allow" and s.keys() <= PLAIN for s in statements):
        return None
    return f"because no identity-based policy allows the {action} action"


def trusts_lambda(role: Role) -> bool:
    return any(
        statement["Effect"] == "Allow"
        and isinstance(statement.get("Principal"), dict)
        and "lambda.amazonaws.com" in _listed(statement["Principal"].get("Service"))
        and _names(statement, "Action", "sts:AssumeRole")
        for statement in _listed(json.loads(role.assume_role_policy_document)["Statement"])
    )


def _policies(role: Role | None) -> Iterator[str]:
    if role is None:
        return
    yield from role.policies.values()
    for policy in role.managed_policies.values():
        yield from (version.document for version in policy.versions if version.is_default)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _names(statement: dict[str, Any], element: str, value: str) -> bool:
    """文の element が value に当てはまるか。書いてなければ (NotAction など) 当てはまるとみなす。"""
    flags = re.IGNORECASE if element == "Action" else 0
    return any(
        re.fullmatch(re.escape(p).replace(r"\*", ".*").replace(r"\?", "."), value, flags)
        for p in _listed(statement.get(element, "*"))
    )
