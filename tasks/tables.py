"""The shop's tables. They are in the sagas' database, so that one transaction can write to both."""

from datetime import UTC, date, datetime

from sqlalchemy import DateTime, Engine, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

__all__ = [
    "Account",
    "Base",
    "CarrierRequest",
    "Entry",
    "Invoice",
    "Night",
    "Operation",
    "PlannedFault",
    "ShopSession",
    "Stock",
    "TransferOrder",
    "create_all",
]

#: Sessions outside steps. `config` binds them to an engine.
ShopSession = sessionmaker()


class Base(DeclarativeBase):
    """The base of all tables: strings have a length, which MySQL requires."""

    type_annotation_map = {str: String(255), datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy's convention


class Entry(Base):
    """A line of the ledger. Lines are added and never changed: an undo adds the opposite."""

    __tablename__ = "shop_ledger"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))
    participant: Mapped[str]
    entry: Mapped[str]  #: what happened, in a word
    reference: Mapped[str] = mapped_column(index=True)  #: the order, transfer or booking
    key: Mapped[str] = mapped_column(index=True)  #: the idempotency key of the effect
    account: Mapped[str]  #: what it applies to: a card, an article, a parcel
    amount: Mapped[int] = mapped_column(default=0)  #: cents
    quantity: Mapped[int] = mapped_column(default=0)  #: pieces, parcels, nights


class Operation(Base):
    """A participant's record of one idempotency key."""

    __tablename__ = "shop_operations"

    key: Mapped[str] = mapped_column(primary_key=True)
    reference: Mapped[str]
    answer: Mapped[str | None]  #: the first answer; None if the action never happened
    undone: Mapped[bool] = mapped_column(default=False)


class Stock(Base):
    """Inventory: the pieces in stock."""

    __tablename__ = "shop_stock"

    sku: Mapped[str] = mapped_column(primary_key=True)
    available: Mapped[int]


class Account(Base):
    """Accounts: their balances, in cents."""

    __tablename__ = "shop_accounts"

    name: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


class Night(Base):
    """Listings: a booked night. The primary key prevents double bookings."""

    __tablename__ = "shop_nights"

    listing: Mapped[str] = mapped_column(primary_key=True)
    night: Mapped[date] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(index=True)


class Invoice(Base):
    """Billing: what a customer is asked to pay."""

    __tablename__ = "shop_invoices"

    reference: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(index=True)
    amount: Mapped[int]  #: cents
    sent: Mapped[bool] = mapped_column(default=False)


class TransferOrder(Base):
    """The bank: a transfer that it was asked for, and the token that it calls back with."""

    __tablename__ = "shop_transfer_orders"

    reference: Mapped[str] = mapped_column(primary_key=True)
    token: Mapped[str]
    amount: Mapped[int]  #: cents


class CarrierRequest(Base):
    """The carrier: an order that it was asked to collect, and the token it calls back with."""

    __tablename__ = "shop_carrier_requests"

    reference: Mapped[str] = mapped_column(primary_key=True)
    address: Mapped[str]
    token: Mapped[str]
    tracking: Mapped[str | None]  #: None until the carrier has accepted


class PlannedFault(Base):
    """A planned fault: see `tasks.faults`."""

    __tablename__ = "shop_faults"

    reference: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    times: Mapped[int]
    seconds: Mapped[float]


def create_all(engine: Engine) -> None:
    """Create the tables that are missing."""
    Base.metadata.create_all(engine)
