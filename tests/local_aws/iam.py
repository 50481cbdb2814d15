"""moto の IAM に登録されたロールで、Lambda に許可される操作を判定する。"""

import json

from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.iam.models import Role, iam_backends

from . import ACCOUNT
from .errors import AwsError

# moto の判定（IAMPolicy）は、このデモのポリシーには正しい。Condition は無視する。
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
    """許可されるなら None、そうでなければ AWS の文言の理由（明示的な拒否も区別しない）。"""
    role = find_role(role_arn)
    documents = [*role.policies.values(), *role.managed_policies.values()] if role else []
    found = {IAMPolicy(document).is_action_permitted(action, resource) for document in documents}
    if found - {PermissionResult.NEUTRAL} == {PermissionResult.PERMITTED}:
        return None
    return f"because no identity-based policy allows the {action} action"


def trusts_lambda(role: Role) -> bool:
    """moto は信頼ポリシーの Principal を判定しない。"""
    statements = json.loads(role.assume_role_policy_document)["Statement"]
    found = statements if isinstance(statements, list) else [statements]
    named = [s for s in found if "'lambda.amazonaws.com'" in str(s.get("Principal"))]
    return {statement["Effect"] for statement in named} == {"Allow"}
