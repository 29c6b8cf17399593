"""The warehouse."""

from sqlalchemy import update
from sqlalchemy.orm import Session

from sagas import StepContext, TerminalError
from tasks import faults, ledger
from tasks.tables import Stock

__all__ = ["release", "reserve", "stock_up"]


def stock_up(session: Session, sku: str, pieces: int) -> None:
    """Make sure that at least this many pieces of an article are in stock, in the caller's transaction."""
    # One statement both checks and restocks: orders may be taking pieces meanwhile.
    session.execute(update(Stock).where(Stock.sku == sku, Stock.available < pieces).values(available=pieces))
    if session.get(Stock, sku) is None:
        session.add(Stock(sku=sku, available=pieces))


def reserve(order_id: str, sku: str, quantity: int, step: StepContext) -> str:
    """Take the pieces from stock. Returns the number of the reservation."""
    faults.check(step, order_id, "inventory.reserve")
    operation = ledger.begin(step, order_id)
    if operation.answer is None:
        # One statement both checks and takes, so two orders cannot take the same piece.
        on_the_shelf = update(Stock).where(Stock.sku == sku, Stock.available >= quantity)
        if not ledger.changed(step, on_the_shelf.values(available=Stock.available - quantity)):
            raise TerminalError(f"there are no {quantity} of {sku} on the shelf")
        ledger.post(step, order_id, "reserved", f"inventory/{sku}", quantity=-quantity)
        operation.answer = ledger.number(step, "reservation")
    return operation.answer


def release(order_id: str, sku: str, quantity: int, step: StepContext) -> None:
    """Put the pieces back."""
    faults.check(step, order_id, "inventory.release")
    if ledger.undo(step, order_id):
        step.session.execute(update(Stock).where(Stock.sku == sku).values(available=Stock.available + quantity))
        ledger.reverse(step, "released")
