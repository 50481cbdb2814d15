"""`python -m tests.local_aws`: 貼り付ける export を示し、起きたことを 1 行ずつ見せる。"""

import argparse
import errno
import logging
import signal
import sys
import threading
import time

from .gateway import LocalAws

EXPORTS = """\
export AWS_ENDPOINT_URL={endpoint}
export AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local
export AWS_DEFAULT_REGION=ap-northeast-1 AWS_REGION=ap-northeast-1 AWS_PAGER=
export no_proxy=127.0.0.1,${{no_proxy:-$NO_PROXY}}
export NO_PROXY=$no_proxy
unset AWS_PROFILE AWS_SESSION_TOKEN
"""


def show(line: str) -> None:
    # 改行と分けて書くと、別のスレッドの行と混ざる。
    print(f"{time.strftime('%H:%M:%S')}  {line}\n", end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.local_aws", description="手元の AWS (IAM, Lambda, CloudWatch Logs)"
    )
    parser.add_argument("--port", type=int, default=4566, help="0 なら空いているポート")
    parser.add_argument("--skip-time", action="store_true", help="待ち時間と再試行をすぐ終える")
    options = parser.parse_args()
    # 端末には注文に起きたことだけを見せる。
    for name in ("moto", "aws_durable_execution_sdk_python_testing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    try:
        aws = LocalAws(options.port, options.skip_time, show)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        sentence = f"ポート {options.port} は使われています。--port で別の番号を選んでください。"
        print(sentence, file=sys.stderr)
        return 1
    with aws:
        print("手元の AWS が動いています。別の端末に次の行を貼ってください (Ctrl-C で終わり):\n")
        print(EXPORTS.format(endpoint=aws.endpoint), flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
