"""CloudEvents on every broker: what is written, as their SDK reads it; and what their SDK writes, as handlers get it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from amqp import Message
from cloudevents.core.bindings import kafka, rabbitmq
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from confluent_kafka import Producer
from kombu.connection import Connection
from sqlalchemy.orm import Session

from sagas import Retry, SqlStore, TerminalError
from sagas.errors import ConfigurationError
from sagas.events import Envelope, Events, HandlerContext, Service, event
from sagas.events.brokers import Broker, Delivery, Outgoing
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.runners import InProcess
from tests.contract.broker_of import broker_of, take
from tests.servers import wait_for

TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@event("orders.order.placed")
class OrderPlaced:
    order_id: str


@event("own.order.placed")
class OwnPlaced:
    order_id: str


@event("whole.order.placed")
class WholePlaced:
    order_id: str


@event("parts.order.placed")
class PartsPlaced:
    order_id: str


@dataclass
class Wired:
    """A broker, the services on it, and how a foreign client publishes there."""

    kind: str
    broker: Broker
    exchange: str
    purpose: str
    put: Callable[[CloudEvent, str], None]
    #: By id: a list is no part of the transaction, and an attempt that is put off leaves its line.
    seen: dict[str, Envelope] = field(default_factory=dict)
    refuse: set[str] = field(default_factory=set)

    def services(self) -> list[Service]:
        listener = Service("listening")

        @listener.on(OrderPlaced, name=self.purpose, retry=Retry(max_attempts=1))
        def listen(event: OrderPlaced, context: HandlerContext) -> None:
            if event.order_id in self.refuse:
                raise TerminalError("not today")
            self.seen[context.envelope.event_id] = context.envelope

        return [
            listener,
            Service("own", publishes=[OwnPlaced], wire="envelope"),
            Service("whole", publishes=[WholePlaced]),  # as Events says
            Service("parts", publishes=[PartsPlaced], wire="binary"),
        ]


def plainly(given: CloudEvent, mode: str) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body where there is no binding of its own: as RabbitMQ's, which is plain text."""
    written = (rabbitmq.to_structured if mode == "structured" else rabbitmq.to_binary)(given, JSONFormat())
    return {**written.headers, "content-type": str(written.content_type)}, written.body


@pytest.fixture(params=["memory", "rabbitmq", "redis", "kafka"])
def wired(request: pytest.FixtureRequest) -> Iterator[Wired]:
    kind, name = request.param, uuid.uuid4().hex[:8]
    exchange, purpose = f"ce.{name}", f"take_{name}"
    queue = f"listening.{purpose}"
    json_format = JSONFormat()
    broker: Broker
    if kind == "memory":
        memory = broker = MemoryBroker()

        def put(given: CloudEvent, mode: str) -> None:
            headers, body = plainly(given, mode)
            memory.publish([Outgoing(id="x", topic=str(given.get_type()), body=body, headers=headers)])

    elif kind == "rabbitmq":
        url = request.getfixturevalue("rabbitmq").url
        broker = broker_of(kind, url)

        def put(given: CloudEvent, mode: str) -> None:
            written = (rabbitmq.to_structured if mode == "structured" else rabbitmq.to_binary)(given, json_format)
            message = Message(written.body, content_type=written.content_type, application_headers=written.headers)
            with Connection(url) as connection:
                channel = connection.channel()
                channel.basic_publish_confirm(message, exchange=exchange, routing_key=given.get_type())

    elif kind == "redis":
        url = request.getfixturevalue("redis_server").url
        broker = broker_of(kind, url)

        def put(given: CloudEvent, mode: str) -> None:
            headers, body = plainly(given, mode)
            with redis.Redis.from_url(url) as client:
                client.xadd(f"sagas:queue:{queue}", {**headers, "body": body})

    else:
        address = request.getfixturevalue("kafka").address
        broker = broker_of(kind, address)

        def put(given: CloudEvent, mode: str) -> None:
            written = (kafka.to_structured if mode == "structured" else kafka.to_binary)(given, json_format)
            producer = Producer({"bootstrap.servers": address})
            headers: Any = list(written.headers.items())
            producer.produce(exchange, written.value, written.key, headers=headers)
            assert producer.flush(20) == 0

    yield Wired(kind, broker, exchange, purpose, put)
    broker.close()


def as_cloudevent(kind: str, delivery: Delivery) -> CloudEvent:
    """Read what a broker carries by the SDK's own binding for it."""
    headers, content_type = dict(delivery.headers), delivery.headers.get("content-type")
    read: Any
    if kind == "kafka":
        raw = {name: value.encode() for name, value in headers.items()}
        key = None if delivery.key is None else delivery.key.encode()
        read = kafka.from_kafka_event(kafka.KafkaMessage(headers=raw, key=key, value=delivery.body))
    else:
        headers.pop("content-type")
        read = rabbitmq.from_rabbitmq_event(
            rabbitmq.RabbitMQMessage(headers=headers, content_type=content_type, body=delivery.body)
        )
    assert isinstance(read, CloudEvent)
    return read


def test_what_is_written_is_what_their_sdk_reads(wired: Wired, store: SqlStore) -> None:
    tap = Service("tapping")
    purpose = f"tap_{wired.exchange[3:]}"
    tap.on(OwnPlaced, WholePlaced, PartsPlaced, name=purpose)(_tap)
    services = [*wired.services()[1:], tap]
    events = Events(services, engine=store.engine, broker=wired.broker, exchange=wired.exchange, wire="structured")
    events.apply_topology()
    reader = wired.broker.reader(f"tapping.{purpose}")
    with Session(store.engine) as session, session.begin():
        sent = [
            events.publish(cls(order_id="ö 1"), session, key="k 1", metadata={"region": "eu west"})
            for cls in (OwnPlaced, WholePlaced, PartsPlaced)
        ]
    events.relay.send()
    got = {delivery.topic: delivery for delivery in take(reader, 3, ack=True)}
    reader.close()
    own, whole, parts = (got[envelope.topic] for envelope in sent)
    assert Envelope.decode(own.body) == sent[0]
    assert whole.headers == {"content-type": "application/cloudevents+json"}
    assert json.loads(parts.body) == {"order_id": "ö 1"}
    for delivery, envelope in ((whole, sent[1]), (parts, sent[2])):
        read = as_cloudevent(wired.kind, delivery)
        assert (read.get_id(), read.get_source(), read.get_type()) == (
            envelope.event_id, envelope.source, envelope.topic
        )  # fmt: skip
        assert read.get_time() == envelope.timestamp
        assert read.get_data() == {"order_id": "ö 1"}
        assert read.get_extension("correlationid") == envelope.correlation_id
        assert read.get_extension("partitionkey") == "k 1"
        assert read.get_extension("region") == "eu west"


def _tap(event: OwnPlaced | WholePlaced | PartsPlaced) -> None:
    raise NotImplementedError


def foreign(number: int, **extensions: Any) -> CloudEvent:
    attributes = {
        "id": f"A-{number}", "source": "https://shop.example/é", "type": "orders.order.placed.v1", "time": TIME,
        "datacontenttype": "application/json", "partitionkey": "k", **extensions,
    }  # fmt: skip
    return CloudEvent(attributes, {"order_id": f"o-{number}"})


def test_what_their_sdk_writes_is_handled(wired: Wired, store: SqlStore) -> None:
    events = Events(wired.services(), engine=store.engine, broker=wired.broker, exchange=wired.exchange)
    events.apply_topology()
    wired.refuse = {"o-3"}
    for number, mode in enumerate(["structured", "binary", "binary", "structured"]):
        wired.put(foreign(number, correlationid="story"), mode)
    wired.put(foreign(0, correlationid="story"), "binary")  # the same once more
    wired.put(CloudEvent({"id": "B", "source": "s", "type": "orders.order.placed.v1"}, {"order_id": 5}), "structured")
    with ThreadPoolExecutor(4) as executor:
        consumers = events.consumers(InProcess(events.handle, executor))
        consumers.start()
        try:
            wait_for(lambda: len(events.dead_letters()) == 2 and len(wired.seen) == 3, 60, "all are dealt with")
            refused, unreadable = sorted(events.dead_letters(), key=lambda letter: "not today" not in letter.error)
            assert "order_id" in unreadable.error
            wired.refuse.clear()
            events.replay([refused], reason="mended", dry_run=False)
            events.relay.send()
            wait_for(lambda: len(wired.seen) == 4, 30, "the replay is handled")
        finally:
            consumers.stop(5)
            assert consumers.join(10)
    for envelope in wired.seen.values():
        assert (envelope.source, envelope.correlation_id, envelope.key) == ("https://shop.example/é", "story", "k")
        assert (envelope.timestamp, envelope.metadata["ceid"][:2]) == (TIME, "A-")
    assert sorted(json.loads(bytes(envelope.data))["order_id"] for envelope in wired.seen.values()) == [
        "o-0",
        "o-1",
        "o-2",
        "o-3",
    ]


def test_a_wire_that_there_is_not(store: SqlStore) -> None:
    with pytest.raises(ConfigurationError, match="wire='avro' must be one of 'envelope', 'structured', 'binary'"):
        Events([], engine=store.engine, broker=MemoryBroker(), wire="avro")  # type: ignore[arg-type]
