"""The shop's messages to customers."""

from decimal import Decimal

from sagas import StepContext
from tasks import faults, ledger

__all__ = ["apologize", "confirm", "remind"]


def confirm(order_id: str, customer: str, create_shipment: str, step: StepContext) -> str:
    """Tell the customer that the order is on its way. Returns the text of the message."""
    faults.check(step, order_id, "notifications.confirm")
    operation = ledger.begin(step, order_id)
    if operation.answer is None:
        ledger.post(step, order_id, "confirmed", "notifications/messages", quantity=1)
        operation.answer = f"Dear {customer}, {order_id} is on its way: {create_shipment}"
    return operation.answer


def apologize(order_id: str, customer: str, reason: str, step: StepContext) -> str:
    """Tell the customer that the order was cancelled. Returns the text of the message."""
    faults.check(step, order_id, "notifications.apologize")
    operation = ledger.begin(step, order_id)
    if operation.answer is None:
        ledger.post(step, order_id, "apologized", "notifications/messages")
        operation.answer = f"Dear {customer}, {order_id} is cancelled: {reason}"
    return operation.answer


def remind(order_id: str, customer: str, amount: Decimal, step: StepContext) -> str:
    """Remind the customer of an invoice. Returns the text of the message."""
    faults.check(step, order_id, "notifications.remind")
    operation = ledger.begin(step, order_id)
    if operation.answer is None:
        ledger.post(step, order_id, "reminded", "notifications/messages", quantity=1)
        operation.answer = f"Dear {customer}, please pay {amount} for {order_id}"
    return operation.answer
