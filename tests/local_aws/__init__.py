"""ローカル AWS: アカウントなしで同じコマンドを試すための IAM、STS、Lambda、CloudWatch Logs。

`python -m tests.local_aws` で起動する。実際の処理は次の 3 つが行い、ここはそれらをつなぐ。

    moto             ロール、ポリシー、関数、バージョン、ロググループ
    公式ランナー     durable execution、タイマー、再試行、コールバック、履歴
    ワーカー         デプロイされた zip を実行するプロセス（強制終了してもよい）
起動時に表示したアクセスキーを知らない相手（Web ページも）のリクエストは、本文を読まずに拒否する。
どこまで対応するかは、tests/README.md の「ローカル AWS の範囲」にある。
"""

import os

# moto は import 時にこれを参照し、AWSLambdaBasicExecutionRole などを使えるようにする。
os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = "true"
ACCOUNT = "123456789012"
