"""The envelope: what it says, what it passes on, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sagas.causes import within
from sagas.errors import InvalidMessage
from sagas.events import Envelope, Kind, command, event, type_of


@event("orders.order.placed", version=2)
class OrderPlaced:
    order_id: str


@command("payments.refund")
class Refund:
    order_id: str


def wrap(**options: Any) -> Envelope:
    return Envelope.wrap(OrderPlaced(order_id="o-1"), source="orders", **options)


def test_what_is_on_the_wire() -> None:
    envelope = wrap(key="o-1")
    assert json.loads(envelope.encode()) == {
        "eventId": envelope.event_id,
        "eventType": "orders.order.placed",
        "version": 2,
        "timestamp": envelope.timestamp.isoformat().replace("+00:00", "Z"),
        "source": "orders",
        "data": {"order_id": "o-1"},
        "metadata": {
            "kind": "event",
            "correlationId": envelope.event_id,
            "causationId": None,
            "hops": 0,
            "path": [],
            "key": "o-1",
        },
    }
    assert abs(datetime.now(UTC) - envelope.timestamp) < timedelta(minutes=1)
    assert len(envelope.event_id) == 36
    back = Envelope.decode(envelope.encode())
    assert back == envelope
    assert back.open(type_of(OrderPlaced)) == OrderPlaced(order_id="o-1")
    assert back.topic == "orders.order.placed.v2"


def test_the_first_of_a_story() -> None:
    envelope = wrap()
    assert (envelope.correlation_id, envelope.causation_id) == (envelope.event_id, None)
    assert (envelope.hops, envelope.path, envelope.key, envelope.kind) == (0, [], None, Kind.EVENT)
    assert wrap(correlation_id="story").correlation_id == "story"


def test_a_consequence_belongs_to_the_story_of_its_cause() -> None:
    first = wrap(correlation_id="story", key="o-1", metadata={"traceparent": "00-a-b-01", "tracestate": "x=1", "a": 1})
    second = Envelope.wrap(Refund(order_id="o-1"), source="orders", cause=first)
    third = Envelope.wrap(OrderPlaced(order_id="o-2"), source="orders", cause=second)
    assert (second.correlation_id, second.causation_id) == ("story", first.event_id)
    assert (third.correlation_id, third.causation_id) == ("story", second.event_id)
    assert (second.kind, second.hops, third.hops) == (Kind.COMMAND, 1, 2)
    assert third.path == ["orders.order.placed", "payments.refund"]
    assert third.metadata["traceparent"] == "00-a-b-01"
    assert third.metadata["tracestate"] == "x=1"
    assert third.key is None  # whose key it is, its publisher knows
    assert "a" not in third.metadata


def test_what_is_wrapped_while_a_message_is_handled_was_caused_by_it() -> None:
    first = wrap()
    with within(first.cause):
        assert wrap().causation_id == first.event_id
        other = wrap(cause=wrap(correlation_id="other"))
    assert other.correlation_id == "other"
    assert wrap().causation_id is None


def test_the_path_does_not_grow_for_ever_but_the_hops_count_on() -> None:
    envelope = wrap()
    for _ in range(40):
        envelope = wrap(cause=envelope)
    assert (envelope.hops, len(envelope.path)) == (40, 32)


def test_metadata_that_is_not_known_here_is_kept() -> None:
    envelope = wrap(metadata={"tenant": {"id": 7}})
    assert Envelope.decode(envelope.encode()).metadata["tenant"] == {"id": 7}
    assert Envelope.decode(envelope.encode()).encode() == envelope.encode()


def test_what_others_leave_out_has_a_meaning() -> None:
    body = json.loads(wrap().encode()) | {"metadata": {}, "schema": "unknown here"}
    envelope = Envelope.decode(json.dumps(body))
    assert envelope.correlation_id == envelope.event_id
    assert (envelope.kind, envelope.hops, envelope.path, envelope.causation_id) == (Kind.EVENT, 0, [], None)


def test_the_headers_repeat_what_routes_and_traces() -> None:
    first = wrap(metadata={"traceparent": "00-a-b-01"})
    envelope = Envelope.wrap(Refund(order_id="o-1"), source="orders", cause=first, key="o-1")
    assert envelope.headers() == {
        "eventId": envelope.event_id,
        "eventType": "payments.refund",
        "version": "1",
        "kind": "command",
        "source": "orders",
        "correlationId": first.event_id,
        "causationId": first.event_id,
        "key": "o-1",
        "traceparent": "00-a-b-01",
    }


def _with(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda body: body | changes


def _about(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda body: body | {"metadata": body["metadata"] | changes}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: [], "object"),
        (lambda body: {k: v for k, v in body.items() if k != "eventId"}, "eventId"),
        (_with(eventId="x" * 37), "36"),
        (_with(eventType=""), "eventType"),
        (_with(source="x" * 101), "source"),
        (_with(version="1"), "version"),
        (_with(timestamp="2024-01-01T00:00:00"), "timezone"),
        (_with(metadata=None), "metadata"),
        (_about(kind="rumour"), "kind"),
        (_about(hops="many"), "hops"),
        (_about(hops=-1), "hops"),
        (_about(path="long"), "path"),
        (_about(key=5), "key"),
        (_about(correlationId="x" * 201), "correlationId"),
        (_about(causationId=5), "causationId"),
        (_about(traceparent=5), "traceparent"),
    ],
)
def test_what_is_no_envelope(change: Callable[[dict[str, Any]], Any], says: str) -> None:
    with pytest.raises(InvalidMessage, match=says):
        Envelope.decode(json.dumps(change(json.loads(wrap().encode()))))


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"null", b'{"data":' + b"[" * 100_000])
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(InvalidMessage, match="this is not an envelope"):
        Envelope.decode(body)


@pytest.mark.parametrize("options", [{"key": "k" * 201}, {"correlation_id": "c" * 201}, {"metadata": {"hops": "x"}}])
def test_what_could_not_be_stored_is_refused_when_it_is_published(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage, match="'orders.order.placed', id .*: its metadata"):
        wrap(**options)
