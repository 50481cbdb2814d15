"""`python app.py` の実装: 注文 1 件を公式ローカルランナーで処理し、中断しても再開する。

このファイルと screen.py は、動かせない環境でもそう言えるように、古い Python でも読めるようにする。
"""

import re
import sys
from importlib import metadata
from pathlib import Path

from .screen import prepare, stop

README_ORDER = {
    "order_id": "order-123",
    "items": [{"product_id": "prod-001", "name": "Widget", "price": 1000, "quantity": 2}],
}
INSTALL = (
    "README の「まず 1 件動かす」のコマンドで .venv を作り、.venv/bin/python を使ってください。"
)


def main(program: str) -> None:
    """引数の注文（なければ README の注文）を program（app.py）で完了まで処理し、結果を表示する。

    できなければ、対処方法を 1 文で示して終了コード 1 で終わる。Ctrl-C では 130 で終わる。
    """
    prepare()
    path = Path(program).resolve()
    problem = unusable_environment(path.with_name("requirements.txt"))
    if problem:
        stop(problem, 1)
    from .order import load, process

    process(load(path), sys.argv[1:])


def unusable_environment(requirements: Path) -> "str | None":
    """注文を処理できない環境なら、その理由と対処方法を返す。まだ何にも触れていない。"""
    if sys.version_info < (3, 11):  # noqa: UP036
        version = "{}.{}".format(*sys.version_info)
        return f"Python 3.11 以降が必要です（これは {version} です）。{INSTALL}"
    try:
        import fcntl  # noqa: F401
    except ModuleNotFoundError:
        return "Windows では動きません。WSL か AWS CloudShell で実行してください。"
    pins = re.findall(
        r"^(aws-durable-execution-\S+)==(\S+)$", requirements.read_text("utf-8"), re.MULTILINE
    )
    for name, pinned in pins:
        installed = [found.version for found in metadata.distributions(name=name)][:1]
        if not installed:
            return f"{name} がインストールされていません。{INSTALL}"
        if installed != [pinned]:  # 別のバージョンで再開すると、注文が失敗しうる
            return f"{name} のバージョンが requirements.txt の {pinned} と違います。{INSTALL}"
    return None
