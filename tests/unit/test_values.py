"""Values come back as what they were, or are refused."""

import enum
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from sagas.values import NO_TYPE, convert, dump, load


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Line:
    sku: str
    price: Decimal
    at: datetime
    tags: set[str]


class Model(BaseModel):
    id: UUID
    lines: list[Decimal]


class Struct(msgspec.Struct):
    n: int = 0


class Typed(TypedDict):
    a: int


@dataclass
class Holds:
    model: Model


U = UUID(int=7)


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (Line("a", Decimal("1.10"), datetime(2026, 1, 2, tzinfo=UTC), {"x"}), Line),
        (Model(id=U, lines=[Decimal("0.10")]), Model),
        (Holds(Model(id=U, lines=[])), Holds),
        (Struct(3), Struct),
        ({"a": 1}, Typed),
        ([Decimal("1.0")], list[Decimal]),
        (U, UUID),
        (date(2026, 1, 2), date),
        (timedelta(seconds=90), timedelta),
        (Colour.RED, Colour),
        ((1, "a"), tuple[int, str]),
        (3, float),
        (None, None),
        (None, int | None),
        (b"\x00", bytes),
        ({"a": [1, None, True, "x", 1.5]}, NO_TYPE),
    ],
)
def test_round_trip(value: Any, type_: Any) -> None:
    back = load(dump(value, type_), type_)
    assert back == value
    assert type(back) is type(value) or type_ is float


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (Decimal(1), NO_TYPE),
        ((1, 2), NO_TYPE),
        ({1: 2}, NO_TYPE),
        (float("nan"), NO_TYPE),
        (float("inf"), float),
        (Colour.RED, NO_TYPE),
        (object(), object),
        (object(), Line),
        ("x", int),
        ("1", int),
        (True, int),
        ((1, 2), list[int]),
        (Line("a", "1", datetime.now(UTC), set()), Line),  # type: ignore[arg-type]
        (2**70, NO_TYPE),
    ],
)
def test_what_would_come_back_changed_is_refused(value: Any, type_: Any) -> None:
    try:
        text = dump(value, type_)
    except TypeError:
        return
    back = load(text, type_)
    assert back == value
    assert type(back) is type(value)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_plain_json_comes_back(value: Any) -> None:
    assert load(dump(value)) == value


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"sku": "a"}, "price"),
        ({"sku": 1, "price": "1", "at": "2026-01-02T00:00:00Z", "tags": []}, "sku"),
        ({"sku": "a", "price": "1", "at": "2026-01-02T00:00:00Z", "tags": [], "extra": 1}, "unknown field 'extra'"),
    ],
)
def test_a_mapping_must_fit(data: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        convert(data, Line)
    with pytest.raises(TypeError):
        convert({"id": "not a uuid", "lines": []}, Model)
