"""コールドスタートのうち手元で測れる部分: import の時間と zip の大きさ。"""

import io
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

import deploy

ROOT = Path(__file__).parents[2]
SDK = "aws_durable_execution_sdk_python"
MODULES = (SDK, "app", "boto3")
IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def import_seconds(rounds: int) -> dict[str, float]:
    """それぞれを新しいプロセスで import する。交互に測り、機械の揺れを分け合う。"""
    times: dict[str, list[float]] = {module: [] for module in MODULES}
    for _ in range(rounds):
        for module in MODULES:
            command = [sys.executable, "-c", IMPORT.format(module)]
            times[module].append(float(subprocess.check_output(command, cwd=ROOT)))
    return {module: statistics.median(times[module]) for module in MODULES}


def zip_sizes() -> tuple[int, int]:
    """デプロイする zip のバイト数と、そのうち app.py の分。"""
    archive = deploy.build_zip()
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return len(archive), opened.getinfo("app.py").compress_size
