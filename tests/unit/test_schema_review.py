"""What message types mean for a registry, and old versions on read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from sagas import SqlStore
from sagas.errors import InvalidMessage, UnknownVersion
from sagas.events import Envelope, MessageType, event, type_of
from sagas.events.schema_registry import ReviewResult, register, review
from sagas.events.schema_registry.sql import SqlSchemaRegistry


def placed(version: int = 1, *, upcasters: Any = None, **fields: Any) -> MessageType:
    cls = type("Placed", (), {"__annotations__": fields})
    return type_of(event("orders.order.placed", version=version, upcasters=upcasters)(cls))


@pytest.fixture
def registry() -> Iterator[SqlSchemaRegistry]:
    store = SqlStore("sqlite://")
    store.upgrade()
    yield SqlSchemaRegistry(store.engine)
    store.engine.dispose()


def test_what_would_be_registered(registry: SqlSchemaRegistry) -> None:
    [finding] = review([placed(a=int)], registry, owners=["orders"])
    assert (finding.verdict, finding.revision, finding.ok) == (ReviewResult.NEW, 1, True)
    assert registry.subjects() == []
    [finding] = register([placed(a=int)], registry, owners=["orders"])
    assert (finding.verdict, finding.revision) == (ReviewResult.NEW, 1)
    [finding] = review([placed(a=int)], registry, owners=["orders"])
    assert (finding.verdict, finding.revision) == (ReviewResult.UNCHANGED, 1)
    registry.mode = type(registry.mode).BACKWARD
    [finding] = register([placed(a=int | None)], registry, owners=["orders"])
    assert (finding.verdict, finding.revision) == (ReviewResult.CHANGED, 2)
    assert len(registry.revisions("orders.order.placed.v1")) == 2


def test_what_is_refused_does_not_stop_the_rest(registry: SqlSchemaRegistry) -> None:
    register([placed(a=int)], registry, owners=["orders"])
    found = register([placed(a=str), placed(2, a=str)], registry, owners=["orders"])
    assert [finding.verdict for finding in found] == [ReviewResult.REFUSED, ReviewResult.NEW]
    assert "$.a: revision 1 may write an integer here; the new schema accepts a string" in found[0].reasons[0]
    assert not found[0].ok
    assert registry.subjects() == ["orders.order.placed.v1", "orders.order.placed.v2"]


def test_a_consumer_is_held_against_what_the_owner_registered(registry: SqlSchemaRegistry) -> None:
    [finding] = review([placed(a=int)], registry, owners=["billing"])
    assert (finding.verdict, finding.ok) == (ReviewResult.UNKNOWN, True)
    register([placed(a=int, b=str)], registry, owners=["orders"])
    for fields in ({"a": int}, {"a": float}, {}):
        [finding] = register([placed(**fields)], registry, owners=["billing"])
        assert finding.verdict is ReviewResult.READABLE
    [finding] = review([placed(a=int, c=str)], registry, owners=["billing"])
    assert (finding.verdict, finding.ok) == (ReviewResult.UNREADABLE, False)
    assert finding.reasons == ("$.c: this code requires it; revision 1 may omit it",)
    assert len(registry.revisions("orders.order.placed.v1")) == 1  # a consumer registers nothing


def test_upcasters_are_held_against_old_versions(registry: SqlSchemaRegistry) -> None:
    up = {1: lambda data: data}
    [finding] = review([placed(2, a=int, upcasters=up)], registry, owners=["orders"])
    assert finding.warnings == ("an upcaster reads version 1, which is not registered as orders.order.placed.v1",)
    register([placed(a=int)], registry, owners=["orders"])
    [finding] = review([placed(2, a=int, upcasters=up)], registry, owners=["orders"])
    assert finding.warnings == ()
    [finding] = review([placed(2, a=int)], registry, owners=["orders"])
    [warning] = finding.warnings
    assert "no upcaster reads version 1, although 1 of its revisions is registered" in warning
    assert finding.ok
    assert review([placed(1, a=int)], registry, owners=["orders"])[0].warnings == ()


# -- upcasting on read --------------------------------------------------------------------------------------------


def wrapped(declared: MessageType, **data: Any) -> Envelope:
    return Envelope.decode(Envelope.wrap(declared.cls(**data), source="orders").encode())


def test_an_old_message_is_brought_up_step_by_step() -> None:
    seen: list[tuple[int, dict[str, Any]]] = []

    def up(version: int) -> Any:
        def step(data: dict[str, Any]) -> dict[str, Any]:
            seen.append((version, dict(data)))
            return {**data, f"from{version}": version}

        return step

    now = placed(3, a=int, from1=int, from2=int, upcasters={1: up(1), 2: up(2)})
    envelope = wrapped(placed(a=int), a=7)
    stored = bytes(envelope.data)
    assert envelope.open(now) == now.cls(a=7, from1=1, from2=2)
    assert [version for version, _ in seen] == [1, 2]
    assert bytes(envelope.data) == stored  # what is stored stays as it was
    assert wrapped(placed(2, a=int, from1=int), a=7, from1=9).open(now) == now.cls(a=7, from1=9, from2=2)
    assert wrapped(now, a=1, from1=2, from2=3).open(now) == now.cls(a=1, from1=2, from2=3)


@pytest.mark.parametrize("version", [1, 4])
def test_no_way_up_says_what_can_be_read(version: int) -> None:
    now = placed(3, a=int, upcasters={2: lambda data: data})
    with pytest.raises(UnknownVersion, match=rf"no upcaster leads from version {version} to version 3.*Readable: 2, 3"):
        wrapped(placed(version, a=int), a=1).open(now)


def test_an_upcaster_that_makes_nonsense() -> None:
    now = placed(2, a=int, upcasters={1: lambda _data: {"a": "x"}})
    with pytest.raises(InvalidMessage, match="'orders.order.placed' version 1: Expected `int`"):
        wrapped(placed(a=int), a=1).open(now)


def test_an_upcaster_that_fails_says_so() -> None:
    now = placed(2, a=int, upcasters={1: lambda data: {"a": data["missing"]}})
    with pytest.raises(InvalidMessage, match="version 1: its upcaster failed: KeyError: 'missing'"):
        wrapped(placed(b=int), b=1).open(now)


def test_data_that_is_no_object() -> None:
    now = placed(2, a=int, upcasters={1: lambda data: data})
    envelope = msgspec.structs.replace(wrapped(placed(a=int), a=1), data=msgspec.Raw(b"[1]"))
    with pytest.raises(InvalidMessage, match="Expected `object`, got `array`"):
        envelope.open(now)
