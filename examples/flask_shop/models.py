"""The shop's own tables. They are in the sagas' database, so a step's effect happens exactly once."""

from __future__ import annotations

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = ["Bank", "BankOrder", "Charge", "Order", "Product", "Reservation", "db"]


class Base(DeclarativeBase): ...


db = SQLAlchemy(model_class=Base)


class Product(Base):
    __tablename__ = "product"
    sku: Mapped[str] = mapped_column(String(20), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    cents: Mapped[int]
    stock: Mapped[int]


class Order(Base):
    __tablename__ = "customer_order"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)  #: also the saga's business key
    customer: Mapped[str] = mapped_column(String(40), index=True)
    sku: Mapped[str] = mapped_column(ForeignKey("product.sku"))
    quantity: Mapped[int]
    state: Mapped[str] = mapped_column(String(20), default="placed")  #: placed, accepted, cancelled, shipped, refunded
    saga_id: Mapped[str] = mapped_column(String(40))
    product: Mapped[Product] = relationship()


class Reservation(Base):
    __tablename__ = "reservation"
    key: Mapped[str] = mapped_column(String(140), primary_key=True)  #: the step's idempotency key
    sku: Mapped[str] = mapped_column(ForeignKey("product.sku"))
    quantity: Mapped[int]


class Charge(Base):
    """The bank's record of a card."""

    __tablename__ = "charge"
    key: Mapped[str] = mapped_column(String(140), primary_key=True)
    cents: Mapped[int]
    state: Mapped[str] = mapped_column(String(20))  #: authorized, voided, captured


class Bank(Base):
    __tablename__ = "bank"
    id: Mapped[int] = mapped_column(primary_key=True)
    away: Mapped[bool]


class BankOrder(Base):
    """The bank's record of a payment that it was asked for. It calls back with the token when it has paid."""

    __tablename__ = "bank_order"
    order_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    token: Mapped[str] = mapped_column(String(200))
    cents: Mapped[int]
