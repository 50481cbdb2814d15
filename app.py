"""注文処理ワークフロー: AWS Lambda durable functions のデモ。

    注文受付 → 在庫確認 → 承認待ち → 支払い処理 → 完了通知
     (step)     (step)    (wait か    (step+retry)   (step)
                          callback)
`python app.py` は AWS なしで動く。上から、ワークフロー、ステップ、入力の読み取り、外部サービス。
"""

if __name__ == "__main__":  # SDK の import より前に置く。SDK がなくても、対処方法を表示できる
    from tests.local_run import main

    main(__file__)

import hashlib
import json
import logging
import re
import time
from datetime import UTC, datetime
from typing import Any

from aws_durable_execution_sdk_python import (
    CallbackError,
    CallbackTimeoutError,
    DurableContext,
    SerDesError,
    StepContext,
    StepError,
    durable_execution,
    durable_step,
)
from aws_durable_execution_sdk_python.config import CallbackConfig, Duration, StepConfig
from aws_durable_execution_sdk_python.retries import RetryStrategyConfig, create_retry_strategy
from aws_durable_execution_sdk_python.serdes import JsonSerDes

logger = logging.getLogger(__name__)
Json = dict[str, Any]

APPROVAL_THRESHOLD = 100_000  # 円。この金額以上の注文には承認が必要
APPROVAL_TIMEOUT = Duration.from_minutes(10)
SHORT_WAIT = Duration.from_seconds(10)
EXECUTION_TIMEOUT = Duration.from_minutes(20)  # deploy.py が設定する。最長の経路も収まる


class NoAnswerError(Exception):
    """外部サービスから応答がない。処理されたかどうか分からないので、再試行する。"""


class CardDeclinedError(Exception):
    """決済代行会社がカードを拒否した。確定した応答なので、再試行しない。"""


RETRY = RetryStrategyConfig(  # 間隔は 2 秒から 2 倍ずつ、上限 5 秒。ジッターは SDK の既定の FULL
    max_attempts=4,
    initial_delay=Duration.from_seconds(2),
    backoff_rate=2,
    max_delay=Duration.from_seconds(5),
    retryable_error_types=[NoAnswerError],
)
STEP = StepConfig(create_retry_strategy(RETRY), serdes=JsonSerDes())  # 結果は履歴に JSON で残る


# ---- ワークフロー ----------------------------------------------------------------
# 待機中、ハンドラーは終了している。再開のたびに先頭から実行し直す（リプレイ）。
# 完了したステップや待機は再実行せず、記録した結果を返す。
# 時刻、乱数、外部の応答のように、実行のたびに変わるものは、必ずステップの中で使う。
@durable_execution
def handler(event: Any, context: DurableContext) -> Json:
    """注文 1 件を受付から通知まで処理し、order_id・status・total（円）を含む結果を返す。

    不正な注文は InvalidOrderError で、取り消しや通知に最後まで応答がなければそのエラーで失敗する。
    """
    logger.info("ハンドラー開始")  # リプレイのたびに出る。完了したステップのログは二度と出ない
    validate(event)  # 入力だけで決まり、リプレイしても同じなので、ステップにしない

    # 注文受付
    order = context.step(accept_order(event), config=STEP)

    # 在庫確認
    shortages = context.step(check_stock(event["items"]), config=STEP)
    if shortages:
        return context.step(notify(order, "OUT_OF_STOCK", products=shortages), config=STEP)

    # 承認待ち
    remarks: Json = {}
    if order["total"] < APPROVAL_THRESHOLD:
        context.wait(SHORT_WAIT, name="short_wait")
    else:
        # wait_for_callback よりオペレーションが 1 つ少なく、承認の依頼もほかと同じステップになる
        callback = context.create_callback("approval", CallbackConfig(timeout=APPROVAL_TIMEOUT))
        context.step(ask_approver(order, callback.callback_id), config=STEP)
        try:
            approved, remarks = read_decision(callback.result())
        except CallbackTimeoutError:
            return context.step(notify(order, "APPROVAL_TIMED_OUT"), config=STEP)
        except CallbackError as error:
            approved, remarks = False, {"reason": str(error)[:200]}
        if not approved:
            return context.step(notify(order, "REJECTED", **remarks), config=STEP)

    # 支払い処理
    # べき等性キー。再試行やリプレイでも、同じ注文の別の実行でも同じ値なので、請求は 1 回だけになる
    payment_key = f"{order['order_id']}-payment"
    try:
        payment_id = context.step(pay(order, payment_key, event.get("simulate", {})), config=STEP)
    except (StepError, SerDesError) as error:  # SerDesError は、結果を記録できなかったとき
        cause = error.error_type.rpartition(".")[2]  # 記録に残るのは app.NoAnswerError などの名前
        if cause == CardDeclinedError.__name__:
            return context.step(notify(order, "PAYMENT_DECLINED"), config=STEP)
        context.step(cancel_payment(payment_key), config=STEP)  # 請求は成立したかもしれない
        if cause == NoAnswerError.__name__:
            return context.step(notify(order, "PAYMENT_FAILED"), config=STEP)
        raise

    # 完了通知
    return context.step(notify(order, "COMPLETED", payment_id=payment_id, **remarks), config=STEP)


# ---- ステップ --------------------------------------------------------------------
# 結果を記録する前にプロセスが止まると、同じ試行番号で再実行される（at-least-once）。
# そのため外部サービスには、再実行しても変わらないべき等性キーを渡す。
@durable_step
def accept_order(ctx: StepContext, event: Json) -> Json:
    """注文を受け付け、order_id、合計 total（円）、受付時刻 accepted_at を返す。"""
    total = sum(item["price"] * item["quantity"] for item in event["items"])
    accepted_at = datetime.now(UTC).isoformat()  # リプレイでは変わる値なので、ステップで記録する
    ctx.logger.info(f"注文 {event['order_id']} を受け付けました: {total:,} 円")
    return {"order_id": event["order_id"], "total": total, "accepted_at": accepted_at}


@durable_step
def check_stock(ctx: StepContext, items: list[Json]) -> list[str]:
    """在庫が足りない商品の product_id を、最大 10 件返す。"""
    wanted: dict[str, int] = {}
    for item in items:
        wanted[item["product_id"]] = wanted.get(item["product_id"], 0) + item["quantity"]
    shortages = [product for product in wanted if wanted[product] > STOCK.get(product, 0)]
    ctx.logger.info(f"在庫を確認しました: 不足 {len(shortages)} 件")
    return shortages[:10]  # 明細が多くても、結果が上限の 256 KB を超えないように


@durable_step
def ask_approver(ctx: StepContext, order: Json, callback_id: str) -> None:
    """承認者に承認を依頼する。回答は callback_id 宛てに届く。"""
    # ID を知る人は誰でも承認できる。本番ではログに出さず、承認者だけに届く通知で渡す
    ctx.logger.info(f"{order['total']:,} 円の承認を依頼しました", extra={"callbackId": callback_id})


@durable_step
def pay(ctx: StepContext, order: Json, payment_key: str, simulate: Json) -> str:
    """合計（円）を請求し、payment_id を返す。"""
    fail_as_simulated(simulate, ctx.attempt)  # デモだけの行。本番の pay は次の行から始まる
    payment_id = charge_card(payment_key, order["total"])
    ctx.logger.info(f"{order['total']:,} 円を請求しました: {payment_id}")
    return payment_id


@durable_step
def cancel_payment(ctx: StepContext, payment_key: str) -> None:
    """成立したか分からない請求を取り消す（補償トランザクション）。成立していなければ何も起きない。"""
    cancel_charge(payment_key)
    ctx.logger.info("請求を取り消しました")


@durable_step
def notify(ctx: StepContext, /, order: Json, status: str, **details: Any) -> Json:
    """お客様に結果を通知し、通知した内容を注文の結果として返す。"""
    result = {"order_id": order["order_id"], "status": status, "total": order["total"], **details}
    send_notification(f"{order['order_id']}-{status}", result)  # 結果ごとに 1 つのべき等性キー
    ctx.logger.info(f"お客様に通知しました: {status}")
    return result


# ---- 入力の読み取り ----------------------------------------------------------------
OBJECT = r"\{.*\}", "JSON オブジェクト"  # JSON での形（正規表現）と、その説明
ID = '"[A-Za-z0-9_-]{1,64}"', "英数字、-、_ だけの 1〜64 文字"
SIMULATE = "payment_timeouts|payment_seconds|card_declined"


class InvalidOrderError(Exception):
    """注文の形式が正しくない。メッセージで、修正すべき項目を示す。"""


def validate(order: Any) -> None:
    """正しくない注文なら、修正すべき項目を示す InvalidOrderError を送出する。"""
    require("注文", order, *OBJECT)
    require("order_id", order.get("order_id"), *ID)
    require("items", order.get("items"), r"\[.+\]", "要素が 1 個以上の配列")
    for n, item in enumerate(order["items"]):
        at = f"items[{n}]"
        require(at, item, *OBJECT)
        require(f"{at}.product_id", item.get("product_id"), *ID)
        require(f"{at}.price", item.get("price"), r"\d{1,9}", "0 以上 10 億未満の整数")
        require(f"{at}.quantity", item.get("quantity"), r"[1-9]\d{0,8}", "1 以上 10 億未満の整数")
    require("simulate", order.get("simulate", {}), *OBJECT)
    for key, value in order.get("simulate", {}).items():
        require(f"simulate のキー {key[:64]!a}", key, f'"({SIMULATE})"', f"{SIMULATE} のどれか")
        require(f"simulate.{key}", value, r"1?\d|20|true|false", "0〜20 の整数か true、false")


def require(field: str, value: Any, form: str, rule: str) -> None:
    if not re.fullmatch(form, json.dumps(value)):  # true や 1.0 は整数ではない
        raise InvalidOrderError(f"{field}: {rule}にしてください")


def read_decision(payload: str | None) -> tuple[bool, Json]:
    """承認者の回答を読む。承認は、"approved": true を持つ JSON オブジェクトだけ。ほかは却下。"""
    try:
        answer = json.loads(payload or "", parse_constant=int)  # NaN や Infinity は ValueError
        approved = answer.get("approved") is True
    except (ValueError, RecursionError, AttributeError):
        return False, {"reason": "回答が JSON オブジェクトではありません"}
    remarks = {k: answer[k][:200] for k in ("approver", "reason") if isinstance(answer.get(k), str)}
    return approved, remarks if approved else {"reason": "承認されませんでした", **remarks}


# ---- 外部サービスのスタブ ----------------------------------------------------------
STOCK = {"prod-001": 1000, "prod-002": 10}


def fail_as_simulated(simulate: Json, attempt: int) -> None:
    """決済を simulate のとおりに遅らせ、失敗させる。乱数ではなく、試行番号で決まる。"""
    time.sleep(simulate.get("payment_seconds", 0))  # 応答待ち。演習ではこの間に強制終了する
    if simulate.get("card_declined"):
        raise CardDeclinedError("カードが拒否されました")
    if attempt <= simulate.get("payment_timeouts", 1):
        raise NoAnswerError("決済代行会社から応答がありません")


def charge_card(idempotency_key: str, amount: int) -> str:
    """カードに amount 円を請求し、payment_id を返す。同じキーなら、請求せずに前回の結果を返す。"""
    return f"pay-{hashlib.sha256(idempotency_key.encode()).hexdigest()[:12]}"


def cancel_charge(idempotency_key: str) -> None:
    """キーの請求を取り消し、後から届いた同じキーの請求も拒否する。請求がなければ何も起きない。"""


def send_notification(idempotency_key: str, result: Json) -> None:
    """お客様に結果を通知する。同じキーの通知は一度しか届かない。"""
