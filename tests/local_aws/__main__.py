"""`python -m tests.local_aws`: 貼り付ける export を表示し、注文の経過を 1 行ずつ表示する。"""

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import threading
import time

if __package__ != "tests.local_aws":
    sys.exit("README.md のあるフォルダーで、`python -m tests.local_aws` を実行してください。")
try:
    from .gateway import LocalAws
except ModuleNotFoundError as error:
    cure = "`.venv/bin/pip install -r tests/requirements.txt` を実行してください。"
    sys.exit(f"パッケージ {error.name} がありません。{cure}")

WELCOME = """\
ローカル AWS が起動しました（停止は Ctrl-C）。\
停止するとすべて失われ、「1. IAM ロールの作成」からやり直しになります。
別のターミナルに次の行を貼り付けてください:

export AWS_ENDPOINT_URL={endpoint}
export AWS_ACCESS_KEY_ID={access_key} AWS_SECRET_ACCESS_KEY=local
export AWS_DEFAULT_REGION=ap-northeast-1 AWS_REGION=ap-northeast-1 AWS_PAGER=
export no_proxy=127.0.0.1,${{no_proxy:-$NO_PROXY}}; export NO_PROXY=$no_proxy
unset AWS_PROFILE AWS_SESSION_TOKEN
"""


def show(text: str) -> None:
    """表示できなくても、注文の処理は続ける。"""
    with contextlib.suppress(OSError):
        # 改行と分けて書くと、別のスレッドの行と混ざる。
        print(f"{text}\n", end="", flush=True)


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # 表示できない文字は ? になる
    parser = argparse.ArgumentParser(prog="python -m tests.local_aws", description="ローカル AWS")
    parser.add_argument("--port", type=int, default=4566, help="ポート番号（0 なら空きポート）")
    parser.add_argument("--speed", type=float, default=1, help="待機の時計の速さ（倍率）")
    options = parser.parse_args()
    if not 0 < options.speed <= 10_000:
        sys.exit("--speed は 0 より大きく 10,000 以下にしてください。")
    try:
        aws = LocalAws(options.port, options.speed, lambda line: show(time.strftime("%X  ") + line))
    except (OSError, OverflowError) as error:  # OverflowError は 65535 より大きい番号
        reason = os.strerror(getattr(error, "errno", errno.EINVAL))
        cure = "起動したままのローカル AWS を使うか、--port で別の番号を指定してください。"
        sys.exit(f"ポート {options.port} は使用できません（{reason}）。{cure}")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with aws:
        show(WELCOME.format(endpoint=aws.endpoint, access_key=aws.access_key))
        stop.wait()
    show("\nローカル AWS を停止しました。")


if __name__ == "__main__":
    main()
