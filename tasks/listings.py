"""Places to stay, and their hosts."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from sagas import RetryableError, StepContext, TerminalError
from tasks import faults, ledger
from tasks.tables import Night

__all__ = ["confirm", "payout", "release", "reserve"]


def reserve(booking_id: str, listing: str, check_in: date, nights: int, step: StepContext) -> str:
    """Take the nights. Returns the number of the reservation."""
    faults.check(step, booking_id, "listings.reserve")
    operation = ledger.begin(step, booking_id)
    if operation.answer is None:
        stay = (check_in + timedelta(days=number) for number in range(nights))
        step.session.add_all(Night(listing=listing, night=night, key=step.idempotency_key) for night in stay)
        try:
            step.session.flush()
        except IntegrityError:
            raise TerminalError(f"{listing} is taken for some of the {nights} nights from {check_in}") from None
        ledger.post(step, booking_id, "reserved", f"listings/{listing}", quantity=-nights)
        operation.answer = ledger.number(step, "reservation")
    return operation.answer


def release(booking_id: str, step: StepContext) -> None:
    """Release the nights for others."""
    faults.check(step, booking_id, "listings.release")
    if ledger.undo(step, booking_id):
        step.session.execute(delete(Night).where(Night.key == step.idempotency_key))
        ledger.reverse(step, "released")


def confirm(booking_id: str, guest: str, host: str, step: StepContext) -> str:
    """Confirm the booking to guest and host. Returns the text of the message."""
    faults.check(step, booking_id, "listings.confirm")
    operation = ledger.begin(step, booking_id)
    if operation.answer is None:
        ledger.post(step, booking_id, "confirmed", "listings/messages", quantity=2)
        operation.answer = f"{booking_id}: {host} expects {guest}"
    return operation.answer


def payout(*, booking_id: str, host: str, amount: Decimal, check_in: date, nights: int, step: StepContext) -> str:
    """Pay the host after the stay. Returns the number of the payout."""
    faults.check(step, booking_id, "listings.payout")
    over = datetime.combine(check_in + timedelta(days=nights), time(), UTC)
    if (left := over - datetime.now(UTC)) > timedelta():
        # The wait is stored in SQL: no worker is busy meanwhile, and it survives all of them.
        raise RetryableError(f"the stay is over at {over:%Y-%m-%d}", after=left.total_seconds())
    operation = ledger.begin(step, booking_id)
    if operation.answer is None:
        ledger.post(step, booking_id, "paid out", "payments/till", amount=-amount)
        ledger.post(step, booking_id, "paid out", f"listings/{host}", amount=amount)
        operation.answer = ledger.number(step, "payout")
    return operation.answer
