"""端末で桁のそろう表。全角文字は 2 桁と数える。"""

import unicodedata
from collections.abc import Iterable, Sequence


def width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WFA" else 1 for char in text)


def show(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], *notes: str) -> None:
    """文字の列は左、数の列は右にそろえて表示する。notes は表の下の短い説明。"""
    body = [[str(cell) for cell in row] for row in rows]
    columns = [aligned(column) for column in zip(header, *body, strict=True)]
    print(f"\n{title}")
    for row in zip(*columns, strict=True):
        print("  " + "  ".join(row).rstrip())
    for note in notes:
        print(f"  ・{note}")


def aligned(column: Sequence[str]) -> list[str]:
    numbers = any(cell[:1].isdigit() for cell in column[1:])
    widest = max(map(width, column))
    spaces = [" " * (widest - width(cell)) for cell in column]
    pairs = zip(column, spaces, strict=True)
    return [space + cell if numbers else cell + space for cell, space in pairs]


def ratio(value: float, base: float) -> str:
    return f"{value / base:.1f}x"


def share(part: float) -> str:
    return f"{part:.0%}"
