"""Values come back as what they were, or are refused."""

import enum
import math
import os
import struct
from collections import defaultdict
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    SecretBytes,
    SecretStr,
    computed_field,
    field_serializer,
)
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass as pydantic_dataclass

from sagas import DefinitionError, KeyConflict, Saga, Step
from sagas.testing import Inline
from sagas.values import DEEPEST, NO_TYPE, check_type, convert, dump, load, same


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


# -- what comes back, and what is refused ---------------------------------------------------------------------------


class Alias(BaseModel):
    user_id: int = Field(alias="userId")


class ReadAlias(BaseModel):
    user_id: int = Field(validation_alias=AliasChoices("uid", AliasPath("ids", 0)))


class WriteAlias(BaseModel):
    user_id: int | None = Field(None, serialization_alias="uid")


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, serialize_by_alias=True)
    user_id: int
    inner: Alias


class TwoAliases(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True)
    user_id: int = Field(validation_alias="a", serialization_alias="b")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    at: datetime
    price: Decimal
    id: UUID
    data: bytes
    several: tuple[int, ...]


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int

    @computed_field
    def double(self) -> int:
        return 2 * self.a


class Private(BaseModel):
    a: int
    _b: int = PrivateAttr(0)


class Secret(BaseModel):
    password: SecretStr


class SecretSaid(Secret):
    @field_serializer("password", when_used="json")
    def say(self, value: SecretStr) -> str:
        return value.get_secret_value()


class Excluded(BaseModel):
    a: int = Field(1, exclude=True)


class Root(RootModel[list[Decimal]]):
    pass


class Changed(BaseModel):
    a: int

    @field_serializer("a")
    def plus(self, value: int) -> int:
        return value + 1


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")


@pydantic_dataclass
class PydanticData:
    a: int
    b: Decimal = Decimal(1)


@pydantic_dataclass
class PydanticDefault:
    a: int = Field(default=3)


@dataclass(eq=False)
class NoEquality:
    n: int
    at: datetime | None = None
    items: list[Any] = field(default_factory=list)


@dataclass
class Computing:
    n: int
    double: int = field(init=False)

    def __post_init__(self) -> None:
        self.double = 2 * self.n


@dataclass
class Increasing:
    n: int

    def __post_init__(self) -> None:
        self.n += 1


@dataclass
class Initial:
    n: int
    v: InitVar[int] = 0


@dataclass
class Anything:
    x: Any


@attrs.define(eq=False)
class Attrs:
    n: int
    price: Decimal = Decimal(1)


class Tagged(msgspec.Struct, rename="camel", tag=True, omit_defaults=True, forbid_unknown_fields=True):
    user_id: int
    n: int = 2


class Array(msgspec.Struct, array_like=True):
    a: int
    b: int = 3


class MayLack(TypedDict):
    a: int
    b: NotRequired[Decimal]


class Point(NamedTuple):
    x: int
    y: Decimal


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    A = "a"


class Bits(enum.Flag):
    A = 1
    B = 2


BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
WRITTEN = Private(a=1)
WRITTEN._b = 5


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (Alias(userId=1), Alias),
        (ReadAlias.model_validate({"uid": 1}), ReadAlias),
        (WriteAlias(user_id=1), WriteAlias),
        (Camel(user_id=1, inner=Alias(userId=2)), Camel),
        ({"a": [Alias(userId=2), None]}, dict[str, list[Alias | None]]),
        (Strict(at=NOW, price=Decimal("1.10"), id=U, data=b"abc", several=(1, 2)), Strict),
        (Holds(Model(id=U, lines=[Decimal("1.10")])), Holds),
        (Computed(a=1), Computed),
        (Private(a=1), Private),
        (SecretSaid(password=SecretStr("x")), SecretSaid),
        (Root([Decimal("1.10")]), Root),
        (Extra.model_validate({"more": [1, "x"]}), Extra),
        (PydanticData(1, Decimal("1.10")), PydanticData),
        (NoEquality(1, datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)), NoEquality),
        (Computing(2), Computing),
        (Attrs(1, Decimal("1.10")), Attrs),
        (Tagged(1), Tagged),
        (Array(1), Array),
        ({"a": 1}, MayLack),
        (Point(1, Decimal("1.0")), Point),
        (Number.ONE, Number),
        (Bits.A | Bits.B, Bits),
        (Decimal("Infinity"), Decimal),
        (Decimal("-0E+3"), Decimal),
        (-0.0, float),
        (2**70, int),
        (datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN), datetime),
        (datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1), datetime),
        (datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN), datetime),
        (time(1, 2, tzinfo=timezone(timedelta(hours=2))), time),
        (timedelta(days=-3, microseconds=1), timedelta),
        (bytearray(b"x"), bytearray),
        (memoryview(b"x"), memoryview),
        (frozenset([Decimal("1.0")]), frozenset[Decimal]),
        ({1: "a"}, dict[int, str]),
        ({datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN): 1}, dict[datetime, int]),
        (defaultdict(list, a=[1]), dict[str, list[int]]),
        (nested(DEEPEST), NO_TYPE),
        ("[" * 200, str),
        ("a\x00", str),
    ],
)
def test_it_comes_back_as_it_was(value: Any, type_: Any) -> None:
    check_type(type_)
    back = load(dump(value, type_), type_)
    assert same(value, back)
    if isinstance(value, datetime):
        assert (back.timestamp(), back.utcoffset()) == (value.timestamp(), value.utcoffset())


@pytest.mark.parametrize(
    "type_",
    [
        Secret, SecretStr, list[Secret], dict[str, SecretBytes], Excluded, TwoAliases, Initial, PydanticDefault,
        Fraction, complex, object, dict[bool, int], Alias | Model,
    ],
)  # fmt: skip
def test_a_type_that_would_not_come_back_is_refused_when_the_saga_is_defined(type_: Any) -> None:
    def act() -> Any: ...

    act.__annotations__["return"] = type_
    with pytest.raises(DefinitionError, match="step 'a', action: what .* returns cannot be kept"):
        Saga("s", Step("a", act, compensation=None))


@pytest.mark.parametrize(
    ("value", "type_", "says"),
    [
        (WRITTEN, Private, "private attributes"),
        (Changed(a=1), Changed, r"\$\.a"),
        (Extra.model_validate({"more": Decimal(1)}), Extra, "Decimal at"),
        (Increasing(1), Increasing, r"\$\.n"),
        (Decimal("sNaN"), Decimal, "NaN"),
        (Decimal("NaN"), Decimal, "NaN"),
        ([math.nan], list[float | None], r"\$\[0\]"),
        (math.inf, float, "float"),
        (2**60 + 1, float, "more digits"),
        (datetime(1800, 1, 1, tzinfo=BERLIN), datetime, "datetime"),  # its offset has seconds
        (time(1, 2, tzinfo=BERLIN), time, "time at"),
        ({1: "a"}, dict, "int in"),
        (Anything(Decimal(1)), Anything, "Decimal at"),
        (Anything(NOW), Anything, "datetime at"),
        (Anything(U), Anything, "UUID at"),
        (Anything(b"x"), Anything, "bytes at"),
        (Anything((1,)), Anything, "tuple at"),
        (Anything(Word.A), Anything, "Word at"),
        ("\ud800", str, "surrogate"),
        ({"\ud800": 1}, NO_TYPE, "surrogate"),
        (nested(DEEPEST + 1), NO_TYPE, "levels deep"),
        (NoEquality(1, items=nested(DEEPEST)), NoEquality, "levels deep"),
        (nested(100_000), NO_TYPE, "recursion"),
    ],
)
def test_a_value_that_would_not_come_back_is_refused(value: Any, type_: Any, says: str) -> None:
    check_type(type_)
    with pytest.raises(TypeError, match=says):
        dump(value, type_)


def test_no_error_quotes_a_value() -> None:
    for value, type_ in [
        ({"number": Decimal(4111111)}, NO_TYPE),
        (Anything([Decimal(4111111)]), Anything),
        (Changed(a=4111111), Changed),
        ("4111111", int),
        (["4111111"], Root),
    ]:
        with pytest.raises(TypeError) as caught:
            dump(value, type_)
        assert "4111111" not in str(caught.value)
    for data in ({"userId": "x4111111"}, {"number": 4111111}):
        with pytest.raises(TypeError) as caught:
            convert(data, Alias)
        assert "4111111" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"userId": 1}, Alias(userId=1)),
        ({"user_id": 1}, Alias(userId=1)),
        ({"uid": 1}, ReadAlias.model_validate({"uid": 1})),
        ({"ids": [1]}, ReadAlias.model_validate({"uid": 1})),
        ({"userId": 1, "inner": {"userId": 2}}, Camel(user_id=1, inner=Alias(userId=2))),
        (
            {"at": NOW.isoformat(), "price": "1.10", "id": str(U), "data": "abc", "several": [1]},
            Strict(at=NOW, price=Decimal("1.10"), id=U, data=b"abc", several=(1,)),
        ),
        ({"more": 1}, Extra.model_validate({"more": 1})),
        ({"userId": 1}, Tagged(1)),
        ({"user_id": 1}, Tagged(1)),
        ({"a": 1}, Array(1)),
        ({"n": 1, "price": "1.10"}, Attrs(1, Decimal("1.10"))),
        ({"n": 2}, Computing(2)),
        ({"a": "1"}, PydanticData(1)),
    ],
)
def test_a_mapping_by_name_or_alias(data: dict[str, Any], expected: Any) -> None:
    assert same(convert(data, type(expected)), expected)


def test_an_enum_that_is_declared_as_text_comes_back_as_text() -> None:
    assert load(dump(Word.A, str), str) == "a"
    assert load(dump(Number.ONE, int), int) == 1


def test_a_root_model_is_no_input() -> None:
    with pytest.raises(DefinitionError, match="root model"):
        Saga("s", Step("a", lambda: 1, compensation=None), input=Root)


def test_the_same_key_and_input_is_the_same_start_without_equality() -> None:
    saga = Saga("s", Step("a", lambda: 1, compensation=None), input=NoEquality)
    inline = Inline()
    first = inline.start(saga, {"n": 1}, key="k")
    assert inline.start(saga, {"n": 1, "items": []}, key="k").id == first.id
    with pytest.raises(KeyConflict):
        inline.start(saga, NoEquality(2), key="k")


# -- any type, any value --------------------------------------------------------------------------------------------

#: How many pairs of a type and a value are tried.
ROUNDS = int(os.environ.get("SAGAS_FUZZ_VALUES", "200"))

_MAKERS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (bool, st.booleans()),
    (int, st.integers()),
    (float, st.floats()),
    (str, st.text(st.characters(codec=None, exclude_categories=()))),
    (bytes, st.binary()),
    (Decimal, st.decimals()),
    (UUID, st.uuids()),
    (date, st.dates()),
    (datetime, st.datetimes(timezones=st.none() | st.timezones())),
    (time, st.times(timezones=st.none() | st.timezones())),
    (timedelta, st.timedeltas()),
    (Colour, st.sampled_from(Colour)),
    (Any, st.none() | st.integers() | st.decimals() | st.binary() | st.tuples(st.integers()) | st.dates()),
    (Point, st.builds(Point, st.integers(), st.decimals(allow_nan=None))),
    (Alias, st.builds(Alias, userId=st.integers())),
    (Struct, st.builds(Struct, st.integers())),
    (NoEquality, st.builds(NoEquality, st.integers(), st.none() | st.datetimes(timezones=st.timezones()))),
    (Anything, st.builds(Anything, st.text() | st.dates() | st.lists(st.floats()))),
    (MayLack, st.fixed_dictionaries({"a": st.integers()}, optional={"b": st.decimals()})),
]


#: To be made of types that are drawn, which a type checker cannot follow.
_LIST: Any = list
_TUPLE: Any = tuple
_SET: Any = frozenset
_DICT: Any = dict


@st.composite
def typed(draw: st.DrawFn, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any]]:
    made = draw(st.sampled_from(["leaf", "list", "tuple", "set", "dict", "optional"])) if depth else "leaf"
    type_, values = draw(typed(depth - 1)) if made != "leaf" else draw(st.sampled_from(_MAKERS))
    keys, key_values = draw(st.sampled_from(_MAKERS))
    match made:
        case "list":
            return _LIST[type_], st.lists(values, max_size=3)
        case "tuple":
            return _TUPLE[type_, ...], st.lists(values, max_size=3).map(tuple)
        case "set":
            return _SET[keys], st.lists(key_values, max_size=3).map(_frozen)
        case "dict":
            return _DICT[keys, type_], st.lists(st.tuples(key_values, values), max_size=3).map(_mapped)
        case "optional":
            return type_ | None, values | st.none()
    return type_, values


def _frozen(values: list[Any]) -> Any:
    try:
        return frozenset(values)
    except TypeError:
        return frozenset()


def _mapped(pairs: list[tuple[Any, Any]]) -> Any:
    try:
        return dict(pairs)
    except TypeError:
        return {}


def exact(value: Any) -> Any:
    """Say a value with the types of all its parts, independently of what compares them in the library."""
    name = type(value).__name__
    match value:
        case enum.Enum() | None | bool():
            return name, value
        case float():
            return name, struct.pack(">d", value)
        case Decimal():
            return name, value.as_tuple()
        case datetime():
            return name, value.isoformat(), value.utcoffset()
        case time():
            return name, value.isoformat(), value.tzinfo is None
        case dict():
            return name, sorted((repr((exact(key), exact(item))) for key, item in value.items()))
        case set() | frozenset():
            return name, sorted(repr(exact(item)) for item in value)
        case list() | tuple():
            return name, [exact(item) for item in value]
        case msgspec.Struct():
            return name, exact(msgspec.structs.asdict(value))
    return name, exact(vars(value)) if hasattr(value, "__dict__") else value


@settings(max_examples=ROUNDS, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_every_value_of_every_type_comes_back_or_is_refused(data: st.DataObject) -> None:
    type_, values = data.draw(typed())
    try:
        check_type(type_)
    except TypeError:
        return
    value = data.draw(values)
    try:
        text = dump(value, type_)
    except TypeError:
        return
    text.encode()
    assert exact(load(text, type_)) == exact(value), text


def test_what_is_none_of_a_choice_is_not_quoted() -> None:
    class Colour(enum.Enum):
        RED = "red"

    @dataclass
    class AllowedAction:
        colour: Colour
        size: Literal["small", 7]

    for wrong in ({"colour": "4111"}, {"colour": 'it\'s 4111 "x"'}, {"size": "4111"}, {"size": 4111}, {"size": -4111}):
        with pytest.raises(TypeError, match=r"^Invalid enum value - at `\$\.(colour|size)`$"):
            convert({"colour": "red", "size": "small", **wrong}, AllowedAction)
