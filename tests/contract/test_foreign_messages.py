"""Whatever somebody else puts into a queue: a dead letter that holds it as it came, and the messages around it handled.

Each broker gets all of its inputs in one batch, with good messages between them, and then there is one condition.
`SAGAS_FUZZ` is how many inputs Hypothesis makes for each; thousands are worth their minutes after a change of a broker.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import uuid4

import amqp
import pytest
from confluent_kafka import Producer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from kombu.connection import Connection as KombuConnection
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from sagas import Retry, SqlStore
from sagas.errors import BrokerUnavailable, InvalidMessage
from sagas.events import Envelope, Events, Service, event
from sagas.events.brokers import Broker, Outgoing, Queue, Topology
from sagas.events.brokers.kafka import KafkaBroker
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.brokers.rabbitmq import RabbitBroker
from sagas.events.brokers.redis_streams import RedisBroker
from sagas.events.outbox import outbox_row, shard_of
from sagas.events.runners import InProcess
from sagas.stores import schema
from tests.databases import database_url
from tests.servers import Kafka, MariaDB, Postgres, RabbitMQ, Redis, wait_for

INPUTS = int(os.environ.get("SAGAS_FUZZ", "60"))
TOPIC = "orders.order.placed.v1"
ONCE = Retry(max_attempts=1)


@event("orders.order.placed")
class OrderPlaced:
    number: int


@dataclass
class Foreign:
    """A message of somebody else's."""

    body: bytes
    headers: list[tuple[str, Any]] = field(default_factory=list)
    properties: dict[str, Any] = field(default_factory=dict)  #: of AMQP
    raw: bytes | None = None  #: what AMQP has instead of properties, as it is on the wire
    key: bytes | None = None
    fields: list[tuple[bytes, bytes]] | None = None  #: of Redis
    tombstone: bool = False


def envelope(**changes: Any) -> bytes:
    """A message of ours, with something wrong."""
    good = json.loads(Envelope.wrap(OrderPlaced(number=1), source="orders").encode())
    metadata = {**good["metadata"], **changes.pop("metadata", {})}
    return json.dumps({**good, "metadata": metadata, **changes}).encode()


def _deep(levels: int) -> bytes:
    return envelope(data="DEEP").replace(b'"DEEP"', b"[" * levels + b"]" * levels)


#: Envelopes that decode, more or less, and cannot be stored, or should not.
UNSTORABLE: Sequence[bytes] = [
    envelope(eventId="a\0b"), envelope(eventId="x" * 37), envelope(eventId="x "), envelope(eventId="\ud800"),
    envelope(eventId=""), envelope(eventType="a.b.\0done"), envelope(eventType="x" * 101), envelope(source="\0"),
    envelope(source="s" * 101), envelope(version=2**31), envelope(version=-1), envelope(version=0),
    envelope(version=10**30), envelope(timestamp="0001-01-01T00:00:00+14:00"),
    envelope(timestamp="9999-12-31T23:59:59-12:00"), envelope(timestamp="2024-01-01T00:00:60Z"),
    envelope(metadata={"key": "k\0"}), envelope(metadata={"key": "k" * 201}),
    envelope(metadata={"correlationId": "\0"}), envelope(metadata={"correlationId": "c" * 300}),
    envelope(metadata={"causationId": "\udfff"}), envelope(metadata={"hops": 2**70}),
    envelope(metadata={"hops": -1}), envelope(metadata={"kind": "request"}), envelope(metadata={"path": [1]}),
    envelope(metadata={"replayOf": 2**70}), envelope(metadata={"more": float("nan")}),
    envelope(metadata={"more": "\ud800"}), envelope(data=float("inf")), _deep(5_000), _deep(400),
    envelope(data={"number": "x"}), envelope(data="BYTES").replace(b"BYTES", b"\xff"), envelope(version=7),
    envelope()[:-1], b"\xef\xbb\xbf" + envelope(), envelope().decode().encode("utf-16"), b"", b"null", b"[]", b"{}",
    b'{"order_id": "legacy"}', b"\x00", b"\xff\xfe", b"0" * 70_000,
]  # fmt: skip

_bytes = st.binary(max_size=80)
_names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_bodies = st.one_of(
    _bytes,
    st.sampled_from(UNSTORABLE),
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
                 lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
                 max_leaves=8).map(lambda value: json.dumps(value).encode()),
    st.builds(lambda at, what: envelope()[:at] + what + envelope()[at + 1:], st.integers(0, 300), st.binary(max_size=2)),
)  # fmt: skip
_amqp_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.binary(max_size=20)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.decimals(-10_000, 10_000, places=2)
    | st.datetimes(datetime(1970, 1, 1))  # noqa: DTZ001 - AMQP has no zones
   ,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
_properties = st.fixed_dictionaries(
    {},
    optional={
        "content_type": st.sampled_from(["application/json", "text/plain", "application/x-python-serialize", "x" * 255]),
        "content_encoding": st.sampled_from(["utf-8", "gzip", "rot13", "base64", "binary", "no-such"]),
        "priority": st.integers(0, 255), "timestamp": st.integers(0, 2**64 - 1), "type": st.text("abc.", max_size=255),
        "message_id": st.text("abc", max_size=255), "app_id": st.text("abc", max_size=20), "reply_to": _names,
        "correlation_id": _names,
    },
)  # fmt: skip


def _table(fields: bytes) -> bytes:
    return b"\x20\0" + struct.pack(">I", len(fields)) + fields


#: Properties that no client of ours would write, or py-amqp cannot read.
_RAW = [
    _table(b"\x01tT" + struct.pack(">Q", 1_700_000_000_000)),  # milliseconds, as from Spring
    _table(b"\x01tT" + struct.pack(">Q", 2**64 - 1)),
    _table(b"\x01dD\xff" + struct.pack(">i", -5)),
    _table(b"\x02\xff\xfeS" + struct.pack(">I", 2) + b"\xff\xfe"),
    b"\x80\0\x02\xff\xfe",  # a content type that is no text
    b"\x00\x20\x02\xff\xfe",  # a type that is none
]
_foreign = st.builds(
    Foreign,
    body=_bodies,
    headers=st.lists(st.tuples(_names, st.none() | st.binary(max_size=30)), max_size=4),
    properties=st.builds(
        lambda properties, headers: {**properties, **({"application_headers": headers} if headers else {})},
        _properties,
        st.dictionaries(_names | st.sampled_from(["x-delivery-count", "sagas-key", "compression"]), _amqp_values,
                        max_size=3),
    ),
    raw=st.none() | st.sampled_from(_RAW),
    key=st.none() | _bytes,
    fields=st.none() | st.lists(
        st.tuples(st.sampled_from([b"about", b"body"]) | _bytes, _bytes
                  | st.sampled_from([b"{", b'{"topic":5}', b'{"topic":"t","headers":{"a":"\\u0000"}}'])),
        min_size=1, max_size=4),
    tombstone=st.booleans(),
)  # fmt: skip


def made(count: int) -> list[Foreign]:
    """All that is known to be awkward, and as much again as is asked for from Hypothesis."""
    found = [Foreign(body) for body in UNSTORABLE]
    found += [Foreign(b"x", raw=raw) for raw in _RAW]
    found += [Foreign(b"x", properties={"application_headers": {"big": "x" * 100_000}}), Foreign(b"x", tombstone=True)]
    found += [Foreign(b"x", fields=[(b"foo", b"bar")]), Foreign(b"x", key=b"\xff\0")]

    @settings(
        max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        deadline=None,
    )  # fmt: skip
    @given(_foreign)
    def collect(foreign: Foreign) -> None:
        found.append(foreign)

    collect()
    return found


@dataclass
class Place:
    """Services on one broker, and how somebody else puts something into their queue."""

    events: Events
    put: Callable[[Foreign], bytes]  #: returns the body that a dead letter has to hold
    flush: Callable[[], object]
    handled: list[int]
    queue: str

    def publish(self, number: int) -> None:
        with Session(self.events.engine) as session, session.begin():
            self.events.publish(OrderPlaced(number=number), session, key=f"key {number % 3}")
        self.events.relay.send()


def _events(broker: Broker, url: str, *, ordered: bool = False) -> tuple[Events, list[int], str]:
    store, handled, mark = SqlStore(url), list[int](), f"s{uuid4().hex[:8]}"
    store.upgrade()
    orders, shop = Service("orders", publishes=[OrderPlaced]), Service(mark)

    @shop.on(OrderPlaced, name="note", retry=ONCE, ordered=ordered)
    def note(event: OrderPlaced) -> None:
        handled.append(event.number)

    events = Events([orders, shop], engine=store.engine, broker=broker, exchange=f"x.{mark}", prefetch=100)
    events.apply_topology()
    return events, handled, f"{mark}.note"


class _Raw(amqp.Message):  # type: ignore[misc]
    raw = b""

    def _serialize_properties(self) -> bytes:
        return self.raw


def _rabbit(url: str, exchange: str) -> tuple[Callable[[Foreign], bytes], Callable[[], object]]:
    connection = amqp.Connection(url.partition("@")[2].rstrip("/"))
    connection.connect()
    channel = connection.channel()
    channel.confirm_select()

    def put(foreign: Foreign) -> bytes:
        if foreign.raw is None:
            message = amqp.Message(foreign.body, **foreign.properties)
        else:
            message = _Raw(foreign.body)
            message.raw = foreign.raw
        channel.basic_publish_confirm(message, exchange=exchange, routing_key=TOPIC)
        return foreign.body

    return put, lambda: None


def _redis(server: Redis, queue: str) -> tuple[Callable[[Foreign], bytes], Callable[[], object]]:
    client: Any = server.client()

    def put(foreign: Foreign) -> bytes:
        fields = foreign.fields or [(b"about", b'{"topic":"t","headers":{}}'), (b"body", foreign.body)]
        client.execute_command("XADD", f"sagas:queue:{queue}", "*", *[part for pair in fields for part in pair])
        bodies = [value for name, value in fields if name == b"body"]
        return bodies[0] if len(bodies) == 1 else b""

    return put, lambda: None


def _kafka(address: str, exchange: str) -> tuple[Callable[[Foreign], bytes], Callable[[], object]]:
    producer = Producer({"bootstrap.servers": address})

    def put(foreign: Foreign) -> bytes:
        body = None if foreign.tombstone else foreign.body
        headers = [*foreign.headers, ("sagas-topic", TOPIC.encode())]
        producer.produce(exchange, body, foreign.key, headers=headers)  # type: ignore[arg-type, unused-ignore]
        return body or b""

    return put, lambda: producer.flush(20)


@pytest.fixture(params=["memory", "rabbitmq", "redis", "kafka"])
def place(request: pytest.FixtureRequest, postgres: Postgres, mariadb: MariaDB) -> Iterator[Place]:
    database = (mariadb if request.param == "redis" else postgres).database()
    broker: Broker
    match request.param:
        case "rabbitmq":
            rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
            broker = RabbitBroker(rabbitmq.url)
            events, handled, queue = _events(broker, database)
            put, flush = _rabbit(rabbitmq.url, events.exchange)
        case "redis":
            server: Redis = request.getfixturevalue("redis_server")
            broker = RedisBroker(server.url)
            events, handled, queue = _events(broker, database)
            put, flush = _redis(server, queue)
        case "kafka":
            kafka: Kafka = request.getfixturevalue("kafka")
            broker = KafkaBroker(kafka.address, partitions=2)
            events, handled, queue = _events(broker, database)
            put, flush = _kafka(kafka.address, events.exchange)
        case _:
            broker = MemoryBroker()
            events, handled, queue = _events(broker, database)

            def put(foreign: Foreign) -> bytes:
                broker.publish([Outgoing(id="", topic=TOPIC, body=foreign.body, headers={"a": "\0"}, key="\0" * 300)])
                return foreign.body

            flush = lambda: None  # noqa: E731
    yield Place(events, put, flush, handled, queue)
    broker.close()
    events.engine.dispose()


def test_whatever_others_send_is_kept_and_what_is_between_is_handled(place: Place) -> None:
    expected: Counter[bytes] = Counter()
    good = 0
    for number, foreign in enumerate(made(INPUTS)):
        body = place.put(foreign)
        if _is_good(body):
            continue  # by chance; it may be handled
        # An envelope that comes twice is the same message, and has one dead letter.
        expected[body] = 1 if _is_envelope(body) else expected[body] + 1
        if number % 20 == 0:
            place.publish(good)
            good += 1
    place.flush()
    place.publish(good)
    consumers = place.events.consumers(InProcess(place.events.handle, ThreadPoolExecutor(4)))
    consumers.start()
    try:
        total = sum(expected.values())
        wait_for(
            lambda: (
                set(range(good + 1)) <= {*place.handled}
                and place.events.open_dead_letters().get(place.queue, 0) >= total
                and not expected - _bodies_of(place)
            ),
            60 + total / 20,
            f"{good + 1} are handled, and {total} are dead letters that hold what came",
            pause=0.2,
        )
    finally:
        consumers.stop(5)
        consumers.join(10)
    letters = place.events.dead_letters(queue=place.queue, limit=100_000)
    place.events.discard(letters[:50], reason="not ours")
    assert place.events.open_dead_letters()[place.queue] == len(letters) - min(50, len(letters))


def _bodies_of(place: Place) -> Counter[bytes]:
    return Counter(letter.body for letter in place.events.dead_letters(queue=place.queue, limit=100_000))


def _is_envelope(body: bytes) -> bool:
    try:
        Envelope.decode(body)
    except InvalidMessage:
        return False
    return True


def _is_good(body: bytes) -> bool:
    try:
        return isinstance(Envelope.decode(body).open(OrderPlaced.__sagas_message__), OrderPlaced)  # type: ignore[attr-defined]
    except Exception:
        return False


@settings(max_examples=INPUTS * 5, deadline=None)
@given(_bodies)
def test_a_body_is_an_envelope_that_can_be_kept_or_none(body: bytes) -> None:
    try:
        found = Envelope.decode(body)
    except InvalidMessage:
        return
    again = Envelope.decode(found.encode())
    assert again.is_same(found)
    row = outbox_row(found)
    assert all("\0" not in value for value in row.values() if isinstance(value, str))
    assert len(found.event_id) <= 36
    assert all(len(value) <= 1_000 for value in found.headers().values())


# -- the outbox -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"])
def test_a_damaged_row_of_the_outbox_is_a_dead_letter_and_the_others_are_sent(
    kind: str, request: pytest.FixtureRequest, tmp_path: Any
) -> None:
    url = database_url(request, kind, tmp_path)
    events, _, queue = _events(MemoryBroker(), url)
    damaged: list[str] = []
    for number, body in enumerate(UNSTORABLE):
        try:
            Envelope.decode(body)
        except InvalidMessage:
            pass
        else:
            continue
        try:
            readable = body.decode()
        except UnicodeDecodeError:
            continue
        if "\0" in readable:
            continue  # no database of ours has it
        damaged.append(readable)
        with Session(events.engine) as session, session.begin():
            row = {**outbox_row(Envelope.wrap(OrderPlaced(number=number), source="orders", key="k")), "body": readable}
            session.execute(insert(schema.outbox), row)
            events.publish(OrderPlaced(number=number), session, key="k")
    events.relay.send()
    assert events.outbox_unsent() == 0
    letters = events.dead_letters(queue="", limit=1000)
    assert sorted(letter.body.decode() for letter in letters) == sorted(damaged)
    assert {letter.key for letter in letters} == {"k"}
    assert events.broker.depth(queue) == len(damaged)
    assert events.replay(letters, reason="try", dry_run=False) == []
    assert len(events.discard(letters, reason="damaged")) == len(letters)
    events.engine.dispose()


_MAX_SIZE = "application:set_env(rabbit, max_message_size, {0}), persistent_term:put(max_message_size, {0})."


@pytest.mark.parametrize("known", [True, False], ids=["known before", "refused by RabbitMQ"])
def test_what_is_too_large_for_rabbitmq_is_a_dead_letter_of_the_outbox(
    rabbitmq: RabbitMQ, postgres: Postgres, known: bool
) -> None:
    limit = 100_000
    rabbitmq.control("eval", _MAX_SIZE.format(limit))
    try:
        broker = RabbitBroker(rabbitmq.url, max_message_size=limit) if known else RabbitBroker(rabbitmq.url)
        events, _, queue = _events(broker, postgres.database())
        with Session(events.engine) as session, session.begin():
            events.publish(OrderPlaced(number=1), session, key="k")
            events.publish(OrderPlaced(number=2), session, key="k", metadata={"more": "x" * 200_000})
            events.publish(OrderPlaced(number=3), session, key="k")
        for number in range(40):
            with Session(events.engine) as session, session.begin():
                events.publish(OrderPlaced(number=number), session)
        events.relay.send()
        assert events.outbox_unsent() == 0
        [letter] = events.dead_letters(queue="")
        assert "max_message_size" in letter.error
        assert "delete" not in letter.error
        assert broker.depth(queue) >= 42
        assert broker.max_message_size == limit
    finally:
        rabbitmq.control("eval", _MAX_SIZE.format(134_217_728))
        broker.close()
        events.engine.dispose()


# -- queues that are not what is declared -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rabbitmq", "redis"])
def test_a_queue_that_is_something_else_stops_its_own_consumer_alone_and_loses_nothing(
    kind: str, request: pytest.FixtureRequest, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    store, mark = SqlStore(postgres.database()), f"s{uuid4().hex[:8]}"
    store.upgrade()
    handled: list[tuple[str, int]] = []
    orders, shop = Service("orders", publishes=[OrderPlaced]), Service(mark)
    for name in ("good", "wrong"):
        shop.on(OrderPlaced, name=name, retry=ONCE)(_noting(handled, name))
    broker: Broker
    queue = f"{mark}.wrong"
    if kind == "rabbitmq":
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
        broker = RabbitBroker(rabbitmq.url)
        with KombuConnection(rabbitmq.url) as connection, connection.channel() as channel:
            channel.queue_declare(queue, durable=True, auto_delete=False)  # a classic one
    else:
        server: Redis = request.getfixturevalue("redis_server")
        broker = RedisBroker(server.url)
        broker.client.set(f"sagas:queue:{queue}", "something else")
    events = Events([orders, shop], engine=store.engine, broker=broker, exchange=f"x.{mark}", relay_interval=0.05)
    executor = ThreadPoolExecutor(4)
    consumers = events.consumers(InProcess(events.handle, executor))
    consumers.start()
    events.relay.start()
    try:
        for number in range(20):
            with Session(events.engine) as session, session.begin():
                events.publish(OrderPlaced(number=number), session)
        wait_for(lambda: len(handled) == 20, 30, "the other queue is read")
        assert {name for name, _ in handled} == {"good"}
        assert list(events.queue_mismatches()) == [queue]
        wait_for(lambda: f"{queue}: cannot read the queue" in caplog.text, 30, "that is said")
        assert "--if-empty" in caplog.text or "Rename the key" in caplog.text
        if kind == "rabbitmq":
            with KombuConnection(rabbitmq.url) as connection, connection.channel() as channel:
                assert channel.queue_declare(queue, passive=True).message_count == 20
                channel.queue_delete(queue)  # a person has moved them
        else:
            broker.client.delete(f"sagas:queue:{queue}")  # type: ignore[union-attr]
            wait_for(lambda: len(handled) == 40, 60, "what was kept is handled, by itself")
        wait_for(lambda: events.queue_mismatches() == {}, 60, "it is declared again")
    finally:
        consumers.stop(5)
        events.relay.stop()
        consumers.join(10)
        broker.close()
        events.engine.dispose()


def _noting(handled: list[tuple[str, int]], name: str) -> Callable[[OrderPlaced], None]:
    def note(event: OrderPlaced) -> None:
        handled.append((name, event.number))

    return note


# -- given out again, and given up ------------------------------------------------------------------------------------


def test_what_rabbitmq_gave_up_and_nobody_had_begun_is_handled(rabbitmq: RabbitMQ, postgres: Postgres) -> None:
    broker = RabbitBroker(rabbitmq.url)
    events, handled, queue = _events(broker, postgres.database())
    rabbitmq.control("set_policy", "few", f"^{queue}$", '{"delivery-limit": 2}', "--apply-to", "queues")
    try:
        for number in range(30):
            with Session(events.engine) as session, session.begin():
                events.publish(OrderPlaced(number=number), session, key=str(number))
        events.relay.send()
        broker.publish([Outgoing(id="x", topic=TOPIC, body=b"\xffpoison", headers={}, queue=queue)])

        def given_up() -> bool:
            reader = broker.reader(queue)
            reader.receive(1, 0.2)
            reader.close()
            return broker.depth(f"dlq.{queue}") == 31

        wait_for(given_up, 60, "readers that end at once have RabbitMQ give up all")
        assert events.collect_given_up() == 31
        [letter] = events.dead_letters(queue=queue)
        assert (letter.body, letter.error.partition(";")[0]) == (
            b"\xffpoison",
            "the broker gave up on the message: delivery_limit",
        )
        consumers = events.consumers(InProcess(events.handle, ThreadPoolExecutor(4)))
        consumers.start()
        events.relay.send()
        wait_for(lambda: set(handled) == set(range(30)), 30, "the innocent are handled")
        consumers.stop(5)
        consumers.join(10)
    finally:
        rabbitmq.control("clear_policy", "few")
        broker.close()
        events.engine.dispose()


def test_what_was_only_fetched_comes_back_at_once_and_is_no_suspect(redis_server: Redis, postgres: Postgres) -> None:
    """A reader is killed with a hundred in hand. They are handled side by side; and a failure is a failure."""
    store, mark = SqlStore(postgres.database()), f"s{uuid4().hex[:8]}"
    store.upgrade()
    orders, shop = Service("orders", publishes=[OrderPlaced]), Service(mark)
    attempts: Counter[int] = Counter()
    at_once = threading.Semaphore(0)
    together = threading.Barrier(4, timeout=20)

    @shop.on(OrderPlaced, name="note", retry=Retry(max_attempts=9, delay=0.01, factor=1, jitter=0))
    def note(event: OrderPlaced) -> None:
        attempts[event.number] += 1
        if event.number < 4 and attempts[event.number] == 1:
            together.wait()  # passes when four of them run at the same time
            at_once.release()
        if event.number == 7 and attempts[7] < 8:
            raise ConnectionError("the provider is away")

    broker = RedisBroker(redis_server.url, lease=1)
    events = Events([orders, shop], engine=store.engine, broker=broker, exchange=f"x.{mark}", prefetch=100)
    events.apply_topology()
    with Session(events.engine) as session, session.begin():
        for number in range(100):
            events.publish(OrderPlaced(number=number), session)
    events.relay.send()
    dead = broker.reader(f"{mark}.note")
    assert len(dead.receive(100, 5)) == 100
    dead.close()
    consumers = events.consumers(InProcess(events.handle, ThreadPoolExecutor(4)))
    consumers.start()
    try:
        wait_for(lambda: len(attempts) == 100 and attempts[7] == 8, 40, "all are handled")
        assert [at_once.acquire(timeout=1) for _ in range(4)] == [True] * 4
        wait_for(lambda: broker.depth(f"{mark}.note") == 0, 10, "all are acknowledged")
        assert events.dead_letters() == []
        with events.engine.connect() as connection:
            assert connection.execute(select(schema.redeliveries)).all() == []
    finally:
        consumers.stop(5)
        consumers.join(10)
        broker.close()
        events.engine.dispose()


def test_redis_gives_out_again_in_order_after_a_restart() -> None:
    with Redis(durable=True) as server:
        broker = RedisBroker(server.url, lease=20)
        broker.declare(Topology("x", (Queue("q", ("t",)),)))
        broker.publish([Outgoing(id=str(n), topic="t", body=b"%d" % n, headers={}, key="k") for n in range(6)])
        reader = broker.reader("q")
        assert len(reader.receive(3, 5)) == 3
        server.kill()
        with pytest.raises(BrokerUnavailable):
            reader.receive(3, 1)
        reader.close()
        server.start()
        got: list[int] = []
        reader = broker.reader("q")  # as a consumer does

        def all_came() -> bool:
            for delivery in reader.receive(2, 0.5):
                got.append(int(delivery.body))
                reader.ack(delivery)
            return len(got) == 6

        wait_for(all_came, 15, "all come, before the lease of the first reader is over", pause=0)
        assert got == sorted(got)
        broker.close()


class Picky(MemoryBroker):
    """A broker that does not confirm the messages of one key, and fails in its own way at those of another."""

    def publish(self, messages: Sequence[Outgoing]) -> Collection[str]:
        keys = {message.key for message in messages}
        if "unsure" in keys:
            raise BrokerUnavailable("not confirmed")
        if "odd" in keys:
            raise struct.error("a client that nobody foresaw")
        return super().publish(messages)


def test_a_part_of_the_outbox_that_cannot_be_sent_rests_and_the_others_go_on(tmp_path: Any) -> None:
    events, _, queue = _events(Picky(), f"sqlite:///{tmp_path / 'e.db'}")
    with Session(events.engine) as session, session.begin():
        for number in range(300):
            events.publish(OrderPlaced(number=number), session, key=f"key {number}")
        events.publish(OrderPlaced(number=300), session, key="unsure")
        events.publish(OrderPlaced(number=301), session, key="odd")
    with pytest.raises(BrokerUnavailable):
        events.relay.send()
    shard = shard_of("unsure")
    left = sum(shard_of(f"key {number}") == shard for number in range(300)) + 1 + (shard_of("odd") == shard)
    assert events.outbox_unsent() == left
    if shard_of("odd") != shard:
        [letter] = events.dead_letters(queue="")
        assert (letter.key, letter.error) == ("odd", "it cannot be sent: error: a client that nobody foresaw")
    assert events.broker.depth(queue) >= 301 - left
    events.engine.dispose()
