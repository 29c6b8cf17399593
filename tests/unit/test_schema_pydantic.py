"""What pydantic checks and does not describe: compared where it can be, and said where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    AfterValidator,
    AnyUrl,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FutureDatetime,
    HttpUrl,
    NaiveDatetime,
    PastDate,
    PastDatetime,
    create_model,
    model_validator,
)

from sagas import SqlStore
from sagas.errors import SchemaRefused
from sagas.events import MessageType, event, type_of
from sagas.events.schema_registry import ReviewResult, register, review
from sagas.events.schema_registry.compatibility import compare
from sagas.events.schema_registry.sql import SqlSchemaRegistry


def of(name: str = "Placed", /, **fields: Any) -> MessageType:
    given: Any = {field: (type_, ...) for field, type_ in fields.items()}
    model: Any = create_model(name, __config__=ConfigDict(frozen=True), **given)
    return type_of(event("orders.order.placed")(model))


@pytest.fixture
def registry() -> Iterator[SqlSchemaRegistry]:
    store = SqlStore("sqlite://")
    store.upgrade()
    yield SqlSchemaRegistry(store.engine)
    store.engine.dispose()


def readable(registry: SqlSchemaRegistry, writer: MessageType, reader: MessageType) -> tuple[bool, str]:
    """Tell whether a reader reads what a writer registered."""
    [registered] = register([writer], registry, owners=["orders"])
    assert registered.ok, registered.reasons
    [finding] = review([reader], registry, owners=["billing"])
    return finding.verdict is ReviewResult.READABLE, " ".join(finding.reasons)


def small(value: int) -> int:
    if value > 10:
        raise ValueError("too large")
    return value


Small = Annotated[int, AfterValidator(small)]


def decimal(**limits: Any) -> Any:
    return Annotated[Decimal, Field(**limits)]


@pytest.mark.parametrize(
    ("wide", "narrow", "told"),
    [
        (datetime, AwareDatetime, "date-time"),
        (datetime, NaiveDatetime, "date-time-local"),
        (datetime | None, AwareDatetime | None, "date-time"),
        (list[datetime], list[AwareDatetime], "date-time"),
        (AwareDatetime, Annotated[AwareDatetime, Field(ge=datetime.fromisoformat("2026-01-01T00:00:00Z"))], "value>="),
        (datetime, PastDatetime, "in the past"),
        (date, PastDate, "in the past"),
        (datetime, FutureDatetime, "in the future"),
        (decimal(max_digits=8, decimal_places=2), decimal(max_digits=7, decimal_places=2), "digits<=7"),
        (decimal(max_digits=8, decimal_places=2), decimal(max_digits=8, decimal_places=3), "whole digits<=5"),
        (decimal(max_digits=8), decimal(max_digits=8, decimal_places=2), "decimal places<=2"),
        (Decimal, decimal(max_digits=8), "digits<=8"),
        (decimal(ge=0), decimal(gt=0), "value>0"),
        (timedelta, Annotated[timedelta, Field(le=timedelta(hours=1))], "seconds<=3600"),
        (int, Small, "validator tests.unit.test_schema_pydantic.small"),
        (Literal[11, 2], Small, "validator"),
        (int | None, Small | None, "validator"),
        (dict[str, int], dict[str, Small], "validator"),
        (AnyUrl, HttpUrl, "scheme http or https"),
        (dict[str, int], dict[int, int], "text matching"),
    ],
)
def test_what_json_schema_does_not_say(registry: SqlSchemaRegistry, wide: Any, narrow: Any, told: str) -> None:
    fits, why = readable(registry, of(a=wide), of(a=narrow))
    assert not fits
    assert told in why


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (AwareDatetime, datetime),
        (PastDatetime, datetime),
        (PastDatetime, PastDatetime),
        (decimal(max_digits=7, decimal_places=2), decimal(max_digits=8, decimal_places=2)),
        (decimal(max_digits=7, decimal_places=2), Decimal),
        (decimal(gt=0), decimal(ge=0)),
        (decimal(ge=5), decimal(ge=0)),
        (Annotated[timedelta, Field(le=timedelta(hours=1))], Annotated[timedelta, Field(le=timedelta(hours=2))]),
        (Small, Small),
        (Small, int),
        (HttpUrl, AnyUrl),
        (dict[int, int], dict[str, int]),
    ],
)
def test_what_is_looser_is_read(registry: SqlSchemaRegistry, narrow: Any, wide: Any) -> None:
    assert readable(registry, of(a=narrow), of(a=wide)) == (True, "")


class Strict(BaseModel, frozen=True):
    a: int

    @model_validator(mode="after")
    def is_even(self) -> Strict:
        return self


def test_validators_of_models_and_dataclasses(registry: SqlSchemaRegistry) -> None:
    @dataclass(frozen=True)
    class Line:
        a: int

        def __post_init__(self) -> None: ...

    @dataclass(frozen=True)
    class Plain:
        a: int

    whole = type_of(event("orders.order.placed")(Strict))
    nested = of(line=Strict)
    assert "Strict.is_even" in readable(registry, of(a=int), whole)[1]
    [finding] = review([nested], registry, owners=["orders"])
    assert [warning for warning in finding.warnings if "Strict.is_even: only its name is compared" in warning]
    plain, checked = (
        type_of(event("stock.item.counted")(type("Counted", (), {"__annotations__": {"line": line}})))
        for line in (Plain, Line)
    )
    register([plain], registry, owners=["stock"])
    [finding] = review([checked], registry, owners=["billing"])
    assert "Line.__post_init__" in finding.reasons[0]


def test_who_knows_that_a_validator_refuses_nothing_may_say_so(registry: SqlSchemaRegistry) -> None:
    harmless = Annotated[int, AfterValidator(small), Field(json_schema_extra={"x-checks": []})]
    assert readable(registry, of(a=int), of(a=harmless)) == (True, "")


def test_a_moment_in_the_future_is_warned_of(registry: SqlSchemaRegistry) -> None:
    [finding] = review([of(a=FutureDatetime)], registry, owners=["orders"])
    assert "may be past when it is read" in finding.warnings[0]


class Cat(BaseModel, frozen=True):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel, frozen=True):
    kind: Literal["dog"] = "dog"


class Fish(BaseModel, frozen=True):
    kind: Literal["fish"] = "fish"


def test_unions_that_are_told_apart_by_a_tag_with_a_default(registry: SqlSchemaRegistry) -> None:
    two = of(pet=Annotated[Cat | Dog, Field(discriminator="kind")])
    three = of(pet=Annotated[Cat | Dog | Fish, Field(discriminator="kind")])
    assert readable(registry, two, three) == (True, "")
    assert review([two], registry, owners=["orders"])[0].verdict is ReviewResult.UNCHANGED
    [finding] = register([three], registry, owners=["orders"])  # readers of the old code know no fish
    assert finding.verdict is ReviewResult.REFUSED
    assert '"fish"' in finding.reasons[0]


def test_a_model_becomes_one_branch_of_a_tagged_union(registry: SqlSchemaRegistry) -> None:
    assert readable(registry, of(pet=Cat), of(pet=Annotated[Cat | Dog, Field(discriminator="kind")])) == (True, "")


def test_what_is_nested_too_deep_is_refused_in_words(registry: SqlSchemaRegistry) -> None:
    deep: Any = {"type": "integer"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}}
    flat: Any = {"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {"d300": {"type": "integer"}}}
    for number in range(300):
        flat["$defs"][f"d{number}"] = {"type": "array", "items": {"$ref": f"#/$defs/d{number + 1}"}}
    for definition in (deep, flat):
        with pytest.raises(SchemaRefused, match="deep"):
            compare(definition, definition)
        with pytest.raises(SchemaRefused, match="deep"):
            registry.register("orders.order.placed.v1", definition, "orders")
    model: Any = int
    for number in range(300):
        model = create_model(f"M{number}", __config__={"frozen": True}, a=(model, ...))
    [finding] = register([type_of(event("orders.order.placed")(model))], registry, owners=["orders"])
    assert finding.verdict is ReviewResult.REFUSED
    assert "deep" in finding.reasons[0]
