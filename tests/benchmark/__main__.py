"""`python -m tests.benchmark`: 注文 1 件が課金される回数と、100 万件の料金を表示する。"""

import logging
from collections.abc import Sequence

import app
import deploy
from tests.support.flows import FLOWS
from tests.timeline import width

from . import prices
from .per_order import measure


def main() -> None:
    logging.disable(logging.CRITICAL)
    flows = [flow for flow in FLOWS if flow.title in prices.TRANSITIONS]
    costs = [measure(app.handler, flow.order, flow.answer) for flow in flows]
    memory = deploy.SETTINGS["MemorySize"]
    days = deploy.SETTINGS["DurableConfig"]["RetentionPeriodInDays"]
    bills = [prices.bill(cost, memory, days) for cost in costs]

    show("1. 注文 1 件", [flow.title for flow in flows])
    show("durable オペレーション", [cost.operations for cost in costs])
    show("チェックポイントの保存", [cost.calls for cost in costs])
    show("呼び出し", [cost.invocations for cost in costs])
    print("・durable オペレーション: 開始、ステップの試行、待機、コールバックごとに 1")
    print("・チェックポイントの保存: 本体が 0.1 秒を超えるステップごとに、1 増える（無料）\n")

    show("2. 注文 100 万件の料金（米ドル）", [flow.title for flow in flows])
    kinds = ("durable オペレーション", "データ", "リクエスト", "コンピューティング")
    for kind, amounts in zip(kinds, zip(*bills, strict=True), strict=True):
        show(kind, [f"{amount:.2f}" for amount in amounts])
    show("合計", [f"{bill.total:.0f}" for bill in bills])
    show("Step Functions", [f"{prices.step_functions(flow.title):.0f}" for flow in flows])
    print(f"・{prices.REGION} の公開料金（{prices.DATE}時点）")
    print(f"・データ: 入力、記録、結果の書き込みと、{days} 日の保存")
    print(f"・コンピューティング: {memory} MB、arm64、1 回 {prices.INVOCATION_SECONDS} 秒とする")
    print("・Step Functions: Standard の状態遷移だけ。呼び出す Lambda の料金は含まない")
    print("・どちらも含まない: 無料枠、ログ、転送、税、コールドスタートの時間")


def show(title: str, cells: Sequence[object]) -> None:
    """表の 1 行。数の列は右にそろえる。"""
    numbers = "".join(f"{' ' * (16 - width(str(cell)))}{cell}" for cell in cells)
    print(f"{title}{' ' * (32 - width(title))}{numbers}")


if __name__ == "__main__":
    main()
