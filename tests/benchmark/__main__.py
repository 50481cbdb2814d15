"""`python -m tests.benchmark`: 注文 1 件の費用と速さを測り、表にする。

`--quick` は手元の AWS と DBOS を動かさず、数えるだけで済む表を出す。
"""

import argparse
import logging
import os
import platform
import sys

import app
import deploy

from . import code_size, cold_start, engines, local_orders, prices, published
from .per_order import FLOORS, FLOWS, Cost, measure, order_of_lines
from .table import ratio, share, show

LINES = (1, 10, 100)
ORDERS = (1, 10, 100)
SINGLES = 5  # 1 件の時間は揺れるので、続けて測って平均する
Costs = dict[str, tuple[Cost, Cost]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark")
    parser.add_argument("--quick", action="store_true", help="手元の AWS と DBOS を動かさない")
    quick = parser.parse_args().quick
    logging.disable(logging.CRITICAL)
    print("注文 1 件の費用と速さ。この 1 回の実行で測った値で、比は基準を 1.0x とする。")
    print(f"Python {platform.python_version()}、CPU {os.cpu_count()} 個。")
    costs = {
        flow.title: (
            measure(app.handler, flow.order, flow.answer),
            measure(published.handler, flow.order, flow.answer),
        )
        for flow in FLOWS
    }
    show_orders(costs)
    show_prices(costs)
    show_cold_start(rounds=1 if quick else 9)
    show_lines()
    if not quick:
        show_local_speed()
    return 0


def show_orders(costs: Costs) -> None:
    rows: list[tuple[object, ...]] = []
    for flow in FLOWS:
        ours, theirs = costs[flow.title]
        for n, (title, mine, floor, peer) in enumerate(
            [
                ("課金操作", ours.billed, flow.billed, theirs.billed),
                ("チェックポイント", ours.calls, flow.calls, theirs.calls),
                ("起動", ours.invocations, flow.invocations, theirs.invocations),
                ("書き込み (バイト)", ours.written, ours.written_floor, theirs.written),
                ("リプレイ (バイト)", ours.replayed, ours.replayed_floor, theirs.replayed),
            ]
        ):
            name = "" if n else flow.title
            rows.append((name, title, floor, mine, ratio(mine, floor), peer, ratio(peer, floor)))
    show(
        "1. 注文 1 件",
        ("", "", "下限", "app.py", "下限比", "公開例", "下限比"),
        rows,
        *FLOORS,
        "公開例: 同じ流れを AWS の例の書き方で。wait_for_callback、既定の SerDes、既定の再試行",
    )


def show_prices(costs: Costs) -> None:
    settings = deploy.desired_settings("role")
    memory, days = settings["MemorySize"], settings["DurableConfig"]["RetentionPeriodInDays"]
    rows = []
    for title, pair in costs.items():
        ours, theirs = (prices.bill(cost, memory, days) for cost in pair)
        machine = prices.step_functions(title)
        data = ours.written + ours.retained
        parts = (ours.operations, data, ours.requests, ours.compute, ours.total)
        peers = (ratio(theirs.total, ours.total), f"{machine:.2f}", ratio(machine, ours.total))
        rows.append((title, *(f"{part:.2f}" for part in parts), *peers))
    show(
        f"2. 注文 {prices.ORDERS:,} 件の値段 (米ドル、{prices.REGION})",
        ("", "操作", "データ", "呼び出し", "計算", "合計", "公開例", "Step Functions", "比"),
        rows,
        f"計算: 測った起動時間 x {memory} MB x arm64。データ: {days} 日残す分を含む",
        "Step Functions: Standard の遷移の値段だけ。そこから呼ぶ Lambda の値段は含まない",
        "含まないもの: 無料枠、ログ、転送、税、AWS での通信とコールドスタートの時間",
    )


def show_cold_start(rounds: int) -> None:
    times = cold_start.import_seconds(rounds)
    sdk = times[cold_start.SDK]
    size, own = cold_start.zip_sizes()
    show(
        "3. コールドスタート",
        ("", "値", "SDK 比"),
        [
            ("import app", "", ratio(times["app"], sdk)),
            ("import boto3", "", ratio(times["boto3"], sdk)),
            ("zip のバイト数", f"{size:,}", ratio(size, size - own)),
        ],
        f"import: 新しいプロセスで交互に {rounds} 回ずつ測った、中央値の比",
        "下限は 1.0x。SDK は boto3 を必ず読み込み、app.py がほかに読むのは標準ライブラリだけ",
    )


def show_lines() -> None:
    costs = [measure(app.handler, order_of_lines(n)) for n in LINES]
    replayed = [cost.replayed - cost.replayed_input for cost in costs]
    show(
        "4. 注文の行数を増やすと",
        ("1 件あたり", *(f"{n} 行" for n in LINES)),
        [
            ("課金操作", *(cost.billed for cost in costs)),
            ("チェックポイント", *(cost.calls for cost in costs)),
            ("書き込み (バイト)", *(cost.written for cost in costs)),
            ("リプレイ (バイト)", *replayed),
            ("リプレイで届く入力 (バイト)", *(cost.replayed_input for cost in costs)),
            ("起動時間の比", *(ratio(sum(c.seconds), sum(costs[0].seconds)) for c in costs)),
        ],
        "平らなのは、ステップの結果に行を入れないから。入力だけは AWS が起動のたびに全部渡す",
    )


def show_local_speed() -> None:
    batches = local_orders.batches({orders: SINGLES if orders == 1 else 1 for orders in ORDERS})
    alone, most = batches[0], batches[-1]
    show(
        "5. 手元の AWS に同時に注文すると",
        ("1 件あたり", *(f"{batch.orders} 件" for batch in batches)),
        [
            ("チェックポイント", *(f"{batch.calls:.1f}" for batch in batches)),
            ("チェックポイントの要求 (バイト)", *(f"{batch.written:.0f}" for batch in batches)),
            ("時間の比", *(ratio(batch.per_order, alone.per_order) for batch in batches)),
        ],
        "費用は平ら。時間が縮むのは、起動の終わりの待ち (表 7) が重なるから",
    )

    ours = engines.official_runner()
    stages = local_orders.first_order()
    local_aws = engines.Speed(sum(stages.values()), 1 / alone.per_order, 1 / most.per_order)
    rows = [
        ("公式ランナー", ours, len(engines.OUR_COMMANDS), "app.py"),
        ("手元の AWS", local_aws, len(local_orders.COMMANDS), "app.py"),
    ]
    notes = []
    try:
        theirs, database, commands = engines.dbos()
        rows.append((f"DBOS ({database})", theirs, len(commands), engines.DBOS_SCRIPT))
    except engines.UnavailableError as error:
        notes.append(f"DBOS を測れなかった理由: {error}")
    show(
        "6. 手元の速さ。待ち時間はどれも飛ばす",
        ("", "最初の注文まで", "1 件ずつ", f"{engines.AT_ONCE} 件同時", "コマンド", "行数"),
        [
            (
                name,
                f"{speed.first:.1f} 秒",
                f"{speed.one_by_one:.1f} 件/秒",
                f"{speed.at_once:.1f} 件/秒",
                commands,
                code_size.workflow_lines(path),
            )
            for name, speed, commands, path in rows
        ],
        *notes,
        "最初の注文まで: pip install のあと、最初のコマンドから 1 件目が終わるまで",
        "行数: ワークフロー、ステップ、再試行の定義。空行、コメント、docstring は除く",
        "公式ランナー: 一つのプロセス、記録はメモリ。手元の AWS: 別のプロセスと HTTP",
        "DBOS: 一つのプロセスとデータベース。待つ間もプロセスが要り、件数はディスクの速さで変わる",
    )

    invocations = FLOWS[0].invocations
    idle = invocations * ours.idle_invocation
    show(
        "7. 何が時間を占めるか",
        ("", "割合"),
        [
            (
                f"公式ランナーの 1 件のうち、何もしない起動 {invocations} 回分",
                share(idle * ours.one_by_one),
            ),
            (
                f"手元の AWS の 1 件のうち、何もしない起動 {invocations} 回分",
                share(idle / alone.per_order),
            ),
            *(
                (f"手元の AWS の最初の注文までのうち、{stage}", share(seconds / local_aws.first))
                for stage, seconds in stages.items()
            ),
        ],
        "何もしない起動にもかかる時間: SDK のスレッドが、終わりの合図を 0.1 秒おきに見る",
    )


if __name__ == "__main__":
    sys.exit(main())
