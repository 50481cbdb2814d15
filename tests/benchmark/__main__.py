"""`python -m tests.benchmark`: 注文 1 件の費用を、下限、公開例、Step Functions と比べる。"""

import logging
from collections.abc import Iterable, Sequence

import app
import deploy
from tests.support.flows import FLOWS
from tests.timeline import width

from . import prices, published
from .per_order import Cost, measure, order_of_lines

SHOWN = [flow for flow in FLOWS if flow.title in prices.TRANSITIONS]
LINES = (1, 10, 100)
OPERATIONS, CALLS = "durable オペレーション", "チェックポイント"
WRITTEN = "書き込み（バイト）"


def main() -> None:
    logging.disable(logging.CRITICAL)
    print("注文 1 件の費用。どの値もこの 1 回の実行で測り、比は基準を 1.0x とする。")
    ours, theirs = (
        [measure(handler, flow.order, flow.answer) for flow in SHOWN]
        for handler in (app.handler, published.handler)
    )
    show_orders(ours, theirs)
    show_prices(ours, theirs)
    show_lines([measure(app.handler, order_of_lines(lines)) for lines in LINES])


def show_orders(ours: Sequence[Cost], theirs: Sequence[Cost]) -> None:
    rows: list[tuple[object, ...]] = []
    for flow, cost, peer in zip(SHOWN, ours, theirs, strict=True):
        compared = {
            OPERATIONS: (flow.operations, cost.operations, peer.operations),
            CALLS: (flow.calls, cost.calls, peer.calls),
            "呼び出し": (flow.invocations, cost.invocations, peer.invocations),
            WRITTEN: (cost.written_floor, cost.written, peer.written),
        }
        for title, (floor, mine, other) in compared.items():
            name = flow.title if title == OPERATIONS else ""
            rows.append((name, title, floor, mine, ratio(mine, floor), other, ratio(other, floor)))
    show(
        "1. 注文 1 件",
        ("", "", "下限", "app.py", "下限比", "公開例", "下限比"),
        rows,
        "公開例: 同じ流れを AWS の例の書き方で。wait_for_callback、既定の SerDes、既定の再試行",
        "durable オペレーションの下限: 開始、段階、再試行ごとに 1。承認待ちは、依頼と合わせて 2",
        "チェックポイントの下限: 記録するまで先へ進めない事実の数。段階ごとに 1、再試行ごとに 1",
        "呼び出しの下限: 1 + 中断の回数。待機、承認待ち、再試行の間は何も動かさない",
        "バイトの下限: 入力から計算し直せない値だけを空白のない JSON で。ほかは SDK の決めた形式",
        "バイトの超過分: 注文の合計と通知の内容。履歴を読む人のために、値のまま残している",
    )


def show_prices(ours: Sequence[Cost], theirs: Sequence[Cost]) -> None:
    settings = deploy.SETTINGS
    memory, days = settings["MemorySize"], settings["DurableConfig"]["RetentionPeriodInDays"]
    columns = []
    for flow, *costs in zip(SHOWN, ours, theirs, strict=True):
        bill, peer = (prices.bill(cost, memory, days) for cost in costs)
        machine = prices.step_functions(flow.title)
        data = bill.written + bill.retained
        parts = (bill.operations, data, bill.requests, bill.compute, bill.total, machine)
        compared = (ratio(machine, bill.total), ratio(peer.total, bill.total))
        columns.append([*(f"{part:.2f}" for part in parts), *compared])
    titles = [OPERATIONS, "データ", "リクエスト", "コンピューティング", "合計", "Step Functions"]
    titles += ["Step Functions / 合計", "公開例の合計 / 合計"]
    show(
        f"2. 注文 {prices.ORDERS:,} 件の料金（米ドル、{prices.REGION}、{prices.DATE}の公開料金）",
        ("", *(flow.title for flow in SHOWN)),
        zip(titles, *columns, strict=True),
        f"データ: 書き込みと {days} 日の保存。コンピューティング: 実測時間 x {memory} MB、arm64",
        "Step Functions: Standard の状態遷移だけの料金。呼び出す Lambda の料金は含まない",
        "どちらにも含まないもの: 無料枠、ログ、転送、税、AWS での通信とコールドスタートの時間",
    )


def show_lines(costs: Sequence[Cost]) -> None:
    show(
        "3. 注文の行数を増やすと",
        ("1 件あたり", *(f"{lines} 行" for lines in LINES)),
        [
            (OPERATIONS, *(cost.operations for cost in costs)),
            (CALLS, *(cost.calls for cost in costs)),
            (WRITTEN, *(cost.written for cost in costs)),
            ("入力と結果を含むデータ（バイト）", *(cost.stored for cost in costs)),
        ],
        "ステップの結果に行を含めないので、増えるのは、AWS が保存する入力だけである",
    )


def show(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], *notes: str) -> None:
    """文字の列は左、数の列は右にそろえて表示する。notes は表の下の注。"""
    body = [[str(cell) for cell in row] for row in rows]
    columns = [aligned(column) for column in zip(header, *body, strict=True)]
    print(f"\n{title}")
    for row in zip(*columns, strict=True):
        print("  " + "  ".join(row).rstrip())
    for note in notes:
        print(f"  ・{note}")


def aligned(column: Sequence[str]) -> list[str]:
    spaces = [" " * (max(map(width, column)) - width(cell)) for cell in column]
    numbers = column[1][:1].isdigit()
    return [
        space + cell if numbers else cell + space
        for cell, space in zip(column, spaces, strict=True)
    ]


def ratio(value: float, base: float) -> str:
    return f"{value / base:.1f}x"


if __name__ == "__main__":
    main()
