"""ワークフローのコードの行数。空行、コメント、docstring は数えない。"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
# デコレーターの付いた関数 (ワークフローとステップ) のほかに数える、再試行のための定義
RETRY_PARTS = {"RETRY", "STEP", "is_unanswered"}


def workflow_lines(path: str) -> int:
    source = (ROOT / path).read_text("utf-8")
    return sum(code_lines(node, source.splitlines()) for node in parts(ast.parse(source)))


def parts(module: ast.Module) -> list[ast.stmt]:
    found: list[ast.stmt] = []
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and (node.decorator_list or node.name in RETRY_PARTS):
            found.append(node)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in RETRY_PARTS:
            found.append(node)
    return found


def code_lines(node: ast.stmt, lines: list[str]) -> int:
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    assert node.end_lineno
    numbers = set(range(first, node.end_lineno + 1))
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef) and ast.get_docstring(inner) is not None:
            text = inner.body[0]
            numbers -= set(range(text.lineno, (text.end_lineno or 0) + 1))
    return sum(lines[n - 1].strip() != "" and lines[n - 1].strip()[0] != "#" for n in numbers)
