"""An order: accept it, reserve the stock, authorize the card, take the money, ship. And its refund."""

import time
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import TypedDict
from uuid import UUID

from django.conf import settings
from django.db.models import F

from sagas import Pivot, Retry, Saga, Step, StepContext, TerminalError, Wait
from sagas.contrib.django import atomic
from shop.models import BankOrder, Order, Payment, Product


class Placed(TypedDict):
    order: UUID
    product: int
    quantity: int
    amount: Decimal
    card: str


def accept(order: UUID, step: StepContext) -> None:
    _work()
    with atomic(step):
        Order.objects.filter(number=order).update(status="accepted")


def reject(order: UUID, step: StepContext) -> None:
    _work()
    with atomic(step):
        Order.objects.filter(number=order).update(status="rejected")


def reserve(product: int, quantity: int, step: StepContext) -> int:
    _work()
    with atomic(step):
        reserved = Product.objects.filter(pk=product, left__gte=quantity).update(left=F("left") - quantity)
    if not reserved:
        raise TerminalError("out of stock")
    return quantity


def release(product: int, result: int | None, step: StepContext) -> None:
    """Release the reserved stock. There is none if the reservation was rolled back with its step."""
    _work()
    with atomic(step):
        Product.objects.filter(pk=product).update(left=F("left") + (result or 0))


def authorize(amount: Decimal, card: str, step: StepContext) -> str:
    _work()
    if card == "declined":
        raise TerminalError("the bank said no")
    payment, _ = Payment.objects.get_or_create(
        key=step.idempotency_key, defaults={"amount": amount, "status": "authorized"}
    )
    return payment.key


def void(step: StepContext) -> None:
    _work()
    Payment.objects.filter(key=step.idempotency_key).update(status="void")


def capture(authorize_card: str, card: str) -> str:
    _work()
    if card == "bank away":
        raise ConnectionError("the bank does not answer")
    Payment.objects.filter(key=authorize_card).update(status="captured")
    return authorize_card


def ship(order: UUID, step: StepContext) -> None:
    _work()
    with atomic(step):
        Order.objects.filter(number=order).update(status="shipped")


def _work() -> None:
    time.sleep(settings.SHOP_STEP_SECONDS)


place_order = Saga(
    "place_order",
    Step("accept_order", accept, compensation=reject),
    Step("reserve_stock", reserve, compensation=release),
    Step("authorize_card", authorize, compensation=void),
    Pivot("capture_payment", capture, retry=Retry(max_attempts=2, delay=0.5)),
    Step("ship", ship),
    input=Placed,
)


class Refund(TypedDict):
    order: UUID
    amount: Decimal
    why: str


@dataclass
class Decision:
    approved: bool
    comment: str = ""


def check_decision(approval: Decision) -> None:
    if not approval.approved:
        raise TerminalError(f"not approved: {approval.comment or 'no comment'}")


def ask_bank(order: UUID, amount: Decimal, step: StepContext) -> None:
    """Ask the bank, which calls back with the token."""
    with atomic(step):
        BankOrder.objects.update_or_create(order=order, defaults={"token": step.token, "amount": amount})


def recall(order: UUID, step: StepContext) -> None:
    with atomic(step):
        BankOrder.objects.filter(order=order).delete()


def close(order: UUID, pay_back: str, step: StepContext) -> str:
    with atomic(step):
        Order.objects.filter(number=order).update(status="refunded")
    return pay_back


refund_order = Saga(
    "refund_order",
    Wait("approval", Decision, approvers="staff", timeout=timedelta(days=3)),
    Step("check_decision", check_decision, compensation=None),
    Step("pay_back", ask_bank, compensation=recall, deferred=True, deadline=timedelta(days=1), result=str),
    Pivot("close", close),
    input=Refund,
)
