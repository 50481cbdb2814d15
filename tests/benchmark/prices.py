"""AWS の公開料金で、注文 100 万件の料金を計算する。単価と、その根拠はここだけに書く。"""

from typing import NamedTuple

from .per_order import Meter

# 米ドル。AWS Lambda と Step Functions の公開料金。東京の durable functions の料金は確認できていない
REGION, DATE = "us-east-1", "2026 年 11 月"
DURABLE_OPERATION = 8.00 / 10**6
DATA_WRITTEN_GB = 0.25
DATA_RETAINED_GB_MONTH = 0.15
REQUEST = 0.20 / 10**6
ARM64_GB_SECOND = 0.0000133334
STEP_FUNCTIONS_TRANSITION = 25.00 / 10**6

ORDERS = 10**6
DAYS_IN_MONTH = 30
INVOCATION_SECONDS = 0.1  # 実測に近い決まった値。料金が、測るマシンで変わらないように
# 同じ注文が Step Functions Standard で通る状態。再試行も 1 回の遷移として課金される。
# 開始と終了は数えないので、Step Functions に有利な数え方である。
TRANSITIONS = {
    "README の注文": "受付 在庫 在庫の分岐 金額の分岐 待機 支払い 再試行 通知",
    "承認された注文": "受付 在庫 在庫の分岐 金額の分岐 承認待ち 回答の分岐 支払い 再試行 通知",
}


class Bill(NamedTuple):
    """ORDERS 件の料金（米ドル）。"""

    operations: float
    data: float
    requests: float
    compute: float

    @property
    def total(self) -> float:
        return sum(self)


def bill(cost: Meter, memory_mb: int, retention_days: int) -> Bill:
    data_gb = DATA_WRITTEN_GB + DATA_RETAINED_GB_MONTH * retention_days / DAYS_IN_MONTH
    gb_seconds = cost.invocations * INVOCATION_SECONDS * memory_mb / 1024
    return Bill(
        operations=cost.operations * ORDERS * DURABLE_OPERATION,
        data=cost.stored * ORDERS / 10**9 * data_gb,
        requests=cost.invocations * ORDERS * REQUEST,
        compute=gb_seconds * ORDERS * ARM64_GB_SECOND,
    )


def step_functions(flow: str) -> float:
    return len(TRANSITIONS[flow].split()) * ORDERS * STEP_FUNCTIONS_TRANSITION
