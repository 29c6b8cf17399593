"""The nightly billing: what was paid for yesterday becomes invoices, which are then sent."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import delete, func, select, update

from sagas import Pivot, Saga, Schedule, Step, StepContext
from tasks import faults
from tasks.tables import Entry, Invoice

__all__ = ["BillDay", "bill_all", "nightly_billing"]

#: Where the shop's days begin and end.
ZONE = "Europe/Vienna"


@dataclass(frozen=True, slots=True, kw_only=True)
class BillDay:
    day: date


def draw_up(day: date, step: StepContext) -> int:
    """Draw up an invoice for each order that was paid for on that day. Returns how many there are."""
    faults.check(step, str(day), "billing.draw_up")
    that_day = Entry.at >= _midnight(day), Entry.at < _midnight(day + _DAY)
    captured = select(Entry.reference, func.sum(Entry.amount).label("amount"))
    paid = captured.where(Entry.entry == "captured", Entry.amount > 0, *that_day).group_by(Entry.reference)
    known = set(step.session.scalars(select(Invoice.reference).where(Invoice.day == day)))
    step.session.add_all(
        Invoice(reference=row.reference, day=day, amount=int(row.amount))
        for row in step.session.execute(paid)
        if row.reference not in known
    )
    step.session.flush()
    return len(step.session.scalars(select(Invoice.reference).where(Invoice.day == day)).all())


def withdraw(day: date, step: StepContext) -> None:
    """Take the invoices back. None of them has been sent."""
    step.session.execute(delete(Invoice).where(Invoice.day == day, Invoice.sent.is_(False)))


def send(day: date, step: StepContext) -> None:
    """Send the invoices. They cannot be called back."""
    faults.check(step, str(day), "billing.send")
    step.session.execute(update(Invoice).where(Invoice.day == day).values(sent=True))


_DAY = timedelta(days=1)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), ZoneInfo(ZONE)).astimezone(UTC)


bill_all = Saga(
    "bill_all",
    Step("draw_up_invoices", draw_up, compensation=withdraw, queue="payments", timeout=60),
    Pivot("send_invoices", send, queue="payments", timeout=60),
    input=BillDay,
    version=1,
)

#: Each night bills its own day. A night without workers is billed later, and two never at the same time.
nightly_billing = Schedule(
    "nightly_billing",
    bill_all,
    cron="0 2 * * *",
    timezone=ZONE,
    input=lambda tick: BillDay(day=tick.date() - _DAY),
    overlap="queue",
    catch_up="all",
)
