"""The form of a payload: what is asked, and what becomes of the answers."""

from __future__ import annotations

import enum
import typing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import attrs
import msgspec
import pydantic
import pytest

from sagas.forms import FieldKind, InvalidForm, form_of


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


class Number(enum.IntEnum):
    ONE = 1
    TWO = 2


@dataclass
class Address:
    street: str


@dataclass
class Decision:
    approved: bool
    amount: Decimal
    pieces: int
    weight: float
    day: date
    at: datetime
    hour: time
    level: Level
    colour: Literal["red", 3]
    address: Address
    items: list[str]
    limit: int | None
    note: str = ""
    currency: str = "EUR"
    number: Number = Number.ONE
    tags: list[int] = field(default_factory=list)
    discount: int | None = 5
    own: int = field(default=1, init=False)


FILLED = {
    "approved": "false", "amount": "10.10", "pieces": "-3", "weight": "1.5", "day": "2026-01-31",
    "at": "2026-01-31T14:00:00Z", "hour": "09:30", "level": "high", "colour": "3", "address": '{"street": "Ring 1"}',
    "items": '["a"]', "currency": "EUR", "number": "2", "discount": "",
}  # fmt: skip


def test_every_kind_of_field() -> None:
    form = form_of(Decision, "decision")
    assert {each.name: each.kind for each in form.fields} == {
        "approved": FieldKind.CHOICE, "amount": FieldKind.DECIMAL, "pieces": FieldKind.NUMBER,
        "weight": FieldKind.FLOAT, "day": FieldKind.DATE, "at": FieldKind.DATETIME, "hour": FieldKind.TIME,
        "level": FieldKind.CHOICE, "colour": FieldKind.CHOICE, "address": FieldKind.JSON, "items": FieldKind.JSON,
        "limit": FieldKind.NUMBER, "note": FieldKind.TEXT, "currency": FieldKind.TEXT, "number": FieldKind.CHOICE,
        "tags": FieldKind.JSON, "discount": FieldKind.NUMBER,
    }  # fmt: skip
    assert {each.name: each.initial for each in form.fields if each.initial} == {
        "currency": "EUR", "number": "1", "discount": "5",
    }  # fmt: skip
    assert [each.name for each in form.fields if not each.required] == [
        "limit", "note", "currency", "number", "tags", "discount",
    ]  # fmt: skip
    assert form.read(FILLED) == Decision(
        approved=False, amount=Decimal("10.10"), pieces=-3, weight=1.5, day=date(2026, 1, 31),
        at=datetime(2026, 1, 31, 14, tzinfo=UTC), hour=time(9, 30), level=Level.HIGH, colour=3,
        address=Address("Ring 1"), items=["a"], limit=None, number=Number.TWO, discount=None,
    )  # fmt: skip


def test_a_text_that_is_cleared_is_empty_and_lines_end_as_everywhere() -> None:
    form = form_of(Decision, "decision")
    assert form.read({**FILLED, "currency": ""}).currency == ""
    assert form.read({**FILLED, "note": "one\r\ntwo "}).note == "one\ntwo "


@pytest.mark.parametrize(
    ("name", "answer", "problem"),
    [
        ("approved", "", "an answer is required"),
        ("approved", "perhaps", "choose one of: true, false"),
        ("amount", "NaN", "this is not a number"),
        ("amount", "1e99999999", "this is not a number"),
        ("amount", "٣", "this is not a number"),
        ("pieces", "1.5", "this is not a whole number"),
        ("pieces", "9" * 5000, "this is not a whole number"),
        ("day", "yesterday", "Invalid"),
        ("at", "14:00", "Invalid"),
        ("colour", "3.0", "choose one of: red, 3"),
        ("address", "{", "not JSON"),
        ("address", "NaN", "not JSON"),
        ("address", '{"street": 7}', "Expected `str`, got `int`"),
    ],
)
def test_what_is_wrong_is_said_of_its_field(name: str, answer: str, problem: str) -> None:
    with pytest.raises(InvalidForm) as error:
        form_of(Decision, "decision").read({**FILLED, name: answer})
    assert list(error.value.errors) == [name]
    assert problem in error.value.errors[name]


class Renamed(msgspec.Struct, rename="camel", tag="kind"):
    is_ok: bool
    at_most: Annotated[int, msgspec.Meta(ge=1, description="pieces per day")] = 3


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    day: date
    amount: Decimal = pydantic.Field(gt=0, description="in EUR")
    agreed: bool | None = None
    who: str = pydantic.Field(default="", alias="actor")


class Loose(TypedDict):
    approved: bool
    note: NotRequired[str]


@attrs.define
class Attrs:
    approved: bool
    note: str = "none"
    tags: list[str] = attrs.field(factory=list)


def test_other_kinds_of_classes() -> None:
    form = form_of(Renamed, "x")
    assert form.fields[1].help == "pieces per day"
    assert form.read({"is_ok": "true", "at_most": "7"}) == Renamed(is_ok=True, at_most=7)
    with pytest.raises(InvalidForm, match=r"at_most: Expected `int` >= 1"):
        form.read({"is_ok": "true", "at_most": "0"})
    form = form_of(Strict, "x")
    assert form.fields[1].help == "in EUR"
    assert form.read({"day": "2026-01-31", "amount": "1.50", "who": "ann"}) == Strict(
        day=date(2026, 1, 31), amount=Decimal("1.50"), actor="ann"
    )
    with pytest.raises(InvalidForm) as error:
        form.read({"day": "2026-13-01", "amount": "0"})
    assert set(error.value.errors) == {"day", "amount"}
    assert form_of(Loose, "x").read({"approved": "true"}) == {"approved": True}
    form = form_of(Attrs, "x")
    assert [each.initial for each in form.fields] == ["", "none", ""]
    assert form.read({"approved": "true", "note": "n"}) == Attrs(approved=True, note="n")


Money = typing.NewType("Money", Decimal)


@pytest.mark.parametrize(
    ("type_", "answer", "value"),
    [
        (bool, "false", False),
        (Decimal, "1.50", Decimal("1.50")),
        (Money, "2", Decimal(2)),
        (Level, "low", Level.LOW),
        (date, "2026-02-02", date(2026, 2, 2)),
        (int, "7", 7),
        (str, "hi", "hi"),
        (float, "2", 2.0),
        (list[int], "[1]", [1]),
        (int | None, "", None),
        (int | str, '"x"', "x"),
        (None, "", None),
    ],
)
def test_a_payload_without_fields(type_: Any, answer: str, value: Any) -> None:
    form = form_of(type_, "is_approved")
    assert form.is_whole
    assert [each.label for each in form.fields] == ([] if type_ is None else ["Is approved"])
    read = form.read({"value": answer})
    assert (read, type(read)) == (value, type(value))


def test_the_whole_is_wrong() -> None:
    with pytest.raises(InvalidForm) as error:
        form_of(list[int], "numbers").read({"value": '["x"]'})
    assert error.value.errors == {"value": "Expected `int`, got `str` - at `$[0]`"}
