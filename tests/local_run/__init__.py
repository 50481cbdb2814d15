"""`python app.py` の実装: 注文 1 件を公式ローカルランナーで処理し、中断しても再開する。

このファイルと screen.py は、動かせない環境でもその旨を表示できるように、古い Python でも
構文エラーにならない書き方にする。import も、Ctrl-C の扱いを決めるまでは最小限にする。
"""

import sys

from .screen import prepare, stop

README_ORDER = {
    "order_id": "order-123",
    "items": [{"product_id": "prod-001", "name": "Widget", "price": 1000, "quantity": 2}],
}


def main(program: str) -> None:
    """引数の注文（なければ README の注文）を program（app.py）で完了まで処理し、結果を表示する。

    できなければ、対処方法を 1 文で示して終了コード 1 で終わる。Ctrl-C では 130 で終わる。
    """
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
