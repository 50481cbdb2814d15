"""比べる相手: 同じ五つの段階を、DBOS の quickstart の書き方で書いたもの。

DBOS だけの venv で動くので、app.py は読まない。外の世界の代役は app.py と同じ答えを返す。
`python dbos_orders.py <1 件ずつの件数> <同時の件数>` は、速さを JSON で表示する。
"""
# mypy: disallow_untyped_decorators=False, warn_return_any=False

import hashlib
import json
import os
import re
import sys
import time
from collections import Counter
from typing import Any

from dbos import DBOS, DBOSConfig  # type: ignore[import-not-found]
from dbos import error as dbos_error

config: DBOSConfig = {
    "name": "order-processing",
    "system_database_url": os.environ.get("DBOS_SYSTEM_DATABASE_URL"),
    "log_level": "CRITICAL",
}
DBOS(config=config)

APPROVAL_THRESHOLD = 100_000
APPROVAL_TIMEOUT = 600.0
SHORT_WAIT = 0.0  # 比べるために待ち時間を除く。ふだんは 10 秒
RETRY_INTERVAL = 0.0  # 同じく、ふだんは 2 秒
STOCK = {"prod-001": 1000, "prod-002": 10}


class NoAnswerError(Exception):
    pass


class CardDeclinedError(Exception):
    pass


def is_unanswered(error: BaseException) -> bool:
    return isinstance(error, NoAnswerError)


RETRY = {
    "retries_allowed": True,
    "max_attempts": 4,
    "interval_seconds": RETRY_INTERVAL,
    "backoff_rate": 2,
    "should_retry": is_unanswered,
}


@DBOS.workflow()
def process_order(event: dict[str, Any]) -> dict[str, Any]:
    validate(event)
    order = accept_order(event)

    shortages = check_stock(event["items"])
    if shortages:
        return notify(order, "OUT_OF_STOCK", products=shortages)

    remarks: dict[str, str] = {}
    if order["total"] < APPROVAL_THRESHOLD:
        DBOS.sleep(SHORT_WAIT)
    else:
        ask_approver(order, DBOS.workflow_id)
        answer = DBOS.recv("approval", timeout_seconds=APPROVAL_TIMEOUT)
        if answer is None:
            return notify(order, "APPROVAL_TIMED_OUT")
        approved, remarks = read_decision(answer)
        if not approved:
            return notify(order, "REJECTED", **remarks)

    payment_key = f"{order['order_id']}-payment"
    try:
        payment_id = pay(order, payment_key, event.get("simulate", {}))
    except CardDeclinedError:
        return notify(order, "PAYMENT_DECLINED")
    except dbos_error.DBOSMaxStepRetriesExceeded:
        cancel_payment(payment_key)
        return notify(order, "PAYMENT_FAILED")

    return notify(order, "COMPLETED", payment_id=payment_id, **remarks)


@DBOS.step(**RETRY)
def accept_order(event: dict[str, Any]) -> dict[str, Any]:
    total = sum(item["price"] * item["quantity"] for item in event["items"])
    DBOS.logger.info(f"注文 {event['order_id']} を受け付けました: {total:,} 円")
    return {"order_id": event["order_id"], "total": total}


@DBOS.step(**RETRY)
def check_stock(items: list[dict[str, Any]]) -> list[str]:
    wanted: Counter[str] = Counter()
    for item in items:
        wanted[item["product_id"]] += item["quantity"]
    shortages = [product for product in wanted if wanted[product] > STOCK.get(product, 0)]
    DBOS.logger.info(f"在庫を確認しました: 不足 {len(shortages)} 商品")
    return shortages[:10]


@DBOS.step(**RETRY)
def ask_approver(order: dict[str, Any], workflow_id: str) -> None:
    DBOS.logger.info(f"{order['total']:,} 円の承認を頼みました: {workflow_id}")


@DBOS.step(**RETRY)
def pay(order: dict[str, Any], payment_key: str, simulate: dict[str, Any]) -> str:
    attempt = DBOS.step_status.current_attempt + 1  # DBOS は 0 から数える
    payment_id = charge_card(payment_key, order["total"], simulate, attempt)
    DBOS.logger.info(f"{order['total']:,} 円を請求しました: {payment_id}")
    return payment_id


@DBOS.step(**RETRY)
def cancel_payment(payment_key: str) -> None:
    cancel_charge(payment_key)
    DBOS.logger.info("請求を取り消しました")


@DBOS.step(**RETRY)
def notify(order: dict[str, Any], status: str, **details: Any) -> dict[str, Any]:
    result = {"order_id": order["order_id"], "status": status, "total": order["total"], **details}
    idempotency_key = f"{order['order_id']}-{status}"
    send_notification(idempotency_key, result)
    DBOS.logger.info(f"お客様に通知しました: {status}")
    return result


def validate(event: dict[str, Any]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", event["order_id"]) or not event["items"]:
        raise ValueError("order_id か items が正しくありません")


def read_decision(payload: str) -> tuple[bool, dict[str, str]]:
    answer = json.loads(payload)
    remarks = {key: answer[key] for key in ("approver", "reason") if key in answer}
    return answer.get("approved") is True, remarks


def charge_card(idempotency_key: str, amount: int, simulate: dict[str, Any], attempt: int) -> str:
    if simulate.get("card_declined", False):
        raise CardDeclinedError
    if attempt <= simulate.get("payment_timeouts", 1):
        raise NoAnswerError
    return f"pay-{hashlib.sha256(idempotency_key.encode()).hexdigest()[:12]}"


def cancel_charge(idempotency_key: str) -> None:
    pass


def send_notification(idempotency_key: str, result: dict[str, Any]) -> None:
    pass


def report(**values: object) -> None:
    print(json.dumps(values), flush=True)


def main(order: dict[str, Any], one_by_one: int, at_once: int) -> None:
    DBOS.launch()
    report(first=process_order(order)["status"])
    began = time.perf_counter()
    statuses = [process_order(order)["status"] for _ in range(one_by_one)]
    report(one_by_one=one_by_one / (time.perf_counter() - began))
    began = time.perf_counter()
    handles = [DBOS.start_workflow(process_order, order) for _ in range(at_once)]
    statuses += [handle.get_result()["status"] for handle in handles]
    report(at_once=at_once / (time.perf_counter() - began), statuses=sorted({*statuses}))
    require_same_outcomes(order)


def require_same_outcomes(order: dict[str, Any]) -> None:
    """同じ五つの段階であること: 承認と却下も app.py と同じ結果になる。"""
    large = order | {"items": [{"product_id": "prod-001", "price": 50_000, "quantity": 2}]}
    for approved, status in ((True, "COMPLETED"), (False, "REJECTED")):
        handle = DBOS.start_workflow(process_order, large)
        DBOS.send(handle.workflow_id, json.dumps({"approved": approved}), "approval")
        assert handle.get_result()["status"] == status


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
