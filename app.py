"""注文処理ワークフロー: AWS Lambda durable functions のデモ。

    注文受付 → 在庫確認 → 承認待ち → 支払い処理 → 完了通知
     (step)     (step)    (wait か    (step+retry)   (step)
                          callback)

上から順に、ワークフロー、ステップ、入力の読み方、外の世界の代役。
`python app.py` は AWS なしで動く。
"""

import hashlib
import json
import logging
import re
import time
from collections import Counter
from functools import partial
from typing import Any

from aws_durable_execution_sdk_python import (
    CallbackError,
    CallbackTimeoutError,
    DurableContext,
    StepContext,
    StepError,
    durable_execution,
    durable_step,
)
from aws_durable_execution_sdk_python.config import CallbackConfig, Duration, StepConfig
from aws_durable_execution_sdk_python.retries import RetryStrategyConfig, create_retry_strategy
from aws_durable_execution_sdk_python.serdes import JsonSerDes

logger = logging.getLogger(__name__)

APPROVAL_THRESHOLD = 100_000  # 円。この金額から人の承認が要る
APPROVAL_TIMEOUT = Duration.from_minutes(10)
SHORT_WAIT = Duration.from_seconds(10)
EXECUTION_TIMEOUT = Duration.from_minutes(20)  # デプロイが使う。最も長い道筋もこれに収まる


class NoAnswerError(Exception):
    """外の世界から答えがない。頼んだことが起きたかどうかは、だれにも分からない。"""


RETRY = RetryStrategyConfig(  # 間隔は 2 秒から倍々、ジッター（SDK の既定は FULL）付き
    max_attempts=4,
    initial_delay=Duration.from_seconds(2),
    backoff_rate=2,
    max_delay=Duration.from_seconds(5),
    retryable_error_types=[NoAnswerError],
)
# JsonSerDes なら、ステップの結果が履歴にそのまま読める JSON で残る
STEP = StepConfig(create_retry_strategy(RETRY), serdes=JsonSerDes())


# ---- ワークフロー ----------------------------------------------------------------
# 待つときは終了し、再開のたびに先頭から実行し直す（リプレイ）。
# 済んだステップや待ちは実行せず、記録した結果を返す。


@durable_execution
def handler(event: Any, context: DurableContext) -> dict[str, Any]:
    """注文 1 件を受付から通知まで運び、order_id・status・total（円）を含む結果を返す。

    断られた注文も結果である。不正な注文は、何も記録せずに InvalidOrderError で失敗する。
    取り消しか通知に最後まで答えがないか、思わぬエラーなら StepError で失敗し、人が引き継ぐ。
    """
    logger.info("ハンドラー開始")  # リプレイのたびに出る。ステップのログは一度しか出ない
    validate(event)
    step = partial(context.step, config=STEP)  # どのステップも同じ方針で

    order = step(accept_order(event))

    shortages = step(check_stock(event["items"]))
    if shortages:
        return step(notify(order, "OUT_OF_STOCK", products=shortages))

    remarks: dict[str, str] = {}
    if order["total"] < APPROVAL_THRESHOLD:
        context.wait(SHORT_WAIT, name="short_wait")
    else:
        callback = context.create_callback("approval", CallbackConfig(timeout=APPROVAL_TIMEOUT))
        step(ask_approver(order, callback.callback_id))
        try:
            approved, remarks = read_decision(callback.result())
        except CallbackTimeoutError:
            return step(notify(order, "APPROVAL_TIMED_OUT"))
        except CallbackError as error:
            approved, remarks = False, {"reason": str(error)[:200]}
        if not approved:
            return step(notify(order, "REJECTED", **remarks))

    payment_key = f"{order['order_id']}-payment"  # いつ作っても同じ。だから請求は一度になる
    try:
        payment_id = step(pay(order, payment_key, event.get("simulate", {})))
    except StepError as error:
        if error.error_type == "app.CardDeclinedError":
            return step(notify(order, "PAYMENT_DECLINED"))
        step(cancel_payment(payment_key))  # 請求されたかもしれない
        if error.error_type == "app.NoAnswerError":
            return step(notify(order, "PAYMENT_FAILED"))
        raise

    return step(notify(order, "COMPLETED", payment_id=payment_id, **remarks))


# ---- ステップ --------------------------------------------------------------------
# 結果を記録する前に止まると、同じ試行番号でもう一度実行される（at-least-once）。
# だから外の世界には、何度実行しても変わらない冪等キーを渡す。


@durable_step
def accept_order(ctx: StepContext, event: dict[str, Any]) -> dict[str, Any]:
    """注文を受け付け、order_id と合計 total（円）を返す。"""
    total = sum(item["price"] * item["quantity"] for item in event["items"])
    ctx.logger.info("注文 %s を受け付けました: %s 円", event["order_id"], f"{total:,}")
    return {"order_id": event["order_id"], "total": total}


@durable_step
def check_stock(ctx: StepContext, items: list[dict[str, Any]]) -> list[str]:
    """在庫が足りない商品の product_id を、多くても 10 件返す。"""
    wanted: Counter[str] = Counter()
    for item in items:
        wanted[item["product_id"]] += item["quantity"]
    shortages = [product for product in wanted if wanted[product] > STOCK.get(product, 0)]
    ctx.logger.info("在庫を確認しました: 不足 %s 商品", len(shortages))
    return shortages[:10]  # 行が多くても、結果の上限 256 KB を超えない


@durable_step
def ask_approver(ctx: StepContext, order: dict[str, Any], callback_id: str) -> None:
    """承認者に判断を頼む。答えは callback_id 宛てに届く。"""
    ctx.logger.info(
        "%s 円の承認を頼みました", f"{order['total']:,}", extra={"callbackId": callback_id}
    )


@durable_step
def pay(ctx: StepContext, order: dict[str, Any], payment_key: str, simulate: dict[str, Any]) -> str:
    """合計（円）を請求し、payment_id を返す。"""
    payment_id = charge_card(payment_key, order["total"], simulate, ctx.attempt)
    ctx.logger.info("%s 円を請求しました: %s", f"{order['total']:,}", payment_id)
    return payment_id


@durable_step
def cancel_payment(ctx: StepContext, payment_key: str) -> None:
    """答えのなかった請求を取り消す。請求されていなければ、何も起きない。"""
    cancel_charge(payment_key)
    ctx.logger.info("請求を取り消しました")


@durable_step
def notify(
    ctx: StepContext, /, order: dict[str, Any], status: str, **details: Any
) -> dict[str, Any]:
    """お客様に結果を知らせ、知らせた内容を注文の結果として返す。"""
    result = {"order_id": order["order_id"], "status": status, "total": order["total"], **details}
    idempotency_key = f"{order['order_id']}-{status}"
    send_notification(idempotency_key, result)
    ctx.logger.info("お客様に通知しました: %s", status)
    return result


# ---- 入力を読む ------------------------------------------------------------------


class InvalidOrderError(Exception):
    """注文の形が正しくない。メッセージは直すべき項目を示す。"""


def validate(order: Any) -> None:
    """正しくない注文なら、直すべき項目を示す InvalidOrderError を送出する。"""
    require(isinstance(order, dict), "注文", "JSON オブジェクト")
    order_id, items = order.get("order_id"), order.get("items")
    require(matches(r"[A-Za-z0-9_-]{1,64}", order_id), "order_id", "英数字と - _ の 1〜64 文字")
    require(isinstance(items, list) and items != [], "items", "1 行以上の配列")
    for n, item in enumerate(items):
        require(isinstance(item, dict), f"items[{n}]", "JSON オブジェクト")
        product_id, price, quantity = map(item.get, ("product_id", "price", "quantity"))
        require(matches(r"(?s).{1,64}", product_id), f"items[{n}].product_id", "1〜64 文字の文字列")
        require(is_int(price, 0, 10**9), f"items[{n}].price", "0 以上 10 億以下の整数")
        require(is_int(quantity, 1, 10**9), f"items[{n}].quantity", "1 以上 10 億以下の整数")
    simulate = order.get("simulate", {})
    require(isinstance(simulate, dict), "simulate", "JSON オブジェクト")
    timeouts, seconds = simulate.get("payment_timeouts", 1), simulate.get("payment_seconds", 0)
    require(is_int(timeouts, 0, 10), "simulate.payment_timeouts", "0 以上 10 以下の整数")
    require(is_int(seconds, 0, 20), "simulate.payment_seconds", "0 以上 20 以下の整数")
    declined = simulate.get("card_declined", False)
    require(isinstance(declined, bool), "simulate.card_declined", "true か false")


def require(valid: bool, field: str, rule: str) -> None:
    if not valid:
        raise InvalidOrderError(f"{field}: {rule}にしてください")


def matches(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def is_int(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high  # bool は整数とみなさない


def read_decision(payload: str | None) -> tuple[bool, dict[str, str]]:
    """承認者の答えを、承認か否かと、添え書き（approver・reason）に分ける。

    "approved": true を持つ JSON オブジェクトだけが承認で、ほかは何が届いても却下になる。
    """
    try:
        answer = json.loads(payload or "")
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        return False, {"reason": "答えが JSON オブジェクトではありません"}
    texts = {key: answer.get(key) for key in ("approver", "reason")}
    remarks = {key: text[:200] for key, text in texts.items() if isinstance(text, str)}
    if answer.get("approved") is True:
        return True, remarks
    return False, {"reason": "承認されませんでした", **remarks}


# ---- 外の世界の代役 --------------------------------------------------------------

STOCK = {"prod-001": 1000, "prod-002": 10}


class CardDeclinedError(Exception):
    """決済代行会社がカードを断った。これは答えなので、もう一度試しても変わらない。"""


def charge_card(idempotency_key: str, amount: int, simulate: dict[str, Any], attempt: int) -> str:
    """カードに amount 円を請求し、payment_id を返す。同じキーには、請求せずに前と同じ答えを返す。

    失敗は乱数ではなく simulate と試行番号で決まる: CardDeclinedError、NoAnswerError。
    """
    time.sleep(simulate.get("payment_seconds", 0))  # 応答を待つ。この間にプロセスを殺してみる
    if simulate.get("card_declined", False):
        raise CardDeclinedError("カードが断られました")
    if attempt <= simulate.get("payment_timeouts", 1):
        raise NoAnswerError("請求への応答がありません")
    return f"pay-{hashlib.sha256(idempotency_key.encode()).hexdigest()[:12]}"


def cancel_charge(idempotency_key: str) -> None:
    """そのキーの請求を取り消し、あとから届いても断る。請求がなければ何も起きない。"""


def send_notification(idempotency_key: str, result: dict[str, Any]) -> None:
    """お客様に結果を送る。同じキーの知らせは、お客様に一度しか届かない。"""


if __name__ == "__main__":
    from tests.local_run import main

    main()
