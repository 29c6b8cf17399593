"""The saga of an order. Its actions use db.session, so their writes and their checkpoint are one transaction."""

from __future__ import annotations

import time
from dataclasses import dataclass

from flask import current_app

from examples.flask_shop.models import Bank, Charge, Order, Product, Reservation, db
from sagas import Parallel, Pivot, Retry, Saga, Step, StepContext, TerminalError

__all__ = ["PlaceOrder", "place_order"]


@dataclass
class PlaceOrder:
    order_id: str
    sku: str
    quantity: int
    cents: int
    card: str


def accept(order_id: str) -> None:
    _take_a_while()
    _order(order_id).state = "accepted"


def cancel(order_id: str) -> None:
    _take_a_while()
    _order(order_id).state = "cancelled"


def reserve(sku: str, quantity: int, step: StepContext) -> str:
    _take_a_while()
    product = db.session.get_one(Product, sku, with_for_update=True)
    if product.stock < quantity:
        raise TerminalError(f"only {product.stock} of {product.name} left")
    product.stock -= quantity
    db.session.add(Reservation(key=step.idempotency_key, sku=sku, quantity=quantity))
    return step.idempotency_key


def release(step: StepContext) -> None:
    _take_a_while()
    reservation = db.session.get(Reservation, step.idempotency_key)
    if reservation is not None:
        db.session.get_one(Product, reservation.sku, with_for_update=True).stock += reservation.quantity
        db.session.delete(reservation)


def authorize(card: str, cents: int, step: StepContext) -> str:
    _take_a_while()
    if card == "declined":
        raise TerminalError("the bank said no")
    db.session.add(Charge(key=step.idempotency_key, cents=cents, state="authorized"))
    return step.idempotency_key


def void(step: StepContext) -> None:
    _take_a_while()
    charge = db.session.get(Charge, step.idempotency_key)
    if charge is not None:
        charge.state = "voided"


def capture(authorize_card: str) -> None:
    _take_a_while()
    if db.session.get_one(Bank, 1).away:
        raise ConnectionError("the bank does not answer")
    db.session.get_one(Charge, authorize_card).state = "captured"


def ship(order_id: str) -> None:
    _take_a_while()
    _order(order_id).state = "shipped"


place_order = Saga(
    "place_order",
    Step("accept_order", accept, compensation=cancel),
    Parallel(
        Step("reserve_stock", reserve, compensation=release),
        Step("authorize_card", authorize, compensation=void),
    ),
    Pivot("capture_payment", capture, retry=Retry(max_attempts=2, delay=0.5)),
    Step("ship", ship),
    input=PlaceOrder,
)


def _order(order_id: str) -> Order:
    return db.session.get_one(Order, order_id)


def _take_a_while() -> None:
    """Simulate a slow service, so that there is something to watch. Call it before db.session, which locks."""
    time.sleep(float(current_app.config["STEP_SECONDS"]))
