"""The carrier."""

from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import delete

from sagas import StepContext
from tasks import faults, ledger
from tasks.tables import CarrierRequest

__all__ = ["Quote", "book", "call_off", "cancel", "create", "quote"]

_BASE_PRICE = Decimal("4.90")
_PRICE_PER_PIECE = Decimal("0.75")


@dataclass(frozen=True, slots=True)
class Quote:
    """A carrier's offer for a parcel."""

    carrier: str
    price: Decimal
    days: int


def quote(order_id: str, quantity: int, step: StepContext) -> Quote:
    """Ask for the price of a parcel. It is not binding, so there is nothing to compensate."""
    faults.check(step, order_id, "shipping.quote")
    return Quote("Pigeon Post", _BASE_PRICE + _PRICE_PER_PIECE * quantity, days=2 if quantity < 10 else 4)


def create(order_id: str, address: str, quote_shipping: Quote, step: StepContext) -> str:
    """Hand the parcel over to the carrier. Returns its tracking number."""
    faults.check(step, order_id, "shipping.create")
    operation = ledger.begin(step, order_id)
    if operation.answer is None:
        ledger.post(step, order_id, "shipped", "shipping/parcels", quantity=1)
        operation.answer = f"{ledger.number(step, 'parcel')} with {quote_shipping.carrier} to {address}"
    return operation.answer


def cancel(order_id: str, step: StepContext) -> None:
    """Recall the parcel."""
    faults.check(step, order_id, "shipping.cancel")
    if ledger.undo(step, order_id):
        ledger.reverse(step, "called back")


def book(order_id: str, address: str, step: StepContext) -> None:
    """Ask the carrier to collect a large order. It calls back with the token, and says whether it has room."""
    faults.check(step, order_id, "shipping.book")
    operation = ledger.begin(step, order_id)
    if operation.answer is None:
        ledger.post(step, order_id, "booked", "shipping/parcels", quantity=1)
        step.session.add(CarrierRequest(reference=order_id, address=address, token=step.token))
        operation.answer = "asked"


def call_off(order_id: str, step: StepContext) -> None:
    """Tell the carrier not to come, whether it has answered or not."""
    faults.check(step, order_id, "shipping.call_off")
    # Also when the booking is undone already: a carrier that answers too late has accepted it once more.
    step.session.execute(delete(CarrierRequest).where(CarrierRequest.reference == order_id))
    if ledger.undo(step, order_id):
        ledger.reverse(step, "called off")
