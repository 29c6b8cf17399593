"""An order as a choreography: each service acts on the event of the service before it.

`tasks/fulfilment.py` has the same flow as an orchestrated saga: there, one definition says what comes next and what is
compensated; here, each service says which events it handles. `celery -A config.choreography sagas events graph` draws
it.
::

    OrderPlaced -> PaymentCompleted -> StockReserved -> ShipmentCreated -> e-mail
       |                 |                   |
       v                 v                   v
    PaymentFailed   StockReservationFailed  ShipmentFailed -> StockReleased
       |                 |                                        |
       |                 '--------> PaymentRefunded <-------------'
       v                                  v
       '---------> OrderCancelled <-------'
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from sagas import StepContext, TerminalError
from sagas.events import Envelope, Events, HandlerContext, Service
from tasks import inventory as warehouse
from tasks import ledger
from tasks import notifications as mail
from tasks import payments as provider
from tasks import shipping as carrier
from tasks.events import (
    OrderCancelled,
    OrderPlaced,
    PaymentCompleted,
    PaymentFailed,
    PaymentRefunded,
    ShipmentCreated,
    ShipmentFailed,
    StockReleased,
    StockReservationFailed,
    StockReserved,
)
from tasks.orders import PlaceOrder
from tasks.tables import Operation

__all__ = ["SERVICES", "outcome", "place"]

T = TypeVar("T")

orders = Service("orders", publishes=[OrderPlaced])
inventory = Service("inventory")
payments = Service("payments")
shipping = Service("shipping")
notifications = Service("notifications")

SERVICES = (orders, inventory, payments, shipping, notifications)


def place(events: Events, session: Session, order: PlaceOrder) -> Envelope:
    """Place an order in the caller's transaction. The order's id is the correlation id of the flow."""
    return events.publish(OrderPlaced(order=order), session, key=order.order_id, correlation_id=order.order_id)


def outcome(session: Session, order_id: str) -> str | None:
    """Return the outcome of an order: "confirmed", or "cancelled" and the reason; None if it has not ended."""
    operation = session.get(Operation, f"{order_id}:close")
    return None if operation is None else operation.answer


# -- forward ------------------------------------------------------------------------------------------------------


@payments.on(OrderPlaced, emits=[PaymentCompleted, PaymentFailed], breaker=5)
def process_payment(event: OrderPlaced, context: HandlerContext) -> None:
    order, step = event.order, _step(context, event.order, "process_payment")
    try:
        _try(context, lambda: provider.process(order.order_id, order.amount, step))
    except TerminalError as refusal:
        context.emit(PaymentFailed(order=order, reason=str(refusal)))
    else:
        context.emit(PaymentCompleted(order=order))


@inventory.on(PaymentCompleted, emits=[StockReserved, StockReservationFailed])
def reserve_stock(event: PaymentCompleted, context: HandlerContext) -> None:
    order, step = event.order, _step(context, event.order, "reserve_stock")
    try:
        _try(context, lambda: warehouse.reserve(order.order_id, order.sku, order.quantity, step))
    except TerminalError as refusal:
        context.emit(StockReservationFailed(order=order, reason=str(refusal)))
    else:
        context.emit(StockReserved(order=order))


@shipping.on(StockReserved, emits=[ShipmentCreated, ShipmentFailed], breaker=5)
def create_shipment(event: StockReserved, context: HandlerContext) -> None:
    order, step = event.order, _step(context, event.order, "create_shipment")

    def ship() -> str:
        quote = carrier.quote(order.order_id, order.quantity, step)
        return carrier.create(order.order_id, order.address, quote, step)

    try:
        parcel = _try(context, ship)
    except TerminalError as refusal:
        context.emit(ShipmentFailed(order=order, reason=str(refusal)))
    else:
        context.emit(ShipmentCreated(order=order, parcel=parcel))


@notifications.on(ShipmentCreated)
def send_confirmation(event: ShipmentCreated, context: HandlerContext) -> None:
    order, step = event.order, _step(context, event.order, "send_confirmation")
    mail.confirm(order.order_id, order.customer, event.parcel, step)


@orders.on(ShipmentCreated)
def confirm_order(event: ShipmentCreated, context: HandlerContext) -> None:
    ledger.begin(_step(context, event.order, "close"), event.order.order_id).answer = "confirmed"


# -- backward -----------------------------------------------------------------------------------------------------


@inventory.on(ShipmentFailed, emits=[StockReleased], compensates=[StockReserved])
def release_stock(event: ShipmentFailed, context: HandlerContext) -> None:
    order, step = event.order, _step(context, event.order, "reserve_stock")
    warehouse.release(order.order_id, order.sku, order.quantity, step)
    context.emit(StockReleased(order=order, reason=event.reason))


@payments.on(StockReservationFailed, StockReleased, emits=[PaymentRefunded], compensates=[PaymentCompleted])
def refund_payment(event: StockReservationFailed | StockReleased, context: HandlerContext) -> None:
    provider.refund(event.order.order_id, _step(context, event.order, "process_payment"))
    context.emit(PaymentRefunded(order=event.order, reason=event.reason))


@orders.on(PaymentFailed, PaymentRefunded, emits=[OrderCancelled], compensates=[OrderPlaced])
def cancel_order(event: PaymentFailed | PaymentRefunded, context: HandlerContext) -> None:
    ledger.begin(_step(context, event.order, "close"), event.order.order_id).answer = f"cancelled: {event.reason}"
    context.emit(OrderCancelled(order=event.order, reason=event.reason))


@notifications.on(OrderCancelled)
def send_apology(event: OrderCancelled, context: HandlerContext) -> None:
    mail.apologize(
        event.order.order_id, event.order.customer, event.reason, _step(context, event.order, "send_apology")
    )


# -- using the participants' functions ----------------------------------------------------------------------------


def _step(context: HandlerContext, order: PlaceOrder, name: str) -> StepContext:
    """Present a handler to a participant as a step. A compensation has the name of its step, to share its key."""

    def emit(message: Any, key: str | None) -> None:
        context.emit(message, key=key)

    return StepContext(
        saga="order",
        saga_id=order.order_id,
        key=order.order_id,
        step=name,
        attempt=context.attempt,
        correlation_id=context.correlation_id,
        started_at=datetime.now(UTC),
        _now=lambda: datetime.now(UTC),
        _open_session=lambda: context.session,
        _emit=emit,
    )


def _try(context: HandlerContext, act: Callable[[], T]) -> T:
    """Call a participant so that a refusal leaves nothing behind, and the handler can report it."""
    with context.session.begin_nested():
        return act()
