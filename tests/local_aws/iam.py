"""moto の IAM に登録されたロールで、Lambda に許可される操作を判定する。"""

from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.iam.models import iam_backends

from . import ACCOUNT
from .errors import AwsError

IAM = iam_backends[ACCOUNT]["aws"]


def authorise(role_arn: str, session: str, action: str, resource: str) -> None:
    """moto の判定（IAMPolicy）は、このデモのポリシーには正しい。Condition は無視する。"""
    for role in IAM.get_roles():
        documents = [*role.policies.values(), *role.managed_policies.values()]
        found = [IAMPolicy(each).is_action_permitted(action, resource) for each in documents]
        if role.arn == role_arn and PermissionResult.PERMITTED in found:
            return
    user = f"User: arn:aws:sts::{ACCOUNT}:assumed-role/{role_arn.rpartition('/')[2]}/{session}"
    message = f"{user} is not authorized to perform: {action} on resource: {resource}"
    reason = f"because no identity-based policy allows the {action} action"
    raise AwsError(403, "AccessDeniedException", f"{message} {reason}")
