"""Avro: what is derived from message types, and what fastavro really reads of what the rules call compatible."""

from __future__ import annotations

import copy
import enum
import io
import random
import uuid
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal

import msgspec
import pytest
from fastavro import parse_schema, schemaless_reader, schemaless_writer
from fastavro.utils import generate_many
from pydantic import BaseModel, ConfigDict

from sagas.errors import SchemaRefused
from sagas.events import MessageType, event, type_of
from sagas.events.schema_registry import Rule
from sagas.events.schema_registry.avro import AVRO, AvroFormat


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Odd(enum.Enum):
    ONE = "1/1"


@dataclass(frozen=True)
class Line:
    sku: str
    price: Decimal


class Card(msgspec.Struct, tag=True, frozen=True):
    number: str


class Cash(msgspec.Struct, tag=True, frozen=True):
    given: int


class Address(BaseModel):
    model_config = ConfigDict(frozen=True)
    street: str
    next: Address | None = None


@event("orders.order.placed")
@dataclass(frozen=True, kw_only=True)
class Placed:
    order_id: uuid.UUID
    at: datetime
    on: date
    clock: time
    took: timedelta
    lines: list[Line]
    more: list[Line]
    paid: Card | Cash
    to: Address
    odd: Odd
    size: Literal["s", "m"]
    counts: dict[str, int]
    colour: Colour = Colour.RED
    note: str | None = None
    other: int | None
    tags: list[str] = field(default_factory=list)
    ok: bool = False
    ratio: float = 0.5
    total: Decimal = Decimal(1)


def derived(**fields: Any) -> Any:
    return AVRO.derive(declared(**fields))


def declared(**fields: Any) -> MessageType:
    return type_of(event("orders.order.placed")(type("Any", (), {"__annotations__": fields})))


def test_a_whole_message() -> None:
    definition = AVRO.derive(type_of(Placed))
    assert (definition["namespace"], definition["name"]) == ("orders.order", "placed")
    fields = {each["name"]: each for each in definition["fields"]}
    assert fields["order_id"]["type"] == {"type": "string", "logicalType": "uuid"}
    assert fields["at"]["type"] == {"type": "long", "logicalType": "timestamp-micros"}
    assert fields["more"]["type"] == {"type": "array", "items": "orders.order.placed.Line"}
    assert fields["colour"]["type"]["symbols"] == ["red", "blue"]
    assert fields["colour"]["default"] == "red"
    assert fields["odd"]["type"] == "string"  # which is no symbol in Avro
    assert fields["note"] == {"name": "note", "type": ["null", "string"], "default": None}
    assert "default" not in fields["other"]
    assert fields["tags"]["default"] == []
    assert fields["ok"]["default"] is False
    assert fields["ratio"]["default"] == 0.5
    assert fields["total"] == {"name": "total", "type": "string", "default": "1"}
    assert AVRO.compare(definition, definition) == ()

    record = {
        "order_id": uuid.uuid4(), "at": datetime(2026, 1, 2, tzinfo=UTC), "on": date(2026, 1, 2), "clock": time(1),
        "took": "PT1S", "lines": [{"sku": "a", "price": "1"}], "more": [], "paid": {"number": "1"},
        "to": {"street": "a", "next": {"street": "b", "next": None}}, "odd": "1/1", "size": "s", "counts": {"a": 1},
        "other": None,
    }  # fmt: skip
    assert written_and_read(definition, definition, record)["to"]["next"]["street"] == "b"


def test_the_name_is_that_of_the_message_whatever_the_class_is_called() -> None:
    first = type_of(event("orders.order.placed")(type("A", (), {"__annotations__": {"a": int}})))
    second = type_of(event("orders.order.placed")(type("B", (), {"__annotations__": {"a": int}})))
    assert AVRO.derive(first) == AVRO.derive(second)
    assert AVRO.subject(first) == "orders.order.placed.v1.avro"


def test_a_model_of_pydantic() -> None:
    @event("orders.order.sent")
    class Sent(BaseModel):
        model_config = ConfigDict(frozen=True)
        to: Address
        weight: float = 1.0

    definition = AVRO.derive(type_of(Sent))
    assert definition["fields"][1] == {"name": "weight", "type": "double", "default": 1.0}
    written_and_read(definition, definition, {"to": {"street": "a"}})


def test_decimals_with_a_scale() -> None:
    definition = AvroFormat(decimal=(12, 2)).derive(declared(amount=Decimal))
    assert definition["fields"][0]["type"] == {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}
    assert written_and_read(definition, definition, {"amount": Decimal("4.50")}) == {"amount": Decimal("4.50")}


@pytest.mark.parametrize(
    ("type_", "message"), [(Any, "Avro has no type for Any"), (tuple[int, str], "Avro has no type for Tuple")]
)
def test_what_avro_cannot_say_is_refused(type_: Any, message: str) -> None:
    with pytest.raises(SchemaRefused, match=f"event 'orders.order.placed' cannot be described in Avro: {message}"):
        derived(x=type_)


def test_what_is_no_schema_is_refused() -> None:
    for wrong in (
        {"type": "nope"},
        7,
        {"type": "enum", "name": "e", "symbols": ["1"]},
    ):
        with pytest.raises(SchemaRefused, match="the writer is not an Avro schema"):
            AVRO.compare(wrong, "string")


# -- rules --------------------------------------------------------------------------------------------------------


def rec(*fields: Any, name: str = "r") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields)}


def fld(name: str, type_: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": type_, **more}


def enm(*symbols: str, **more: Any) -> dict[str, Any]:
    return {"type": "enum", "name": "e", "symbols": list(symbols), **more}


def arr(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def fix(size: int, name: str = "f") -> dict[str, Any]:
    return {"type": "fixed", "name": name, "size": size}


TREE = rec(fld("v", "int"), fld("next", ["null", "r"]))
TREE_WIDER = rec(fld("v", "long"), fld("next", ["null", "r"]))
UUID = {"type": "string", "logicalType": "uuid"}
MONEY = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}

CASES: list[tuple[Any, Any, str]] = [
    ("int", "long", ""),
    ("int", "double", ""),
    ("long", "int", "$ type"),
    ("long", "float", ""),
    ("float", "double", ""),
    ("double", "float", "$ type"),
    ("string", "bytes", ""),
    ("bytes", "string", "$ type"),
    ({"type": "int"}, "int", ""),
    (UUID, "string", "$ format"),
    ("string", UUID, "$ format"),
    (MONEY, {**MONEY, "scale": 3}, "$ format"),
    ("int", ["null", "int"], ""),
    (["null", "int"], "int", "$ type"),
    (["null", "int"], ["long", "null"], ""),
    (arr("int"), arr("long"), ""),
    (arr("long"), arr("int"), "$[*] type"),
    ({"type": "map", "values": rec(fld("a", "string"))}, {"type": "map", "values": rec(fld("a", "int"))}, "$.*.a type"),
    (enm("A"), enm("A", "B"), ""),
    (enm("A", "B"), enm("A"), "$ values"),
    (enm("A", "B"), enm("A", default="A"), ""),
    (fix(2), fix(3), "$ type"),
    (fix(2), fix(2, "g"), "$ name"),
    (rec(), rec(name="other"), "$ name"),
    (rec(), {**rec(name="other"), "aliases": ["r"]}, ""),
    (rec(name="a.r"), rec(name="b.r"), ""),
    (rec(fld("a", "int")), rec(), ""),
    (rec(), rec(fld("a", "int")), "$.a required"),
    (rec(), rec(fld("a", "int", default=1)), ""),
    (rec(fld("a", "int")), rec(fld("b", "int", aliases=["a"])), ""),
    (rec(fld("a", arr(rec(fld("b", "long"), name="s")))), rec(fld("a", arr(rec(fld("b", "int"), name="s")))), "$.a[*].b type"),
    (TREE, TREE_WIDER, ""),
    (TREE_WIDER, TREE, "$.v type"),
    # The first branch that matches is the one that counts.
    (rec(fld("a", "string")), ["null", rec(fld("a", "int"))], "$.a type"),
]  # fmt: skip


@pytest.mark.parametrize(("writer", "reader", "wrong"), CASES)
def test_a_rule(writer: Any, reader: Any, wrong: str) -> None:
    found = AVRO.compare(writer, reader)
    assert [f"{each.path} {each.rule}" for each in found] == ([wrong] if wrong else []), found
    if not wrong:
        for datum in generate_many(parse_schema(copy.deepcopy(writer)), 5):
            written_and_read(writer, reader, datum)


def test_a_difference_reads_well() -> None:
    [found] = AVRO.compare(rec(fld("a", "string")), rec(fld("a", "int")), "revision 1", "the new schema")
    assert str(found) == "$.a: revision 1 writes string here; the new schema accepts int"
    assert found.rule is Rule.TYPE


# -- at random ----------------------------------------------------------------------------------------------------


def written_and_read(writer: Any, reader: Any, datum: Any) -> Any:
    stream = io.BytesIO()
    schemaless_writer(stream, parse_schema(copy.deepcopy(writer)), datum)
    stream.seek(0)
    return schemaless_reader(stream, parse_schema(copy.deepcopy(writer)), parse_schema(copy.deepcopy(reader)))


def a_type(rnd: random.Random, depth: int, names: list[str]) -> Any:
    simple = ["int", "long", "float", "double", "string", "bytes", "boolean", "null"]
    if depth == 0 or rnd.random() < 0.4:
        return rnd.choice(simple)
    match rnd.randrange(6):
        case 0:
            return arr(a_type(rnd, depth - 1, names))
        case 1:
            return {"type": "map", "values": a_type(rnd, depth - 1, names)}
        case 2:
            return {**enm(*rnd.sample("ABCD", rnd.randint(1, 3))), "name": a_name("e", names)}
        case 3:
            return rnd.sample(simple, rnd.randint(1, 3))
        case 4:
            return fix(rnd.randint(1, 3), a_name("f", names))
    return a_record(rnd, depth - 1, names)


def a_name(kind: str, names: list[str]) -> str:
    names.append(f"{kind}{len(names)}")
    return names[-1]


def a_record(rnd: random.Random, depth: int, names: list[str]) -> Any:
    name = a_name("r", names)
    return rec(*(fld(each, a_type(rnd, depth, names)) for each in rnd.sample("abcd", rnd.randint(0, 3))), name=name)


def change(rnd: random.Random, schema: Any) -> Any:
    after = copy.deepcopy(schema)
    places = [place for place in walk(after) if place]
    place = rnd.choice(places)
    match place.get("type"):
        case "record":
            names = [each["name"] for each in place["fields"]]
            free = sorted({*"abcde"} - {*names})
            if rnd.random() < 0.5:
                place["fields"].append(rnd.choice([fld(free[0], "int", default=1), fld(free[0], "int")]))
            elif place["fields"]:
                one = rnd.choice(place["fields"])
                place["fields"].remove(one)
                if rnd.random() < 0.7:
                    wider = {"int": "long", "long": "double", "float": "double", "string": "bytes"}
                    type_ = one["type"]
                    place["fields"].append(
                        fld(one["name"], wider.get(type_, type_) if isinstance(type_, str) else type_)
                    )
        case "enum":
            place["symbols"] = rnd.choice([[*place["symbols"], "Z"], place["symbols"][:1]])
        case "fixed":
            place["size"] = rnd.randint(1, 3)
        case "array":
            place["items"] = rnd.choice([place["items"], "long"])
    return after


def walk(schema: Any) -> list[dict[str, Any]]:
    found = []
    if isinstance(schema, dict):
        found.append(schema)
        for each in (schema.get("items"), schema.get("values"), *(f["type"] for f in schema.get("fields", ()))):
            found += walk(each)
    return found


def test_what_is_compatible_is_read_by_fastavro() -> None:
    rnd = random.Random(5)
    random.seed(5)  # of the writer of data
    compatible = claimed = shown = 0
    for _ in range(600):
        old = a_record(rnd, 3, [])
        new = change(rnd, old)
        data = list(generate_many(parse_schema(copy.deepcopy(old)), 5))
        if AVRO.compare(old, new):
            claimed += 1
            shown += any(fails(old, new, datum) for datum in data)
            continue
        compatible += 1
        for datum in data:
            written_and_read(old, new, datum)
    assert compatible > 200, compatible
    assert shown / claimed > 0.7, (shown, claimed)


def fails(old: Any, new: Any, datum: Any) -> bool:
    try:
        written_and_read(old, new, datum)
    except Exception:
        return True
    return False
