"""比較の対象: 同じ流れを、AWS の公開例の書き方で書いたもの。

wait_for_callback、既定の SerDes、既定の再試行。どのステップも、注文番号と状態を含む辞書を返す。
"""

from typing import Any

from aws_durable_execution_sdk_python import (
    DurableContext,
    StepContext,
    StepError,
    durable_execution,
    durable_step,
)
from aws_durable_execution_sdk_python.config import WaitForCallbackConfig
from aws_durable_execution_sdk_python.types import WaitForCallbackContext

import app


@durable_execution
def handler(event: dict[str, Any], context: DurableContext) -> dict[str, Any]:
    order = context.step(validate_order(event))
    stock = context.step(check_inventory(event))
    if not stock["in_stock"]:
        return context.step(notify_customer(order, "OUT_OF_STOCK"))

    if order["total"] < app.APPROVAL_THRESHOLD:
        context.wait(app.SHORT_WAIT, name="wait")
    else:

        def submit(callback_id: str, _: WaitForCallbackContext) -> None:
            context.logger.info("承認を依頼しました: %s", callback_id)

        config = WaitForCallbackConfig(timeout=app.APPROVAL_TIMEOUT)
        answer = context.wait_for_callback(submit, name="approval", config=config)
        if not app.read_decision(answer)[0]:
            return context.step(notify_customer(order, "REJECTED"))

    try:
        payment = context.step(process_payment(order, event.get("simulate", {})))
    except StepError:
        return context.step(notify_customer(order, "PAYMENT_DECLINED"))
    return context.step(notify_customer(order, "COMPLETED", payment["payment_id"]))


@durable_step
def validate_order(ctx: StepContext, event: dict[str, Any]) -> dict[str, Any]:
    app.validate(event)
    total = sum(item["price"] * item["quantity"] for item in event["items"])
    return {"order_id": event["order_id"], "total": total, "status": "validated"}


@durable_step
def check_inventory(ctx: StepContext, event: dict[str, Any]) -> dict[str, Any]:
    wanted: dict[str, int] = {}
    for item in event["items"]:
        wanted[item["product_id"]] = wanted.get(item["product_id"], 0) + item["quantity"]
    in_stock = all(app.STOCK.get(product, 0) >= wanted[product] for product in wanted)
    return {"order_id": event["order_id"], "in_stock": in_stock}


@durable_step
def process_payment(
    ctx: StepContext, order: dict[str, Any], simulate: dict[str, Any]
) -> dict[str, Any]:
    key = f"{order['order_id']}-payment"
    app.fail_as_simulated(simulate, ctx.attempt)
    payment_id = app.charge_card(key, order["total"])
    return {"order_id": order["order_id"], "payment_id": payment_id, "status": "paid"}


@durable_step
def notify_customer(
    ctx: StepContext, order: dict[str, Any], status: str, payment_id: str | None = None
) -> dict[str, Any]:
    result = {**order, "status": status, "payment_id": payment_id}
    app.send_notification(f"{order['order_id']}-{status}", result)
    return result
