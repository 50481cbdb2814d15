"""注文処理ワークフロー: AWS Lambda durable functions のデモ。

    注文受付 → 在庫確認 → 承認待ち → 支払い処理 → 完了通知
     (step)     (step)    (wait か    (step+retry)   (step)
                          callback)

上から順に、ワークフロー、ステップ、入力と記録の読み取り、外部サービスのスタブ。
`python app.py` は AWS なしで動く。
"""

if __name__ == "__main__":  # SDK の import より先に置き、SDK がなくても 1 文で終わる
    from tests.local_run import main

    main(__file__)

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
# JsonSerDes なら、ステップの結果が履歴に普通の JSON で残る
STEP = StepConfig(create_retry_strategy(RETRY), serdes=JsonSerDes())


# ---- ワークフロー ----------------------------------------------------------------
# 待機中、ハンドラーは終了している。再開のたびに先頭から実行し直す（リプレイ）。
# 完了したステップや待機は再実行せず、記録した結果を返す。


@durable_execution
def handler(event: Any, context: DurableContext) -> dict[str, Any]:
    """注文 1 件を受付から通知まで処理し、order_id・status・total（円）を含む結果を返す。

    在庫切れや却下も正常な結果。不正な注文は、ステップを実行せず InvalidOrderError で失敗する。
    取り消しか通知に最後まで応答がないときと、想定外のエラーのときも失敗し、担当者が引き継ぐ。
    """
    logger.info("ハンドラー開始")  # リプレイのたびに出る。完了したステップのログは二度と出ない
    validate(event)  # 入力だけで決まり、リプレイしても同じなので、ステップにしない
    step = partial(context.step, config=STEP)  # context.step(…, config=STEP) の略

    # 注文受付
    order = step(accept_order(event))

    # 在庫確認
    shortages = step(check_stock(event["items"]))
    if shortages:
        return step(notify(order, "OUT_OF_STOCK", products=shortages))

    # 承認待ち
    remarks: dict[str, str] = {}
    if order["total"] < APPROVAL_THRESHOLD:
        context.wait(SHORT_WAIT, name="short_wait")
    else:
        callback = context.create_callback("approval", CallbackConfig(timeout=APPROVAL_TIMEOUT))
        step(ask_approver(order, callback.callback_id))
        try:
            answer = callback.result()
        except CallbackTimeoutError:
            return step(notify(order, "APPROVAL_TIMED_OUT"))
        except CallbackError as error:
            return step(notify(order, "REJECTED", reason=str(error)[:200]))
        approved, remarks = read_decision(answer)
        if not approved:
            return step(notify(order, "REJECTED", **remarks))

    # 支払い処理
    payment_key = f"{order['order_id']}-payment"  # リプレイしても同じなので、請求は一度だけになる
    try:
        payment_id = step(pay(order, payment_key, event.get("simulate", {})))
    except (StepError, SerDesError) as error:  # SerDesError は、結果を記録できなかったとき
        if is_recorded_as(CardDeclinedError, error):
            return step(notify(order, "PAYMENT_DECLINED"))
        step(cancel_payment(payment_key))  # 応答や記録がないだけで、請求は成立したかもしれない
        if is_recorded_as(NoAnswerError, error):
            return step(notify(order, "PAYMENT_FAILED"))
        raise

    # 完了通知
    return step(notify(order, "COMPLETED", payment_id=payment_id, **remarks))


# ---- ステップ --------------------------------------------------------------------
# 結果を記録する前にプロセスが止まると、同じ試行番号で再実行される（at-least-once）。
# そのため外部サービスには、再実行しても変わらないべき等性キーを渡す。


@durable_step
def accept_order(ctx: StepContext, event: dict[str, Any]) -> dict[str, Any]:
    """注文を受け付け、order_id と合計 total（円）を返す。"""
    total = sum(item["price"] * item["quantity"] for item in event["items"])
    ctx.logger.info(f"注文 {event['order_id']} を受け付けました: {total:,} 円")
    return {"order_id": event["order_id"], "total": total}


@durable_step
def check_stock(ctx: StepContext, items: list[dict[str, Any]]) -> list[str]:
    """在庫が足りない商品の product_id を、最大 10 件返す。"""
    wanted: Counter[str] = Counter()
    for item in items:
        wanted[item["product_id"]] += item["quantity"]
    shortages = [product for product in wanted if wanted[product] > STOCK.get(product, 0)]
    ctx.logger.info(f"在庫を確認しました: 不足 {len(shortages)} 件")
    return shortages[:10]  # 明細が多くても、結果が上限の 256 KB を超えないように


@durable_step
def ask_approver(ctx: StepContext, order: dict[str, Any], callback_id: str) -> None:
    """承認者に承認を依頼する。回答は callback_id 宛てに届く。"""
    ctx.logger.info(f"{order['total']:,} 円の承認を頼みました", extra={"callbackId": callback_id})


@durable_step
def pay(ctx: StepContext, order: dict[str, Any], payment_key: str, simulate: dict[str, Any]) -> str:
    """合計（円）を請求し、payment_id を返す。"""
    payment_id = charge_card(payment_key, order["total"], simulate, ctx.attempt)
    ctx.logger.info(f"{order['total']:,} 円を請求しました: {payment_id}")
    return payment_id


@durable_step
def cancel_payment(ctx: StepContext, payment_key: str) -> None:
    """成立したか分からない請求を取り消す（補償、saga）。成立していなければ何も起きない。"""
    cancel_charge(payment_key)
    ctx.logger.info("請求を取り消しました")


@durable_step
def notify(
    ctx: StepContext, /, order: dict[str, Any], status: str, **details: Any
) -> dict[str, Any]:
    """お客様に結果を通知し、通知した内容を注文の結果として返す。"""
    result = {"order_id": order["order_id"], "status": status, "total": order["total"], **details}
    send_notification(f"{order['order_id']}-{status}", result)  # 結果ごとに 1 つのべき等性キー
    ctx.logger.info(f"お客様に通知しました: {status}")
    return result


# ---- 入力と記録の読み取り ----------------------------------------------------------


class InvalidOrderError(Exception):
    """注文の形式が正しくない。メッセージで、修正すべき項目を示す。"""


def validate(order: Any) -> None:
    """正しくない注文なら、修正すべき項目を示す InvalidOrderError を送出する。"""
    require(isinstance(order, dict), "注文", "JSON オブジェクト")
    order_id, items = order.get("order_id"), order.get("items")
    require(matches(r"[A-Za-z0-9_-]{1,64}", order_id), "order_id", "英数字と - _ の 1〜64 文字")
    require(isinstance(items, list) and items != [], "items", "要素が 1 個以上の配列")
    for n, item in enumerate(items):
        require(isinstance(item, dict), f"items[{n}]", "JSON オブジェクト")
        product_id, price, quantity = map(item.get, ("product_id", "price", "quantity"))
        require(matches(r"(?s).{1,64}", product_id), f"items[{n}].product_id", "1〜64 文字の文字列")
        require(is_int(price, 0, 10**9), f"items[{n}].price", "0 以上 10 億以下の整数")
        require(is_int(quantity, 1, 10**9), f"items[{n}].quantity", "1 以上 10 億以下の整数")
    simulate = order.get("simulate", {})
    require(isinstance(simulate, dict), "simulate", "JSON オブジェクト")
    for key in simulate:
        shown = key[:64] if key.isprintable() else "（表示できない名前）"
        require(key in SIMULATE, f"simulate.{shown}", f"{'、'.join(SIMULATE)} のどれか")
    timeouts, seconds, declined = map((SIMULATE | simulate).get, SIMULATE)
    require(is_int(timeouts, 0, 10), "simulate.payment_timeouts", "0 以上 10 以下の整数")
    require(is_int(seconds, 0, 20), "simulate.payment_seconds", "0 以上 20 以下の整数")
    require(isinstance(declined, bool), "simulate.card_declined", "true か false のどちらか")


def require(valid: bool, field: str, rule: str) -> None:
    if not valid:
        raise InvalidOrderError(f"{field}: {rule}にしてください")


def matches(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def is_int(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high  # bool は整数とみなさない


def read_decision(payload: str | None) -> tuple[bool, dict[str, str]]:
    """承認者の回答を、承認の可否と付随情報（approver・reason）に分ける。

    "approved": true を持つ JSON オブジェクトだけを承認とし、それ以外はすべて却下とする。
    """
    try:
        answer = json.loads(payload or "", parse_constant=int)  # NaN や Infinity は ValueError
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        return False, {"reason": "回答が JSON オブジェクトではありません"}
    texts = {key: answer.get(key) for key in ("approver", "reason")}
    remarks = {key: text[:200] for key, text in texts.items() if isinstance(text, str)}
    if answer.get("approved") is True:
        return True, remarks
    return False, {"reason": "承認されませんでした", **remarks}


def is_recorded_as(kind: type[Exception], error: StepError | SerDesError) -> bool:
    """ステップが kind で失敗したか。記録には app.CardDeclinedError のような名前だけが残る。"""
    return error.error_type.rpartition(".")[2] == kind.__name__  # ファイル名は何でもよい


# ---- 外部サービスのスタブ ----------------------------------------------------------

STOCK = {"prod-001": 1000, "prod-002": 10}
SIMULATE: dict[str, Any] = {"payment_timeouts": 1, "payment_seconds": 0, "card_declined": False}


def charge_card(idempotency_key: str, amount: int, simulate: dict[str, Any], attempt: int) -> str:
    """カードに amount 円を請求し、payment_id を返す。同じキーなら、請求せずに前回の結果を返す。

    失敗（CardDeclinedError、NoAnswerError）は、乱数ではなく simulate と試行番号で決まる。
    """
    simulate = SIMULATE | simulate
    time.sleep(simulate["payment_seconds"])  # 応答待ち。演習ではこの間に強制終了する
    if simulate["card_declined"]:
        raise CardDeclinedError("カードが拒否されました")
    if attempt <= simulate["payment_timeouts"]:
        raise NoAnswerError("決済代行会社から応答がありません")
    return f"pay-{hashlib.sha256(idempotency_key.encode()).hexdigest()[:12]}"


def cancel_charge(idempotency_key: str) -> None:
    """キーの請求を取り消し、後から届いた同じキーの請求も拒否する。請求がなければ何も起きない。"""


def send_notification(idempotency_key: str, result: dict[str, Any]) -> None:
    """お客様に結果を通知する。同じキーの通知は一度しか届かない。"""
