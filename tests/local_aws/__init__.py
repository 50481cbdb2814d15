"""手元の AWS: アカウントなしで同じコマンドを試すための IAM、Lambda、CloudWatch Logs。

`python -m tests.local_aws` で動く。三つのものが仕事をし、ここはそれをつなぐだけ。

    moto             ロール、ポリシー、関数、版、ロググループ
    公式ランナー     durable 実行、タイマー、再試行、コールバック、履歴
    ワーカー         デプロイされた zip を走らせるプロセス (kill してよい)

この演習で使わないことを頼むと、そう書いた誤りを返す。答えるのは、署名のある要求だけ。
ブラウザーのページから来た要求は、何も読まずに断る。

AWS と違うところ。AWS そのものの上では動かしていない。

- 確かめる権限は、関数のロールのチェックポイント、状態の取得、ログの書き込みだけ。
  Condition や NotAction のある Allow は許さない。署名の中身と参加者の権限は見ない。
- ペイロードの大きさは確かめない。
- 何も保存しない。終われば、関数も実行も消える。RetentionPeriodInDays は覚えるだけ。
- 関数はすぐ Active になり、Runtime と Architectures によらず手元の Python で走る。
  メモリーや /tmp の上限、レイヤー、VPC、X-Ray、環境変数の暗号化はない。
- DurableConfig のない関数は、作れるが呼べない。context.invoke はほかの関数を呼べない。
- ログはいつも JSON。LoggingConfig を渡さない関数もそうなり、Text を選んだ関数は呼べない。
  呼び出しの始まりと終わりの行は残らない。いつ動いたかは履歴にある。
- 同時に走る呼び出しはリージョンごとに 12 まで。それより先は順番を待つ。
- 失敗した呼び出しのやり直しは 5 秒おきに 5 回まで。公式ランナーの決めた数。
- RequestResponse は 15 分で打ち切って誤りを返すが、実行そのものは続く。
- delete-function は走っている実行を待たない。待っていた注文は、次に進むときに失敗する。
- 子プロセスや C 拡張が標準出力に直に書いたものは、ログに残らない。
- `--skip-time` でも、コールバックと実行全体の時間切れは本当の時間で数える。
"""

import os

# moto は読み込まれるときにこれを見る。AWSLambdaBasicExecutionRole などを使えるようにし、
# どのページにも答えを読ませない。
os.environ["MOTO_IAM_LOAD_MANAGED_POLICIES"] = os.environ["MOTO_DISABLE_GLOBAL_CORS"] = "true"
ACCOUNT = "123456789012"
