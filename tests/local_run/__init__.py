"""`python app.py` の実装: 注文 1 件を公式ローカルランナーで処理し、中断しても再開する。

このファイルと screen.py は、古い Python でも構文エラーにならない書き方にする。
"""

import sys

from .screen import prepare, stop

README_ORDER = {
    "order_id": "order-123",
    "items": [{"product_id": "prod-001", "name": "Widget", "price": 1000, "quantity": 2}],
}


def main(program: str) -> None:
    """引数の注文（なければ README の注文）を処理する。できなければ、対処方法を 1 文で示す。"""
    prepare()
    try:
        from .order import load, process
    except ImportError as error:  # 古い Python には SDK が、Windows には fcntl がない
        version = "{}.{}".format(*sys.version_info)
        stop(
            f"この Python（{version}）では {error.name} を使えません。Python 3.11 以降と、"
            "README の「まず 1 件動かす」のコマンドで .venv を作り、.venv/bin/python を"
            "使ってください（Windows では WSL か AWS CloudShell で）。",
            1,
        )
    process(load(program), sys.argv[1:])
