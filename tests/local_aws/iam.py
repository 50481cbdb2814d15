"""moto の IAM に登録されたロールで、Lambda に許可される操作を判定する。

moto の判定処理は `$LATEST` の `$` や `?`、NotResource を誤って解釈し、一致しない Condition を拒否と
みなすので、ポリシードキュメントだけを moto から取得する。Condition は評価しない。Condition を含む
ステートメントは、Allow なら無視し、Deny なら拒否する（安全側に倒す）。
"""

import json
import re
from typing import Any

from moto.iam.models import ManagedPolicy, Role, iam_backends

from . import ACCOUNT
from .errors import AwsError

IAM = iam_backends[ACCOUNT]["aws"]


def find_role(arn: str) -> Role | None:
    return next((role for role in IAM.get_roles() if role.arn == arn), None)


def authorise(role_arn: str, session: str, action: str, resource: str) -> None:
    if reason := refusal(role_arn, action, resource):
        role = role_arn.rpartition("/")[2]
        user = f"User: arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{session}"
        message = f"{user} is not authorized to perform: {action} on resource: {resource} {reason}"
        raise AwsError(403, "AccessDeniedException", message)


def refusal(role_arn: str, action: str, resource: str) -> str | None:
    """許可されるなら None、そうでなければ AWS と同じ文言の理由。"""
    role = find_role(role_arn)
    if role is None:
        return "because the role does not exist"
    documents = [*role.policies.values(), *map(_default, role.managed_policies.values())]
    policies = {"identity-based policy": documents}
    if arn := role.permissions_boundary_arn:
        policies["permissions boundary"] = [_default(IAM.managed_policies[arn])]
    for kind, documents in policies.items():
        statements = [
            statement
            for document in documents
            for statement in _listed(json.loads(document)["Statement"])
            if _matches(statement, "Action", action) and _matches(statement, "Resource", resource)
        ]
        if any(statement["Effect"] == "Deny" for statement in statements):
            return f"with an explicit deny in the {kind}"
        if not any(s["Effect"] == "Allow" and "Condition" not in s for s in statements):
            return f"because no {kind} allows the {action} action"
    return None


def trusts_lambda(role: Role) -> bool:
    effects = {
        statement["Effect"]
        for statement in _listed(json.loads(role.assume_role_policy_document)["Statement"])
        if isinstance(statement.get("Principal"), dict)
        and "lambda.amazonaws.com" in _listed(statement["Principal"].get("Service"))
        and _matches(statement, "Action", "sts:AssumeRole")
    }
    return effects == {"Allow"}


def _default(policy: ManagedPolicy) -> str:
    return next(str(version.document) for version in policy.versions if version.is_default)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _matches(statement: dict[str, Any], element: str, value: str) -> bool:
    """ステートメントの Action か Resource（NotAction か NotResource）が value に当てはまるか。"""
    flags = re.IGNORECASE if element == "Action" else 0
    found = any(
        re.fullmatch(re.escape(p).replace(r"\*", ".*").replace(r"\?", "."), value, flags)
        for p in _listed(statement.get(element, statement.get(f"Not{element}")))
    )
    return found != (f"Not{element}" in statement)
