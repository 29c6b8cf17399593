"""What message types look like in JSON Schema, and that a change of them is seen."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field

from sagas.errors import DefinitionError
from sagas.events import MessageType, command, event, type_of
from sagas.events.messages import dump
from sagas.events.schema_registry import JSON, Mode, schema_of
from sagas.events.schema_registry.compatibility import check


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Line:
    sku: str
    price: Decimal


class Card(msgspec.Struct, tag=True, frozen=True):
    number: str


class Cash(msgspec.Struct, tag=True, frozen=True):
    given: Annotated[int, msgspec.Meta(ge=0)]


class Address(BaseModel):
    model_config = ConfigDict(frozen=True)
    street: str
    next: Address | None = None


@event("orders.order.placed")
@dataclass(frozen=True, kw_only=True)
class Placed:
    order_id: uuid.UUID
    at: datetime
    lines: list[Line]
    paid: Card | Cash
    to: Address
    colour: Colour = Colour.RED
    on: date | None = None
    when: dict[int, list[time]] = field(default_factory=dict)
    anything: Any = None


@event("orders.order.sent")
class Sent(BaseModel):
    model_config = ConfigDict(frozen=True)
    parcel: Literal["small", "big"]
    to: Address
    weight: float = Field(1.0, alias="kg", gt=0)
    tags: dict[str, int] = {}


EXAMPLES = [
    Placed(
        order_id=uuid.uuid4(),
        at=datetime(2026, 1, 1, tzinfo=datetime.now().astimezone().tzinfo),
        lines=[Line("tea", Decimal("4.50"))],
        paid=Cash(10),
        to=Address(street="a", next=Address(street="b")),
        on=date(2026, 1, 1),
        when={1: [time(1)]},
    ),
    Placed(order_id=uuid.uuid4(), at=datetime(2026, 1, 1), lines=[], paid=Card("1"), to=Address(street="a")),  # noqa: DTZ001
    Sent(parcel="big", to=Address(street="a"), kg=2.0, tags={"a": 1}),
]


@pytest.mark.parametrize("message", EXAMPLES)
def test_what_is_written_is_what_is_described(message: Any) -> None:
    definition = schema_of(type(message))
    Draft202012Validator.check_schema(definition)
    Draft202012Validator(definition).validate(msgspec.json.decode(dump(message)))
    assert check(definition, [(1, definition)], Mode.FULL) == ()


def test_names_are_those_that_are_written() -> None:
    properties = schema_of(Sent)["properties"]
    assert set(properties) == {"parcel", "to", "weight", "tags"}


def test_a_model_inside_of_a_dataclass_is_described() -> None:
    definition = schema_of(Placed)
    [name] = [
        name for name in definition["$defs"] if name.endswith("Address") and "." in name and name.count("Address") == 1
    ]
    assert definition["$defs"]["Placed"]["properties"]["to"] == {"$ref": f"#/$defs/{name}"}


def test_only_messages_have_schemas() -> None:
    with pytest.raises(DefinitionError, match="neither an event nor a command"):
        schema_of(Line)


def declared(**fields: Any) -> MessageType:
    names: dict[str, Any] = {"__annotations__": fields}
    return type_of(event("orders.order.placed")(type("Any", (), names)))


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        (str, datetime, "$.x"),
        (datetime, str, "$.x"),
        (datetime, Annotated[datetime, msgspec.Meta(tz=True)], "$.x"),
        (Annotated[datetime, msgspec.Meta(tz=False)], Annotated[datetime, msgspec.Meta(tz=True)], "$.x"),
        (str, time, "$.x"),
        (list[str], list[datetime], "$.x[*]"),
        (str | None, datetime | None, "$.x"),
        (dict[str, datetime] | None, dict[str, str] | None, "$.x.*"),
        (list[time] | int, list[str] | int, "$.x[*]"),
        (tuple[str, int], tuple[time, int], "$.x[0]"),
        (dict[str, int], dict[int, int], "$.x.*~"),
        (dict[str, int], dict[uuid.UUID, int], "$.x.*~"),
        (dict[str, int], dict[Colour, int], "$.x.*~"),
        (dict[Literal["a", "b"], int], dict[Literal["a"], int], "$.x.*~"),
        (dict[str, int], dict[datetime, int], "$.x.*~"),
        (Card | Cash, Card, "$.x"),
        (Card, Line, "$.x"),
        (str, Colour, "$.x"),
        (int, Decimal, "$.x"),
        (Any, int, "$.x"),
        (dict[str, Any], dict[str, int], "$.x.*"),
        (bytes, str, "$.x"),
    ],
)
def test_a_change_of_a_type_is_seen(old: Any, new: Any, where: str) -> None:
    before, after = schema_of(declared(x=old)), schema_of(declared(x=new))
    found = check(after, [(1, before)], Mode.FULL)
    assert {d.path for d in found} & {where, where.replace("$.x", "$.x.sku"), "$.x.price"}, found
    assert check(before, [(1, before)], Mode.FULL_TRANSITIVE) == ()


def test_additions_are_free_in_both_directions() -> None:
    first = type_of(event("orders.order.placed")(type("A", (), {"__annotations__": {"a": int}})))
    more: dict[str, Any] = {
        "__annotations__": {"a": int, "b": str | None, "c": list[int]},
        "b": None,
        "c": field(default_factory=list),
    }
    second = type_of(event("orders.order.placed")(type("B", (), more)))
    assert check(schema_of(second), [(1, schema_of(first))], Mode.FULL_TRANSITIVE) == ()


def test_a_model_that_changes_within_a_dataclass_is_seen() -> None:
    class Other(BaseModel):
        street: int

    found = check(schema_of(declared(x=Other)), [(1, schema_of(declared(x=Address)))], Mode.BACKWARD)
    assert [d.path for d in found] == ["$.x.street"]


def test_the_schema_is_the_same_each_time() -> None:
    assert schema_of(Placed) == JSON.derive(type_of(Placed))

    @command("payments.refund_payment")
    class Refund:
        payment_id: str

    assert schema_of(Refund)["$schema"].startswith("https://json-schema.org/draft/2020-12")
