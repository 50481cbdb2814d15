"""公式ランナーの、起こし損ねることのない Executor。"""

from aws_durable_execution_sdk_python_testing.executor import Executor


class SteadyExecutor(Executor):
    """時間の来た待ちや再試行を済ませた実行を、必ずもう一度起動する。

    ランナー 1.4.0 は、操作を済ませてから起動を頼むまでの間にタイマーを取り消されると、その実行を
    二度と起動しない。混んだ機械では注文が RUNNING のまま残るので、取り消されない場所で起動を頼む。
    """

    def _fire_due_operations(self, execution_arn: str) -> bool:
        if super()._fire_due_operations(execution_arn):
            self._invoke_execution(execution_arn)
        return False  # 起動はもう頼んだ
