"""注文の図: 実行の履歴だけから、時間の流れを 80 桁以内の ASCII で描く。

    *  完了    x  失敗した試行    |  待機の開始    -  待機    #  動いている

履歴は boto3 の get_durable_execution_history が返す Events で、ペイロードはなくてよい。
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

Event = Mapping[str, Any]
Change = tuple[str, str, Event]  # StepStarted なら、Step と Started

WIDTH = 80
NAME_WIDTH = 20
MARKS = " -#|*x"  # 同じ桁に重なったら、右にあるものを描く
OPERATION = re.compile(
    r"(?!Execution|Invocation)(\w+?)(Started|Succeeded|Failed|TimedOut|Stopped|Cancelled)"
)
RUNNING = "実行中"
STATUS = {
    "ExecutionSucceeded": "",
    "ExecutionFailed": "FAILED で終了",
    "ExecutionTimedOut": "TIMED_OUT で終了",
    "ExecutionStopped": "STOPPED で終了",
}


@dataclass(frozen=True)
class Invocation:
    """1 回の呼び出し。died は、結果を返さずに終わったことを示す。"""

    begin: datetime
    end: datetime
    died: bool = False


def draw(
    events: Sequence[Event],
    now: datetime,
    invocations: Sequence[tuple[datetime, datetime | None]] | None = None,
) -> str:
    """古い順の履歴を図にする。実行中なら now まで描く。

    invocations は、呼び出しの開始と終了（強制終了などで分からなければ None）。履歴に残らない
    呼び出しもあるときに、履歴の代わりに使う。
    """
    status = next((STATUS[e["EventType"]] for e in events if e["EventType"] in STATUS), RUNNING)
    times = [event["EventTimestamp"] for event in events] or [now]
    latest = max([*times, now] if status == RUNNING else times)
    if invocations is None:
        runs = in_history(events, latest if status == RUNNING else None)
    else:
        runs = [Invocation(begin, end or begin, end is None) for begin, end in invocations]
        if status == RUNNING and runs and runs[-1].died:
            runs[-1] = Invocation(runs[-1].begin, latest)
    ran = duration(sum((run.end - run.begin for run in runs), timedelta()))
    at_least = "以上" if invocations and any(run.died for run in runs) else ""
    total = f"動いていたのは {ran}{at_least}"

    operations: dict[Any, list[Change]] = {}
    for event in events:
        if match := OPERATION.fullmatch(event["EventType"]):
            operations.setdefault(event.get("Id"), []).append((match[1], match[2], event))
    labels = (short(event.get("Name") or kind) for (kind, _, event), *_ in operations.values())
    names = ["", *labels, "呼び出し"]
    margin = max(map(width, names)) + 2
    end = max([latest, *(run.end for run in runs)])
    chart = Chart(min(times), end, WIDTH - margin - 3 - width(total), runs)
    rows = [
        f"{chart.scale()}   {status}",
        *map(chart.operation, operations.values()),
        f"{chart.invocations()}   {total}",
    ]
    lines = zip(names, rows, strict=True)
    return "\n".join(f"{name}{' ' * (margin - width(name))}{row}".rstrip() for name, row in lines)


def in_history(events: Sequence[Event], now: datetime | None) -> list[Invocation]:
    """終わった呼び出しと、now があれば、その後のイベントで分かる今の呼び出し。"""
    found, begin = [], None
    for event in events:
        begin = begin or event["EventTimestamp"]
        if event["EventType"] == "InvocationCompleted":
            details, begin = event["InvocationCompletedDetails"], None
            run = Invocation(details["StartTimestamp"], details["EndTimestamp"], "Error" in details)
            found.append(run)
    return found + ([Invocation(begin, now)] if begin and now else [])


@dataclass(frozen=True)
class Chart:
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

    def operation(self, history: Sequence[Change]) -> str:
        row = [" "] * self.columns
        ends = [event["EventTimestamp"] for _, _, event in history[1:]]
        for (kind, change, event), following in zip(history, [*ends, None], strict=True):
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
    if width(name) <= NAME_WIDTH:
        return name
    while width(name) > NAME_WIDTH - 2:
        name = name[:-1]
    return f"{name}.."


def duration(time: timedelta) -> str:
    for unit, name in ((86400, "日"), (3600, "時間"), (60, "分")):
        if time.total_seconds() >= 2 * unit:
            return f"{time.total_seconds() / unit:.1f} {name}"
    return f"{max(time.total_seconds(), 0):.1f} 秒"


def width(text: str) -> int:
    """ターミナルでの桁数。全角文字は 2 桁。"""
    return sum(2 if unicodedata.east_asian_width(char) in "WFA" else 1 for char in text)
