"""The payment provider: holds on cards that can be captured, and charges that can be refunded."""

from decimal import Decimal

from sagas import StepContext
from tasks import faults, ledger

__all__ = ["authorize", "capture", "process", "refund", "void"]

_HOLDS = "payments/holds"
_TILL = "payments/till"


def authorize(order_id: str, amount: Decimal, step: StepContext) -> str:
    """Authorize the amount on the customer's card. Returns the number of the authorization."""
    faults.check(step, order_id, "payments.authorize")
    operation = ledger.begin(step, order_id)
    if operation.answer is None:
        ledger.post(step, order_id, "authorized", _HOLDS, amount=amount)
        operation.answer = ledger.number(step, "authorization")
    return operation.answer


def void(order_id: str, step: StepContext) -> None:
    """Void the authorization."""
    faults.check(step, order_id, "payments.void")
    if ledger.undo(step, order_id):
        ledger.reverse(step, "voided")


def capture(order_id: str, amount: Decimal, authorize_card: str, step: StepContext) -> str:
    """Capture the authorized amount. Returns the number of the receipt."""
    faults.check(step, order_id, "payments.capture")
    operation = ledger.begin(step, order_id)
    if operation.answer is None:
        ledger.post(step, order_id, "captured", _HOLDS, amount=-amount)
        ledger.post(step, order_id, "captured", _TILL, amount=amount)
        operation.answer = f"{ledger.number(step, 'receipt')} for {authorize_card}"
    return operation.answer


def process(booking_id: str, amount: Decimal, step: StepContext) -> str:
    """Charge the card at once. Returns the number of the receipt."""
    faults.check(step, booking_id, "payments.process")
    operation = ledger.begin(step, booking_id)
    if operation.answer is None:
        ledger.post(step, booking_id, "charged", _TILL, amount=amount)
        operation.answer = ledger.number(step, "receipt")
    return operation.answer


def refund(booking_id: str, step: StepContext) -> None:
    """Refund the charge."""
    faults.check(step, booking_id, "payments.refund")
    if ledger.undo(step, booking_id):
        ledger.reverse(step, "refunded")
