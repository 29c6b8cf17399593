"""CloudEvents in and out, with the official SDK as the judge."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings import http
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from sagas.errors import InvalidMessage
from sagas.events import Envelope, cloudevents, command, event, incoming, type_of
from sagas.events.cloudevents import (
    CONTENT_TYPE,
    Wire,
    from_binary,
    from_structured,
    to_binary,
    to_structured,
    topic_of,
    written,
)


@event("orders.order.placed", version=2)
class OrderPlaced:
    order_id: str


@command("payments.refund")
class Refund:
    order_id: str


MODES = {
    "structured": lambda envelope: from_structured(to_structured(envelope)),
    "binary": lambda envelope: from_binary(*to_binary(envelope)),
}
ODD = {
    "region": "eu west",
    "note": 'a "quoted" 100 % näive\nline',
    "tenant": {"id": 7},
    "Upper": "x",
    "empty": "",
    "big": 2**40,
    "time": "noon",
    "partitionkey": "not the key",
    "kind2": "x",
}


def story(**options: Any) -> Envelope:
    first = Envelope.wrap(
        Refund(order_id="o-1"), source="orders", metadata={"traceparent": "00-ab-cd-01", "tracestate": "a=1"}
    )
    return Envelope.wrap(OrderPlaced(order_id="ö-1"), source="orders", key="k 1", cause=first, **options)


@pytest.mark.parametrize("mode", MODES)
def test_there_and_back(mode: str) -> None:
    for envelope in (story(), story(metadata=ODD), Envelope.wrap(Refund(order_id="o-1"), source="orders")):
        back = MODES[mode](envelope)
        assert back == envelope
        assert back.open(type_of(Refund if envelope.event_type == "payments.refund" else OrderPlaced))


def test_numbers_stay_numbers_where_the_mode_has_them() -> None:
    envelope = story(metadata={"sequence": 5, "replay": True})
    assert MODES["structured"](envelope) == envelope
    binary = MODES["binary"](envelope).metadata
    assert (binary["sequence"], binary["replay"]) == ("5", "true")


def test_the_official_sdk_reads_what_we_write() -> None:
    envelope = story(metadata=ODD)
    structured = http.from_structured_event(http.HTTPMessage({"content-type": CONTENT_TYPE}, to_structured(envelope)))
    binary = http.from_binary_event(http.HTTPMessage(*to_binary(envelope)))
    for read in (structured, binary):
        assert (read.get_id(), read.get_source(), read.get_time()) == (envelope.event_id, "orders", envelope.timestamp)
        assert read.get_type() == "orders.order.placed.v2"
        assert read.get_data() == {"order_id": "ö-1"}
        assert read.get_datacontenttype() == "application/json"
        assert read.get_extension("correlationid") == envelope.correlation_id
        assert read.get_extension("causationid") == envelope.causation_id
        assert read.get_extension("partitionkey") == "k 1"
        assert read.get_extension("traceparent") == "00-ab-cd-01"
        assert read.get_extension("tracestate") == "a=1"
        assert read.get_extension("region") == "eu west"
        assert read.get_extension("note") == ODD["note"]
        assert all(name.islower() and name.isalnum() and name.isascii() for name in read.get_attributes())


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_we_read_what_the_official_sdk_writes(mode: str) -> None:
    foreign = CloudEvent(
        {
            "id": "A234-1234-1234",
            "source": "https://example.org/stock?shelf=1",
            "type": "com.example.stock.counted",
            "time": datetime(2024, 5, 1, 12, 30, tzinfo=UTC),
            "datacontenttype": "application/vnd.example+json",
            "subject": "tea",
            "dataschema": "https://example.org/schema",
            "traceparent": "00-ab-cd-01",
            "kind": "not ours",
            "hops": "ale",
            "note": 'ä "b" 50 %',
        },
        {"pieces": 3},
    )

    def through(event: CloudEvent) -> Envelope:
        if mode == "structured":
            return from_structured(http.to_structured_event(event).body)
        message = http.to_binary_event(event)
        return from_binary({**message.headers, "Host": "example.org"}, message.body)

    envelope = through(foreign)
    assert Envelope.decode(envelope.encode()) == envelope  # it can be carried
    assert (envelope.event_type, envelope.version, envelope.topic) == (
        "com.example.stock.counted",
        1,
        "com.example.stock.counted.v1",
    )
    assert envelope.source == "https://example.org/stock?shelf=1"
    assert envelope.timestamp == datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
    assert json.loads(bytes(envelope.data)) == {"pieces": 3}
    assert (envelope.kind, envelope.hops, envelope.path, envelope.causation_id) == ("event", 0, [], None)
    assert envelope.correlation_id == envelope.event_id
    assert envelope.metadata["traceparent"] == "00-ab-cd-01"
    assert through(foreign).event_id == envelope.event_id  # also when it is delivered again
    # Nothing is lost on the way out again.
    redelivered = http.from_structured_event(http.HTTPMessage({"content-type": CONTENT_TYPE}, to_structured(envelope)))
    assert redelivered.get_data() == foreign.get_data()
    assert redelivered.get_attributes().items() >= foreign.get_attributes().items()


def test_an_id_is_unique_only_beside_its_source() -> None:
    ids = {
        from_structured(json.dumps({"specversion": "1.0", "id": "1", "source": source, "type": "a.b"})).event_id
        for source in ("/one", "/two")
    }
    assert len(ids) == 2


LEAST = {"specversion": "1.0", "id": "1", "source": "/x", "type": "a.b.done.v3"}


def test_the_least_that_a_cloudevent_has() -> None:
    envelope = from_structured(json.dumps(LEAST | {"subject": None}))
    assert (envelope.event_type, envelope.version, bytes(envelope.data)) == ("a.b.done", 3, b"null")
    assert abs((datetime.now(UTC) - envelope.timestamp).total_seconds()) < 60
    assert "subject" not in envelope.metadata
    assert from_binary({f"Ce-{name}": value for name, value in LEAST.items()}, b"").topic == "a.b.done.v3"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"specversion": "0.3"}, "specversion='0.3'"),
        ({"specversion": None}, "specversion=None"),
        ({"id": None}, "id=None"),
        ({"id": ""}, "id=''"),
        ({"source": 5}, "source=5"),
        ({"source": "x" * 101}, "length <= 100"),
        ({"type": ""}, "type=''"),
        ({"time": "noon"}, "Invalid RFC3339"),
        ({"time": "2024-01-01T00:00:00"}, "timezone"),
        ({"data_base64": "AAAA"}, "binary data"),
        ({"datacontenttype": "text/xml"}, "'text/xml', but a message must be JSON"),
        ({"sagashops": "x"}, "invalid literal"),
        ({"sagaspath": 5}, "split"),
        ({"sagaskind": "rumour"}, "kind"),
        ({"partitionkey": 5}, "key"),
        ({"sagasmetadata": "{"}, "truncated"),
    ],
)
def test_what_is_no_cloudevent(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidMessage, match=says):
        from_structured(json.dumps(LEAST | changes))


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"a":' + b"[" * 100_000])
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(InvalidMessage, match="not a JSON CloudEvent"):
        from_structured(body)
    with pytest.raises(InvalidMessage, match="data is not JSON"):
        from_binary({f"ce-{name}": value for name, value in LEAST.items()}, body.replace(b"[]", b"[") or b"{")


# -- on a broker --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", Wire)
@pytest.mark.parametrize("prefix", ["ce-", "ce_", "cloudEvents:", "cloudEvents_"])
def test_what_is_written_is_read_whatever_the_wire(wire: Wire, prefix: str) -> None:
    for envelope in (story(), story(metadata=ODD)):
        headers, body = written(envelope, wire, prefix)
        assert incoming.read(body, headers) == envelope
        assert (cloudevents.read(body, headers) is None) is (wire is Wire.ENVELOPE)
        assert topic_of(body, headers) == ("" if wire is Wire.ENVELOPE else "orders.order.placed.v2")


def test_the_content_type_decides() -> None:
    envelope = story()
    body = to_structured(envelope)
    for name, type_ in (
        ("content-type", CONTENT_TYPE),
        ("Content-Type", f"{CONTENT_TYPE.upper()}; charset=utf-8"),
        ("content_type", CONTENT_TYPE),
    ):
        assert incoming.read(body, {name: type_, "ce-specversion": "1.0"}) == envelope
    with pytest.raises(InvalidMessage, match="cloudevents-batch"):
        incoming.read(b"[]", {"content-type": "application/cloudevents-batch+json"})
    with pytest.raises(InvalidMessage, match="not an envelope"):
        incoming.read(body, {"content-type": "application/json"})


@pytest.mark.parametrize(
    "time", ["1767236645000", '"2026-01-01 03:04:05"', "2026-01-01T03:04:05Z", "2026-01-01 04:04:05+01:00"]
)
def test_a_time_of_the_brokers_own_type(time: str) -> None:
    headers, body = written(story(), Wire.BINARY, "cloudEvents:")
    envelope = incoming.read(body, {**headers, "cloudEvents:time": time})
    assert envelope.timestamp == datetime(2026, 1, 1, 3, 4, 5, tzinfo=UTC)


_NAMES = st.sampled_from(
    ["content-type", "ce-specversion", "ce_id", "ce_specversion", "ce_source", "ce_type", "ce_time", "ce_sagashops",
     "ce_sagaspath", "ce_sagasmetadata", "ce_correlationid", "ce_datacontenttype"]
)  # fmt: skip
_TEXTS = st.text() | st.sampled_from(
    ["1.0", CONTENT_TYPE, "application/json", "a.b.c.v1", "9" * 14, "9" * 400, "{}", "[" * 3000, "null", "\0", "²"]
)


@settings(max_examples=int(os.environ.get("CLOUDEVENTS_EXAMPLES", "300")), deadline=None)
@given(
    st.dictionaries(_NAMES | st.text(), _TEXTS), st.binary() | _TEXTS.map(lambda text: text.encode(errors="replace"))
)
def test_whatever_says_that_it_is_a_cloudevent_is_one_or_is_refused_in_words(
    headers: dict[str, str], body: bytes
) -> None:
    base = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/s", "ce_type": "a.b.c"}
    for given_headers in (headers, base | headers):
        try:
            envelope = cloudevents.read(body, given_headers)
        except InvalidMessage:
            continue
        assert envelope is None or Envelope.decode(envelope.encode()) == envelope
