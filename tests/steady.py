"""公式ランナーの、起こし損ねることのない版。テスト、`python app.py`、手元の AWS が使う。"""

from aws_durable_execution_sdk_python_testing import runner
from aws_durable_execution_sdk_python_testing.executor import Executor
from aws_durable_execution_sdk_python_testing.runner import DurableFunctionTestRunner

__all__ = ["DurableFunctionTestRunner", "SteadyExecutor"]


class SteadyExecutor(Executor):
    """時間の来た待ちや再試行を済ませた実行を、必ずもう一度起動する。

    ランナー 1.4.0 は、操作を済ませてから起動を頼むまでの間にタイマーを取り消されると、その実行を
    二度と起動しない。混んだ機械では注文が RUNNING のまま残るので、取り消されない場所で起動を頼む。
    """

    def _fire_due_operations(self, execution_arn: str) -> bool:
        if super()._fire_due_operations(execution_arn):
            self._invoke_execution(execution_arn)
        return False  # 起動はもう頼んだ


# ランナーには Executor を選ぶ口がない。差し替える場所はここだけ。
runner.Executor = SteadyExecutor  # type: ignore[attr-defined]
