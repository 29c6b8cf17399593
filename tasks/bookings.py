"""A stay with a host: the nights, the guest's payment and, after the stay, the host's payout."""

from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal

from sagas import Pivot, Saga, Step
from tasks import listings, payments

__all__ = ["BookStay", "book_stay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BookStay:
    booking_id: str
    guest: str
    host: str
    listing: str
    check_in: date
    nights: int
    amount: Decimal


book_stay = Saga(
    "book_stay",
    Step("reserve_listing", listings.reserve, compensation=listings.release, queue="listings", timeout=10),
    Step("charge_guest", payments.process, compensation=payments.refund, queue="payments", timeout=20),
    # From here on, guest and host have a confirmation. Later changes follow the cancellation rules.
    Pivot("confirm_booking", listings.confirm, queue="listings", timeout=10),
    Step("pay_host", listings.payout, queue="listings", timeout=20),
    input=BookStay,
    version=1,
    timeout=timedelta(minutes=10),
)
