"""Declaring events and commands, and keeping their data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pydantic
import pytest

from sagas.errors import DefinitionError, InvalidMessage, UnknownVersion
from sagas.events import Kind, command, event, type_of
from sagas.events.envelope import Envelope
from sagas.events.messages import NamingWarning, dump


@pytest.mark.parametrize(
    "name",
    """
    orders.order.placed payments.payment.failed stock.item.put_back users.password.reset orders.order.paid
    orders.order.sent_back shipping.parcel.handed_over a.b.c.d.ended mail.letter.not_delivered
    shipping.carrier.chosen stock.item.broken users.password.forgotten users.user.login stock.level.low users.user.logout
    orders.order.new sensors.door.hit bestellung.auftrag.erteilt
    """.split(),
)
def test_facts(name: str) -> None:
    assert type_of(event(name)(type("Fact", (), {}))).name == name


@pytest.mark.parametrize("name", "orders.order.place orders.order.proceed payments.refund stock.send_mail".split())
def test_an_event_that_reads_like_a_wish_gives_a_warning(name: str) -> None:
    with pytest.warns(NamingWarning, match=r"reads like a request.*check_name=False") as caught:
        declared = event(name)(type("Wish", (), {}))
    assert type_of(declared).name == name
    assert caught[0].filename == __file__
    event(name, check_name=False)(type("Wish", (), {}))


@pytest.mark.parametrize(
    "name",
    """
    payments.refund_payment users.reset_password orders.mark_shipped cats.feed jobs.run orders.proceed a.put users.login
    stock.release_reserved stock.recheck_reserved zahlung.erstatte
    """.split(),
)
def test_wishes(name: str) -> None:
    assert type_of(command(name)(type("Wish", (), {}))).kind is Kind.COMMAND


@pytest.mark.parametrize("name", "orders.placed payments.paid_back payments.payment_refunded".split())
def test_a_command_that_reads_like_a_fact_gives_a_warning(name: str) -> None:
    with pytest.warns(NamingWarning, match=r"reads like a fact.*check_name=False"):
        command(name)(type("Fact", (), {}))
    command(name, check_name=False)(type("Fact", (), {}))


@pytest.mark.parametrize(
    "name",
    [
        "placed",
        "Orders.order.placed",
        "orders..placed",
        "orders.order.placed ",
        "a.b.c.d.e.placed",
        "1.placed",
        "ö.placed",
        "orders." + "x" * 100 + "ed",
    ],
)
def test_names_that_will_not_do(name: str) -> None:
    with pytest.raises(DefinitionError, match="two to five words"):
        event(name)(type("Fact", (), {}))


def test_what_was_declared() -> None:
    @event("orders.order.placed", version=3, failure=True, upcasters={1: dict, 2: dict})
    class OrderPlaced:
        order_id: str

    declared = type_of(OrderPlaced)
    assert declared is type_of(OrderPlaced(order_id="o-1"))
    assert (declared.kind, declared.context, declared.topic) == (Kind.EVENT, "orders", "orders.order.placed.v3")
    assert (declared.failure, declared.versions, declared.cls) == (True, (1, 2, 3), OrderPlaced)


def test_what_was_not_declared() -> None:
    @event("orders.order.placed")
    class OrderPlaced:
        order_id: str

    class Special(OrderPlaced):
        pass

    for thing in (Special, int, 3):
        with pytest.raises(DefinitionError, match="neither an event nor a command"):
            type_of(thing)


# -- classes ------------------------------------------------------------------------------------------------------


@event("orders.order.placed")
class Plain:
    order_id: str
    amount: Decimal = Decimal("1.10")
    on: date = date(2024, 2, 29)


@event("orders.order.placed")
@dataclass(frozen=True)
class Data:
    order_id: str
    amount: Decimal = Decimal("1.10")
    on: date = date(2024, 2, 29)


@event("orders.order.placed")
class Model(pydantic.BaseModel, frozen=True):
    order_id: str
    amount: Decimal = Decimal("1.10")
    on: date = date(2024, 2, 29)


@event("orders.order.placed")
class Struct(msgspec.Struct, frozen=True):
    order_id: str
    amount: Decimal = Decimal("1.10")
    on: date = date(2024, 2, 29)


@pytest.mark.parametrize("cls", [Plain, Data, Model, Struct])
def test_any_kind_of_class_comes_back_as_it_was(cls: Any) -> None:
    message = cls(order_id="o-1")
    data = dump(message)
    assert msgspec.json.decode(data) == {"order_id": "o-1", "amount": "1.10", "on": "2024-02-29"}
    assert type_of(cls).load(data, 1) == message
    assert type_of(cls).load(b'{"order_id": "o-2", "new": 1}', 1) == cls(order_id="o-2")  # additions are skipped


@pytest.mark.parametrize("cls", [Plain, Data, Model, Struct])
def test_messages_cannot_be_changed(cls: Any) -> None:
    message = cls(order_id="o-1")
    with pytest.raises((dataclasses.FrozenInstanceError, pydantic.ValidationError, AttributeError)):
        message.order_id = "o-2"


@dataclass
class LooseData:
    order_id: str


class LooseModel(pydantic.BaseModel):
    order_id: str


class LooseStruct(msgspec.Struct):
    order_id: str


@pytest.mark.parametrize("cls", [LooseData, LooseModel, LooseStruct])
def test_classes_that_can_be_changed_are_refused(cls: Any) -> None:
    with pytest.raises(
        DefinitionError, match=rf"'orders.order.placed': {cls.__name__} is mutable. Make the class frozen"
    ):
        event("orders.order.placed")(cls)


def test_what_cannot_be_kept_is_refused_when_it_is_declared() -> None:
    with pytest.raises(DefinitionError, match="'orders.order.placed'.*cannot be stored as JSON"):

        @event("orders.order.placed")
        class Odd:
            file: Odder

    with pytest.raises(DefinitionError, match="name 'Nowhere' is not defined"):

        @event("orders.order.placed")
        class Lost:
            what: Nowhere  # type: ignore[name-defined]  # noqa: F821


class Odder: ...


@event("sensors.value.measured")
class Measured:
    value: float
    at: datetime | None = None
    id: UUID | None = None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "12", None])
def test_what_no_reader_could_read_is_not_written(value: Any) -> None:
    with pytest.raises(
        InvalidMessage, match="'sensors.value.measured': its data cannot be stored as JSON and read back.*value"
    ):
        dump(Measured(value=value))


@event("users.user.renamed")
class Renamed(pydantic.BaseModel, frozen=True, strict=True):
    user_id: int | None = pydantic.Field(None, alias="userId")
    at: datetime
    price: Decimal = Decimal("1.10")


def test_aliases_and_strict_models_are_read_as_they_were_written() -> None:
    message = Renamed(userId=7, at=datetime(2026, 1, 2, tzinfo=UTC))
    assert type_of(Renamed).load(dump(message), 1) == message
    foreign = b'{"userId": 7, "at": "2026-01-02T00:00:00Z", "price": "1.10"}'
    assert type_of(Renamed).load(foreign, 1) == message


def test_a_secret_is_no_message() -> None:
    with pytest.raises(DefinitionError, match="users.user.signed_up.*asterisks"):

        @event("users.user.signed_up", check_name=False)
        class SignedUp(pydantic.BaseModel, frozen=True):
            password: pydantic.SecretStr


@event("shop.things.noted")
class Noted:
    what: Any


@pytest.mark.parametrize(
    "what", [Decimal("1.10"), datetime(2026, 1, 2, tzinfo=UTC), UUID(int=7), b"x", (1,), [{"a": Decimal(1)}], "\ud800"]
)
def test_what_would_arrive_as_something_else_is_not_written(what: Any) -> None:
    with pytest.raises(InvalidMessage, match="'shop.things.noted': its data cannot be stored as JSON and read back"):
        dump(Noted(what=what))
    with pytest.raises(InvalidMessage, match="'shop.things.noted': its metadata"):
        Envelope.wrap(Noted(what=1), source="shop", metadata={"what": what})


def test_what_is_no_json_is_not_written() -> None:
    with pytest.raises(InvalidMessage, match="'sensors.value.measured': its data cannot be stored as JSON"):
        dump(Measured(value=object()))  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"value": "x"}', b"{}", b'{"value":' + b"[" * 100_000])
def test_data_that_is_not_what_was_declared(data: bytes) -> None:
    with pytest.raises(InvalidMessage, match="event 'sensors.value.measured' version 1: "):
        type_of(Measured).load(data, 1)


# -- versions -----------------------------------------------------------------------------------------------------


def _named(data: dict[str, Any]) -> dict[str, Any]:
    first, _, last = data["name"].partition(" ")
    return {"first": first, "last": last, "since": data["since"]}


def _counted(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "orders": 0}


@event("users.user.registered", version=3, upcasters={1: _named, 2: _counted})
class Registered:
    first: str
    last: str
    since: datetime
    orders: int


@event("users.user.registered", version=3, upcasters={1: _named, 2: _counted})
class RegisteredModel(pydantic.BaseModel, frozen=True):
    first: str
    last: str
    since: datetime
    orders: int


@pytest.mark.parametrize("cls", [Registered, RegisteredModel])
def test_upcasters_lead_up_from_every_version(cls: Any) -> None:
    since = datetime(2024, 1, 1, tzinfo=UTC)
    new = cls(first="Ann", last="Lee", since=since, orders=0)
    load = type_of(cls).load
    assert load(b'{"name": "Ann Lee", "since": "2024-01-01T00:00:00Z"}', 1) == new
    assert load(b'{"first": "Ann", "last": "Lee", "since": "2024-01-01T00:00:00Z"}', 2) == new
    assert load(dump(new), 3) == new
    with pytest.raises(InvalidMessage, match="version 2(.|\n)*first"):
        load(b'{"first": 1, "last": "Lee", "since": "2024-01-01T00:00:00Z"}', 2)


@pytest.mark.parametrize("version", [0, 4])
def test_a_version_from_nowhere(version: int) -> None:
    with pytest.raises(
        UnknownVersion,
        match=rf"no upcaster leads from version {version} to version 3.*Readable: 1, 2, 3. Add an upcaster",
    ):
        type_of(Registered).load(b"{}", version)


@pytest.mark.parametrize(
    ("version", "upcasters", "says"),
    [
        (0, {}, "count from 1"),
        (3, {1: dict}, r"start from versions \[1\].*they must start from \[1, 2\]"),
        (2, {2: dict}, r"start from versions \[2\]"),
        (2, {1: dict, 3: dict}, r"they must start from \[1\]"),
    ],
)
def test_versions_that_make_no_sense(version: int, upcasters: Any, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        event("orders.order.placed", version=version, upcasters=upcasters)(type("Fact", (), {}))


def test_a_decimal_that_is_a_number_in_json_keeps_its_digits_through_upcasters() -> None:
    def doubled(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "half": data["amount"] * 0.5, "text": str(data["amount"])}

    @event("payments.invoice.paid", version=3, upcasters={1: lambda data: data, 2: doubled})
    class Paid:
        amount: Decimal
        rates: list[Decimal]
        half: float
        text: str

    @event("payments.invoice.settled", version=2, upcasters={1: lambda data: data})
    class Settled(pydantic.BaseModel, frozen=True):
        amount: Decimal

    assert str(type_of(Settled).load(b'{"amount": 1234567890123456789.10}', 1).amount) == "1234567890123456789.10"
    paid = type_of(Paid).load(b'{"amount": 1234567890123456789.10, "rates": [0.1000, 1e-30]}', 1)
    assert str(paid.amount) == paid.text == "1234567890123456789.10"
    assert [str(rate) for rate in paid.rates] == ["0.1000", "1E-30"]
    assert paid.half == 1234567890123456789.10 / 2


def test_an_upcaster_returns_what_json_can_hold() -> None:
    @event("payments.invoice.paid", version=2, upcasters={1: lambda _: {"at": object()}})
    class Paid:
        at: str

    with pytest.raises(InvalidMessage, match="an upcaster must return data that JSON can represent: a object"):
        type_of(Paid).load(b"{}", 1)
