"""The payment provider: holds on cards that can be captured, charges that can be refunded, and invoices."""

from decimal import Decimal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sagas import StepContext
from tasks import faults, ledger
from tasks.tables import Entry

__all__ = ["authorize", "capture", "invoice", "owed", "process", "receive", "refund", "void"]

_HOLDS = "payments/holds"
_TILL = "payments/till"
_OWED = "payments/owed"


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


def invoice(order_id: str, amount: Decimal, step: StepContext) -> str:
    """Send an invoice. Returns its number."""
    faults.check(step, order_id, "payments.invoice")
    operation = ledger.begin(step, order_id)
    if operation.answer is None:
        ledger.post(step, order_id, "invoiced", _OWED, amount=amount)
        operation.answer = ledger.number(step, "invoice")
    return operation.answer


def receive(session: Session, order_id: str, amount: Decimal, number: str) -> None:
    """Book that an invoice was paid, in the caller's transaction. `number`: of the bank's entry."""
    ledger.enter(session, order_id, "paid", _OWED, key=number, amount=-amount)
    ledger.enter(session, order_id, "paid", _TILL, key=number, amount=amount)


def owed(session: Session, order_id: str) -> int:
    """Return what is still to be paid on the invoice of an order, in cents. 0 without an invoice."""
    mine = Entry.reference == order_id, Entry.account == _OWED
    return int(session.scalars(select(func.coalesce(func.sum(Entry.amount), 0)).where(*mine)).one())
