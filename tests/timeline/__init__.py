"""実行の図: 履歴だけから、時間の流れを 80 桁以内の ASCII で描く。

    *  完了    x  失敗した試行    |  待機の開始    -  待機    #  動いている

履歴は boto3 の get_durable_execution_history が返す Events で、ペイロードはなくてよい。
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

Event = Mapping[str, Any]
Change = tuple[str, str, Event]  # StepStarted なら、Step と Started
Row = tuple[str, list[Change], int]  # 名前、経過、含む操作の数

WIDTH = 80
NAME_WIDTH = 20
ROWS = 40
MARKS = " -#|*x"  # 同じ桁に重なったら、右にあるものを描く
OPERATION = r"(?!Exec|Invoc)(\w+?)(Started|Succeeded|Failed|TimedOut|Stopped|Cancelled)"
ONGOING = RUNNING, PAUSED = "実行中", "一時停止中"
CUT_OFF = TIMED_OUT, STOPPED = "TIMED_OUT で終了", "STOPPED で終了"
STATUS = {
    "ExecutionPaused": PAUSED,
    "ExecutionResumed": RUNNING,
    "ExecutionSucceeded": "",
    "ExecutionFailed": "FAILED で終了",
    "ExecutionTimedOut": TIMED_OUT,
    "ExecutionStopped": STOPPED,
}


class Invocation(NamedTuple):
    """1 回の呼び出し。died は、結果を返さずに終わったことを示す。"""

    begin: datetime
    end: datetime
    died: bool = False


def draw(
    events: Sequence[Event],
    now: datetime,
    invocations: Sequence[tuple[datetime, datetime | None]] | None = None,
    most_rows: int = ROWS,
) -> str:
    """古い順の履歴を図にする。終わっていなければ now まで描く。

    invocations は、履歴から分からないときの、呼び出しの開始と終了（強制終了されたなら None）。
    """
    status = status_of(events)
    times = [event["EventTimestamp"] for event in events] or [now]
    latest = max([*times, now] if status in ONGOING else times)
    if invocations is None:
        runs = in_history(events, latest)
    else:
        runs = [Invocation(begin, end or begin, end is None) for begin, end in invocations]
        if runs and runs[-1].died and status not in CUT_OFF:
            runs[-1] = Invocation(runs[-1].begin, latest)  # まだ動いているか、いま結果を返した
    ran = duration(sum((run.end - run.begin for run in runs), timedelta()))
    total = f"動いていたのは {ran}{'以上' if invocations and any(r.died for r in runs) else ''}"

    operations: dict[Any, list[Change]] = {}
    for event in events:
        if match := re.fullmatch(OPERATION, event["EventType"]):
            operations.setdefault(event.get("Id"), []).append((match[1], match[2], event))
    shown = rows_of(operations, most_rows)
    names = ["", *(label for label, _, _ in shown), "呼び出し"]
    margin = max(map(width, names)) + 2
    end = max([latest, *(run.end for run in runs)])
    chart = Chart(min(times), end, WIDTH - margin - 3 - width(total), runs)
    rows = [f"{chart.scale()}   {status}", *(chart.operation(changes) for _, changes, _ in shown)]
    rows.append(f"{chart.invocations()}   {total}")
    lines = zip(names, rows, strict=True)
    return "\n".join(f"{name}{' ' * (margin - width(name))}{row}".rstrip() for name, row in lines)


def status_of(events: Sequence[Event]) -> str:
    known = (STATUS[event["EventType"]] for event in events if event["EventType"] in STATUS)
    return [RUNNING, *known][-1]


def in_history(events: Sequence[Event], latest: datetime) -> list[Invocation]:
    """終わった呼び出しと、その後のイベントで分かる、latest に動いている呼び出し。"""
    found, begin, paused = [], None, False
    for event in events:
        kind, time = event["EventType"], event["EventTimestamp"]
        if kind == "InvocationCompleted":
            run, begin = event["InvocationCompletedDetails"], None
            found.append(Invocation(run["StartTimestamp"], run["EndTimestamp"], "Error" in run))
        elif kind in ("ExecutionPaused", "ExecutionResumed"):
            paused = kind == "ExecutionPaused"  # その間に完了した待機の続きは、再開してから動く
            begin = time if begin and not paused else None
        elif kind not in STATUS:
            begin = begin or time
    return found + ([Invocation(begin, latest)] if begin and not paused else [])


def rows_of(operations: Mapping[Any, list[Change]], most: int) -> list[Row]:
    """most 行までの行。子は親の下に字下げする。収まらなければ、どの親の下も途中を省く。"""
    children = defaultdict(list)
    for key, [(_, _, event), *_] in operations.items():
        parent = event.get("ParentId")
        children[parent if parent in operations else "root"].append(key)

    def below(parent: Any, indent: str, shown: int) -> list[Row]:
        groups = []
        for key in children[parent]:
            kind, _, event = operations[key][0]
            name = event.get("Name") or event.get("SubType") or kind
            row = (short(indent + name), operations[key], 1)
            groups.append([row, *below(key, f"{indent}  "[:8], shown)])
        middle = slice(shown - shown // 2, len(groups) - shown // 2)
        if left_out := sum(count for group in groups[middle] for _, _, count in group):
            groups[middle] = [[(f"{indent}… ほか {left_out} 行", [], left_out)]]
        return [row for group in groups for row in group]

    every = (below("root", "", shown) for shown in range(most, 0, -1))
    return next((rows for rows in every if len(rows) <= most), below("root", "", 1))


class Chart(NamedTuple):
    """start から end までを columns 桁に割り当てる。"""

    start: datetime
    end: datetime
    columns: int
    runs: Sequence[Invocation]

    def scale(self) -> str:
        right = duration(self.end - self.start)
        left = f"0 {right.split()[1]}"
        return left + " " * (self.columns - width(left + right)) + right

    def invocations(self) -> str:
        row = [" "] * self.columns
        for run in self.runs:
            self.fill(row, run.begin, run.end, "#")
            if run.died:
                self.fill(row, run.end, run.end, "x")
        return "".join(row)

    def operation(self, changes: Sequence[Change]) -> str:
        row = [" "] * self.columns
        ends = [event["EventTimestamp"] for _, _, event in changes[1:]]
        for (kind, change, event), following in zip(changes, [*ends, None], strict=False):
            begin, end = event["EventTimestamp"], following or self.end
            details = event.get(f"{event['EventType']}Details", {})
            retried = details.get("RetryDetails", {}).get("NextAttemptDelaySeconds")
            mark = {"Started": "|", "Succeeded": "*"}.get(change, "x")
            if following or retried or change == "Started":
                self.fill(row, begin, end, "-")
            if (kind, change) == ("Step", "Started"):
                mark = "#"
                for run in self.runs:  # 強制終了されて次の呼び出しを待つ間は、動いていない
                    if run.begin <= end:
                        self.fill(row, max(begin, run.begin), min(end, run.end), mark)
            column = self.column(begin)
            if (row[column], mark) == ("x", "*"):  # 失敗した後の完了は、隣に並べる
                column = max(column, 1)
                row[column - 1 : column + 1] = "x*"
            self.fill(row, begin, begin, mark)
        return "".join(row)

    def fill(self, row: list[str], begin: datetime, end: datetime, mark: str) -> None:
        first, last = self.column(begin), self.column(end)
        if mark == "#" and last < self.columns - 1:  # 短い呼び出しを、桁をまたいで長く見せない
            last = max(first, last - 1)
        for column in range(first, last + 1):
            row[column] = max(row[column], mark, key=MARKS.index)

    def column(self, time: datetime) -> int:
        whole = self.end - self.start
        share = (time - self.start) / whole if whole else 0
        return round(min(max(share, 0), 1) * (self.columns - 1))


def short(name: str) -> str:
    """表示できない文字を置き換え、長ければ切り詰める。"""
    name = "".join(char if char.isprintable() else "?" for char in name)
    while width(name) > NAME_WIDTH:
        name = f"{name.removesuffix('..')[:-1]}.."
    return name


def duration(time: timedelta) -> str:
    for unit, name in ((86400, "日"), (3600, "時間"), (60, "分")):
        if time.total_seconds() >= 2 * unit:
            return f"{time.total_seconds() / unit:.1f} {name}"
    return f"{max(time.total_seconds(), 0):.1f} 秒"


def width(text: str) -> int:
    """ターミナルでの桁数。全角文字は 2 桁。"""
    return sum(2 if unicodedata.east_asian_width(char) in "WFA" else 1 for char in text)
