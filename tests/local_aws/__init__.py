"""手元の AWS: アカウントなしで同じコマンドを試すための IAM、Lambda、CloudWatch Logs。

`python -m tests.local_aws` で動く。三つのものが仕事をし、ここはそれをつなぐだけ。

    moto             ロール、ポリシー、関数、版、ロググループ
    公式ランナー     durable 実行、タイマー、再試行、コールバック、履歴
    ワーカー         デプロイされた zip を走らせるプロセス (kill してよい)

この演習で使わないことを頼むと、そう書いた誤りを返す。答えるのは、署名のある要求だけ。
ブラウザーのページから来た要求は、何も読まずに断る。

AWS との違いは tests/README.md の「手元の AWS が省くもの」にある。
"""

import os

# moto は読み込まれるときにこれを見る。AWSLambdaBasicExecutionRole などを使えるようにし、
# どのページにも答えを読ませない。
os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = os.environ["MOTO_DISABLE_GLOBAL_CORS"] = "true"
ACCOUNT = "123456789012"
