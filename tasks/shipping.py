"""The carrier."""

from dataclasses import dataclass
from decimal import Decimal

from sagas import StepContext
from tasks import faults, ledger

__all__ = ["Quote", "cancel", "create", "quote"]

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
