"""A broker on Kafka, through confluent-kafka: one Kafka topic for each exchange and one for each queue.

All events go to the topic of the exchange, so events with the same key stay in order whatever their types are. The
readers of a queue form a consumer group and skip what is not bound to the queue. Messages to a single queue go to that
queue's own topic. The compacted topic `sagas.bindings` records which queues exist and what is bound to them.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import msgspec
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from sagas.durations import seconds, whole_number
from sagas.errors import BrokerUnavailable, ConfigurationError, InvalidMessage, NoHandler, QueueMismatch
from sagas.events.brokers import Delivery, Outgoing, Reader, Topology
from sagas.events.brokers.shared import exchange_of, in_forks, is_bound, text_of, texts
from sagas.events.cloudevents import topic_of

__all__ = ["KafkaBroker"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: The topic that holds the bindings of all exchanges in a cluster.
_BINDINGS = "sagas.bindings"

#: The value of a record that removes a binding.
_REMOVED = b"removed"

#: The record header that this library sets. All other headers are the publisher's.
_TOPIC = "sagas-topic"

#: The header that marks a message whose body was null rather than empty: a tombstone.
_TOMBSTONE = "kafka-tombstone"

#: Bytes that a record may add to its body for headers, key and framing.
_AROUND = 64 * 1024

#: Kafka's errors for a record that is itself invalid, and that would fail again.
_REFUSALS = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP)


class _Binding(msgspec.Struct, frozen=True, array_like=True):
    """The content of one record of `sagas.bindings`: a queue exists, or a topic is bound to it."""

    queue: str
    exchange: str = ""
    topic: str = ""


class KafkaBroker:
    """Carries messages through Kafka 2.4 or newer.

    `servers`: as in `bootstrap.servers`. `partitions`: the number of partitions for a new exchange or command queue.
    It limits how many readers of one queue work at the same time. Kafka's defaults decide on replication and
    retention.
    `lease`: seconds of silence after which a reader counts as dead, and others receive its messages. `timeout`: how
    long Kafka may take to answer and to confirm. `max_message_size`: the largest body, in bytes. Kafka's default for a
    topic is just under one megabyte, so topics are created with this limit. `config`: more librdkafka settings for
    producers and consumers, such as `{"security.protocol": "SASL_SSL"}`.

    A reader that does not call `receive` for `max.poll.interval.ms`, five minutes, also counts as dead. Messages that
    are not read within the retention of their topic are lost; this is logged as an error.
    """

    def __init__(
        self,
        servers: str,
        *,
        partitions: int = 12,
        lease: float | timedelta = 30.0,
        timeout: float | timedelta = 10.0,
        max_message_size: int = 4 * 1024 * 1024,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.servers = servers
        self.max_message_size = whole_number(max_message_size, "KafkaBroker: max_message_size", ConfigurationError)
        self.lease = seconds(lease, "KafkaBroker: lease", ConfigurationError)
        self.timeout = seconds(timeout, "KafkaBroker: timeout", ConfigurationError)
        self._partitions = whole_number(partitions, "KafkaBroker: partitions", ConfigurationError)
        self._config = dict(config or {})
        self._exchange: str | None = None
        self._producer: Producer | None = None
        self._begin()
        in_forks(self)

    def __repr__(self) -> str:
        return f"<KafkaBroker {self.servers}>"

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self.bindings = _Bindings(self)

    #: The prefix of CloudEvents headers in the Kafka binding.
    cloudevents_prefix = "ce_"

    def after_fork(self) -> None:
        _leave_to_parent(self._producer)
        _leave_to_parent(self.bindings.consumer)
        _leave_to_parent(self.bindings.asking)
        self._producer = None
        self._begin()

    def config(self, **settings: Any) -> dict[str, Any]:
        """Return the configuration for a librdkafka client."""
        ours = {"bootstrap.servers": self.servers, "socket.timeout.ms": _milliseconds(self.timeout), "logger": logger}
        return {**ours, **{name.replace("_", "."): value for name, value in settings.items()}, **self._config}

    # -- declaring ------------------------------------------------------------------------------------------------

    def declare(self, topology: Topology) -> Sequence[str]:
        with _asked(self):
            made, wrong = self._create(topology)
            known = self.bindings.all()
            for queue in topology.queues:
                if queue.topics and not any(b.queue == queue.name and b.exchange == topology.exchange for b in known):
                    self._begin_here(queue.name, topology.exchange)
            new = [binding for binding in _bindings_of(topology) if binding not in known]
            self._produce([(_BINDINGS, msgspec.json.encode(binding), b"", []) for binding in new])
        self._exchange = topology.exchange
        if wrong:
            raise QueueMismatch(wrong)
        return made + [f"binding {binding.topic} -> {binding.queue}" for binding in new if binding.topic]

    def mismatches(self, topology: Topology) -> Mapping[str, str]:  # noqa: ARG002 - its topics have no types
        return {}

    def _create(self, topology: Topology) -> tuple[list[str], dict[str, str]]:
        """Create topics. Return what was created, and the queues that could not be created."""
        largest = {"max.message.bytes": str(self.max_message_size + _AROUND)}
        wanted = [
            NewTopic(_BINDINGS, 1, -1, config={"cleanup.policy": "compact"}),
            NewTopic(topology.exchange, self._partitions, -1, config=largest),
        ]
        # One partition is enough for replays. With more of them, Kafka might assign all replays to one reader and all
        # events to another, because it distributes partitions without regard to their traffic.
        wanted += [
            NewTopic(queue.name, 1 if queue.topics else self._partitions, -1, config=largest)
            for queue in topology.queues
        ]
        what = {_BINDINGS: "the bindings of all queues", topology.exchange: f"exchange {topology.exchange}"}
        made, wrong = [], {}
        admin = AdminClient(self.config())  # it must outlive its futures
        futures = admin.create_topics(wanted, operation_timeout=self.timeout, request_timeout=self.timeout)
        for name, future in futures.items():
            # Not raised: its traceback would keep the client alive, perhaps into a fork, where it cannot be destroyed.
            error = future.exception()  # returns within the client's timeout
            if error is None:
                made.append(what.get(name, f"queue {name}"))
            elif not isinstance(error, KafkaException):
                raise error
            elif error.args[0].retriable() or error.args[0].code() < 0:  # below 0: raised by the client itself
                raise KafkaException(error.args[0])
            elif error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                refused = f"{self!r} did not create the topic {name!r}: {error.args[0].str()}"
                if name in what:
                    raise ConfigurationError(refused)
                wrong[name] = f"{refused}. This process does not read that queue; its messages are kept"
        return made, wrong

    def _begin_here(self, queue: str, exchange: str) -> None:
        """Let a new queue start at the current end of an exchange."""
        consumer = Consumer(self.config(group_id=queue, enable_auto_commit=False))
        try:
            places = [TopicPartition(exchange, number) for number in self._numbers(consumer, exchange)]
            # Read the end first. If another process does the same, messages published after either commit count.
            for place in places:
                _, place.offset = _ends(consumer, place, self.timeout)
            already = _committed(consumer, [TopicPartition(p.topic, p.partition) for p in places], self.timeout)
            if all(place.offset == OFFSET_INVALID for place in already):
                _patiently(lambda: consumer.commit(offsets=places, asynchronous=False), self.timeout)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_MEMBER_ID:
                raise
            # The group has a reader by now: another process has declared the queue.
        finally:
            consumer.close()

    def _numbers(self, consumer: Consumer, topic: str) -> list[int]:
        """Return the numbers of a topic's partitions. The topic may have been created a moment ago."""
        give_up = time.monotonic() + self.timeout
        while True:
            metadata = consumer.list_topics(topic, timeout=self.timeout).topics[topic]
            if metadata.error is None:
                return sorted(metadata.partitions)
            if time.monotonic() > give_up:
                raise KafkaException(metadata.error)
            time.sleep(0.05)

    # -- publishing -----------------------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Outgoing]) -> Collection[str]:
        exchange = exchange_of(self._exchange) if any(message.queue is None for message in messages) else ""
        records = []
        for message in messages:
            if len(message.body) > self.max_message_size:
                raise self._too_large(len(message.body))
            headers = [(name, value.encode()) for name, value in message.headers.items()]
            headers.append((_TOPIC, message.topic.encode()))
            key = None if message.key is None else message.key.encode()
            records.append((message.queue or exchange, key, message.body, headers))
        with _asked(self):
            for queue in {message.queue for message in messages if message.queue is not None}:
                if not self.bindings.has(queue):
                    raise NoHandler(f"there is no queue {queue!r} at {self!r}. Declare it")
            self._produce(records)
            return self.bindings.unheard(exchange, {message.topic for message in messages if message.queue is None})

    def _produce(self, records: Sequence[tuple[str, bytes | None, bytes, list[tuple[str, bytes]]]]) -> None:
        failures: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failures.append(error)

        with self._lock:
            producer = self._producer or self._new_producer()
            self._producer = None  # what a failed producer still sends might arrive after the next messages
            try:
                for topic, key, body, headers in records:
                    self._produce_one(producer, topic, key, body, headers, on_delivery)
            except BaseException:
                producer.purge()
                raise
            unanswered = producer.flush(self.timeout + 1)
            if not unanswered and not failures:
                self._producer = producer
                return
            producer.purge()
        if refused := next((error for error in failures if error.code() in _REFUSALS), None):
            raise InvalidMessage(f"{self!r} rejected a message: {refused.str()}")
        why = failures[0].str() if failures else "no answer"
        count = unanswered + len(failures)
        raise BrokerUnavailable(f"{self!r} did not confirm {count} of {len(records)} messages: {why}")

    def _new_producer(self) -> Producer:
        return Producer(
            self.config(
                enable_idempotence=True,
                acks="all",
                linger_ms=5,
                message_timeout_ms=_milliseconds(self.timeout),
                message_max_bytes=self.max_message_size + _AROUND,
                partitioner="murmur2_random",  # as in Java's client
            )
        )

    def _produce_one(
        self, producer: Producer, topic: str, key: bytes | None, body: bytes, headers: Any, on_delivery: Any
    ) -> None:
        while True:
            try:
                producer.produce(topic, body, key, headers=headers, on_delivery=on_delivery)
            except BufferError:  # the producer's local queue is full
                producer.poll(0.1)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise
                raise self._too_large(len(body)) from error
            else:
                return

    def _too_large(self, size: int) -> InvalidMessage:
        return InvalidMessage(
            f"a message of {size:,} bytes, plus its headers, is too large for Kafka: the limit is "
            f"{self.max_message_size:,} bytes (max_message_size). Store the data elsewhere and publish a reference"
        )

    # -- removing -------------------------------------------------------------------------------------------------

    def unbind(self, exchange: str, queue: str, topics: Iterable[str]) -> None:
        self._forget({_Binding(queue, exchange, topic) for topic in topics})

    def delete(self, queue: str) -> None:
        with _asked(self):
            self._forget({binding for binding in self.bindings.all() if binding.queue == queue})
            admin = AdminClient(self.config())
            gone = [
                *admin.delete_topics([queue], operation_timeout=self.timeout, request_timeout=self.timeout).values(),
                *admin.delete_consumer_groups([queue], request_timeout=self.timeout).values(),
            ]
            for future in gone:
                error = future.exception()
                if isinstance(error, KafkaException) and error.args[0].code() not in _NOT_THERE:
                    raise KafkaException(error.args[0])

    def _forget(self, bindings: Collection[_Binding]) -> None:
        with _asked(self):
            there = [binding for binding in self.bindings.all() if binding in bindings]
            self._produce([(_BINDINGS, msgspec.json.encode(binding), _REMOVED, []) for binding in there])

    # -- the rest -------------------------------------------------------------------------------------------------

    def reader(self, queue: str) -> Reader:
        return _Reader(self, queue)

    def given_up(self, queue: str) -> str | None:  # noqa: ARG002 - Kafka never gives up on a message
        return None

    def depth(self, queue: str) -> int:
        """Return how many records its readers have yet to read, including those that are not bound to the queue."""
        consumer = Consumer(self.config(group_id=queue, enable_auto_commit=False))
        try:
            with _asked(self):
                places = [
                    TopicPartition(topic, number)
                    for topic in self.sources(queue)
                    for number in self._numbers(consumer, topic)
                ]
                depth = 0
                for place in _committed(consumer, places, self.timeout):
                    first, end = _ends(consumer, place, self.timeout)
                    depth += end - max(place.offset, first)
                return depth
        finally:
            consumer.close()

    def sources(self, queue: str) -> list[str]:
        """Return the Kafka topics that a queue reads from."""
        bindings = [binding for binding in self.bindings.all() if binding.queue == queue]
        if not bindings:
            raise BrokerUnavailable(f"there is no queue {queue!r} at {self!r}. Declare it")
        return sorted({queue, *(binding.exchange for binding in bindings if binding.exchange)})

    def close(self) -> None:
        with self._lock:
            self._producer = None
        self.bindings.close()


class _Bindings:
    """Reads `sagas.bindings`, and each record once."""

    def __init__(self, broker: KafkaBroker) -> None:
        self._broker = broker
        self._lock = threading.Lock()
        self._known: frozenset[_Binding] = frozenset()
        self._read = 0  # the offset of the next record
        self.consumer: Consumer | None = None
        #: It reads nothing. A query on the other consumer would wait behind its fetch, half a second each time.
        self.asking: Consumer | None = None

    def has(self, queue: str) -> bool:
        return _Binding(queue) in self._known or _Binding(queue) in self.all()

    def of(self, queue: str, exchange: str, *, now: bool) -> frozenset[str]:
        """Return the topics that are bound to a queue: up to date if `now`, else as far as they are known."""
        known = self.all() if now else self._known
        return frozenset(b.topic for b in known if b.queue == queue and b.exchange == exchange)

    def unheard(self, exchange: str, topics: set[str]) -> Collection[str]:
        """Return the topics that no queue is bound to."""

        def unbound(known: frozenset[_Binding]) -> set[str]:
            bound = {binding.topic for binding in known if binding.exchange == exchange}
            return {topic for topic in topics if not is_bound(topic, bound)}

        return unbound(self._known) and unbound(self.all())

    def all(self) -> frozenset[_Binding]:
        """Return all current bindings, including everything declared before this call."""
        timeout = self._broker.timeout
        with self._lock:
            if self.consumer is None or self.asking is None:
                settings = self._broker.config(
                    group_id=_BINDINGS, enable_auto_commit=False, auto_offset_reset="earliest"
                )
                self.consumer, self.asking = Consumer(settings), Consumer(settings)
                self.consumer.assign([TopicPartition(_BINDINGS, 0, self._read)])
            give_up = time.monotonic() + timeout
            _, end = _ends(self.asking, TopicPartition(_BINDINGS, 0), timeout)
            while self._read < end:
                message = self.consumer.poll(0.1)
                if message is not None and message.error() is None:
                    offset = message.offset()
                    assert offset is not None
                    self._take(message)
                    self._read = offset + 1
                elif time.monotonic() > give_up:
                    raise BrokerUnavailable(f"{self._broker!r} did not send {_BINDINGS!r} within {timeout:g} s")
            return self._known

    def _take(self, message: Message) -> None:
        key: Any = message.key()
        try:
            binding = msgspec.json.decode(key or b"", type=_Binding)
        except (msgspec.MsgspecError, ValueError) as error:
            logger.warning("skipped record %s of %s: it is not a binding: %s", message.offset(), _BINDINGS, error)
            return
        self._known = self._known - {binding} if message.value() == _REMOVED else self._known | {binding}

    def close(self) -> None:
        with self._lock:
            for consumer in (self.consumer, self.asking):
                if consumer is not None:
                    consumer.close()
            self.consumer = self.asking = None


@dataclass(slots=True, eq=False)
class Partition:
    """How far one partition was delivered and acknowledged, and how often its unacknowledged messages were delivered.

    `history` covers earlier deliveries: (end, count) stands for the messages from the previous end up to this one. It
    is stored in the metadata of the committed offset.
    """

    position: int | None  #: the next offset to read; None: not known yet
    history: tuple[tuple[int, int], ...] = ()
    given: int = 0  #: the end of what this process delivered
    unacknowledged: dict[int, None] = field(default_factory=dict)  #: in order
    committed: tuple[int, str] | None = None  #: what was last sent to be committed
    is_noted: bool = False  #: whether Kafka knows that this process delivered something

    @classmethod
    def of(cls, committed: TopicPartition) -> Partition:
        if committed.offset < 0:
            return cls(None)
        try:
            history = msgspec.json.decode(committed.metadata or "[]", type=tuple[tuple[int, int], ...])
        except msgspec.MsgspecError:  # another program committed it
            history = ()
        return cls(committed.offset, history)

    def read(self, offset: int) -> int:
        """Record a message as read, and return how many messages before it are missing."""
        missing = 0 if self.position is None else offset - self.position
        self.position = offset + 1
        self.unacknowledged[offset] = None
        return missing

    def give(self, offset: int) -> None:
        """Record that a message is delivered."""
        self.given = offset + 1

    def deliveries(self, offset: int) -> int:
        """Return how often a message has been delivered, this time included."""
        return 1 + next((count for end, count in self.history if offset < end), 0)

    def to_commit(self) -> tuple[int, str] | None:
        """Return the offset up to which everything is acknowledged, and the history from there on as metadata."""
        if self.position is None:
            return None
        offset = start = next(iter(self.unacknowledged), self.position)
        ranges: list[tuple[int, int]] = []
        for end, count in self.history:
            again = min(end, max(start, self.given))  # the end of what was redelivered
            if again > start:
                ranges.append((again, count + 1))
            if end > max(again, start):
                ranges.append((end, count))
            start = max(start, end)
        if self.given > start:
            ranges.append((self.given, 1))
        return offset, msgspec.json.encode(ranges[:_RANGES]).decode() if ranges else ""


#: How many ranges of one partition are recorded; Kafka stores 4,096 bytes of metadata.
_RANGES = 50


class _Reader:
    """A member of a consumer group. It commits its offsets up to the first unacknowledged message."""

    def __init__(self, broker: KafkaBroker, queue: str) -> None:
        self._broker = broker
        self._queue = queue
        self._consumer: Consumer | None = None
        self._begin()
        in_forks(self)

    def __repr__(self) -> str:
        return f"<reader of {self._queue}>"

    def _begin(self) -> None:
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._down: KafkaError | None = None

    def after_fork(self) -> None:
        _leave_to_parent(self._consumer)
        self._consumer = None
        self._begin()

    def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        try:
            with _asked(self._broker):
                deliveries = self._receive(self._consumer or self._open(), limit, timeout)
        except BaseException:
            self._end()  # some messages that were read may never be delivered
            raise
        down, self._down = self._down, None
        if down is not None and not deliveries:
            if down.fatal():
                self._end()
            raise BrokerUnavailable(f"{self._broker!r}: {down.str()}")  # the consumer reconnects by itself
        return deliveries

    def _open(self) -> Consumer:
        sources = self._broker.sources(self._queue)
        settings = self._broker.config(
            group_id=self._queue,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy="cooperative-sticky",
            session_timeout_ms=_milliseconds(self._broker.lease),
            heartbeat_interval_ms=_milliseconds(self._broker.lease / 10),
        )
        self._consumer = Consumer({**settings, "error_cb": self._on_error})
        self._consumer.subscribe(sources, self._on_assign, self._on_revoke, self._on_lost)
        return self._consumer

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN or error.fatal():  # noqa: SLF001 - its public name
            self._down = error

    def _on_assign(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        if consumer is self._consumer:
            for place in _committed(consumer, places, self._broker.timeout):
                self._partitions[place.topic, place.partition] = Partition.of(place)

    def _on_revoke(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        if consumer is self._consumer:
            self._commit(consumer, self._held(places), wait=True)
            self._on_lost(consumer, places)

    def _on_lost(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        if consumer is self._consumer:
            for key in self._held(places):
                del self._partitions[key]

    def _held(self, places: list[TopicPartition]) -> dict[tuple[str, int], Partition]:
        keys = [(place.topic, place.partition) for place in places]
        return {key: self._partitions[key] for key in keys if key in self._partitions}

    def _receive(self, consumer: Consumer, limit: int, timeout: float) -> list[Delivery]:
        give_up = time.monotonic() + timeout
        while True:
            read = self._read(consumer, limit, max(0.0, give_up - time.monotonic()))
            deliveries = self._bound(read)
            # Before the first messages of a partition are delivered. Otherwise a message that kills each reader would
            # look new to every one of them.
            fresh = {key: p for key, p in self._partitions.items() if p.unacknowledged and not p.is_noted}
            self._commit(consumer, fresh, wait=True)
            self._commit(consumer, self._partitions)
            if deliveries or self._down is not None or time.monotonic() >= give_up:
                return deliveries

    def _read(self, consumer: Consumer, limit: int, timeout: float) -> list[tuple[Partition, Message]]:
        """Wait for a message, and take those that arrived with it."""
        read: list[tuple[Partition, Message]] = []
        while len(read) < limit:
            message = consumer.poll(0 if read else min(timeout, 1.0))
            if message is None:
                break
            if (error := message.error()) is not None:
                raise KafkaException(error)
            partition = self._partitions.get((message.topic() or "", message.partition() or 0))
            if partition is not None:
                if (missing := partition.read(message.offset() or 0)) > 0:
                    where = f"{message.topic()}[{message.partition()}]"
                    logger.error("%d messages of %s were deleted before %r read them", missing, where, self)
                read.append((partition, message))
        current = set(self._partitions.values())  # some may have been revoked meanwhile
        return [(partition, message) for partition, message in read if partition in current]

    def _bound(self, read: list[tuple[Partition, Message]]) -> list[Delivery]:
        """Return the messages that are bound to the queue."""
        topics: dict[str, frozenset[str]] = {}
        for exchange in {message.topic() or "" for _, message in read} - {self._queue}:
            came = {_topic(message, _headers(message)) for _, message in read if message.topic() == exchange}
            topics[exchange] = self._broker.bindings.of(self._queue, exchange, now=False)
            if not all(is_bound(topic, topics[exchange]) for topic in came):
                # Before a message is skipped: its topic may have been bound since, before the message was published.
                topics[exchange] = self._broker.bindings.of(self._queue, exchange, now=True)
        deliveries = []
        for partition, message in read:
            headers = _headers(message)
            topic = _topic(message, headers)
            headers.pop(_TOPIC, None)
            if message.value() is None:
                headers[_TOMBSTONE] = "true"
            offset, key = message.offset() or 0, message.key()
            if message.topic() != self._queue and not is_bound(topic, topics[message.topic() or ""]):
                del partition.unacknowledged[offset]
                continue
            partition.give(offset)
            deliveries.append(
                Delivery(
                    queue=self._queue,
                    topic=topic,
                    body=_bytes(message.value()),
                    headers=headers,
                    key=None if key is None else text_of(key),
                    deliveries=partition.deliveries(offset),
                    tag=(partition, message.topic(), message.partition(), offset),
                )
            )
        return deliveries

    def _commit(self, consumer: Consumer, held: Mapping[tuple[str, int], Partition], *, wait: bool = False) -> None:
        places = []
        for key, partition in held.items():
            to_commit = partition.to_commit()
            if to_commit is not None and (wait or to_commit != partition.committed):
                partition.committed = to_commit
                places.append(TopicPartition(*key, *to_commit))
        if not places:
            return
        try:
            if wait:
                consumer.commit(offsets=places, asynchronous=False)
            else:
                consumer.commit(offsets=places)
        except KafkaException as error:  # the partitions were lost or Kafka is unavailable: they are redelivered
            logger.debug("%r: could not commit %s: %s", self, places, error)
            return
        for partition in held.values() if wait else ():
            partition.is_noted |= bool(partition.unacknowledged)

    def ack(self, delivery: Delivery) -> None:
        partition, *key, offset = delivery.tag
        partition.unacknowledged.pop(offset, None)
        current = self._partitions.get(tuple(key)) is partition  # else another reader has the partition
        if current and not partition.unacknowledged and self._consumer is not None:
            self._commit(self._consumer, {tuple(key): partition})

    def close(self) -> None:
        self._end(commit=True)

    def _end(self, *, commit: bool = False) -> None:
        """Leave the group, and wait for that no longer than the timeout: while Kafka is away it may take minutes."""
        consumer, self._consumer = self._consumer, None
        partitions, self._partitions, self._down = self._partitions, {}, None
        if consumer is None:
            return

        def leave() -> None:
            try:
                if commit:
                    self._commit(consumer, partitions, wait=True)
                consumer.close()
            except KafkaException as error:
                logger.debug("%r: closing the consumer failed: %s", self, error)

        leaving = threading.Thread(target=leave, name="sagas-reader-leaves", daemon=True)
        leaving.start()
        leaving.join(self._broker.timeout)


def _headers(message: Message) -> dict[str, str]:
    try:
        headers: Any = message.headers() or ()  # pairs, although the stubs allow more
    except UnicodeDecodeError:  # a header name that is not text
        return {}
    return texts(headers)


def _topic(message: Message, headers: Mapping[str, str]) -> str:
    """Return the topic a record was published under. Other publishers set a CloudEvents type, or nothing at all."""
    said = headers.get(_TOPIC)
    return topic_of(_bytes(message.value()), headers) if said is None else said


def _bytes(value: str | bytes | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""


def _bindings_of(topology: Topology) -> Iterator[_Binding]:
    for queue in topology.queues:
        yield _Binding(queue.name)
        for topic in queue.topics:
            yield _Binding(queue.name, topology.exchange, topic)


@contextmanager
def _asked(broker: KafkaBroker) -> Iterator[None]:
    """Raise `BrokerUnavailable` for every Kafka error."""
    try:
        yield
    except KafkaException as error:
        raise BrokerUnavailable(f"{broker!r}: {error.args[0].str()}") from error


#: Kafka's errors for deleting what does not exist.
_NOT_THERE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.GROUP_ID_NOT_FOUND)

#: Kafka's errors for what was created or moved a moment ago.
_NOT_YET = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001 - its public name
)


def _patiently(ask: Callable[[], T], timeout: float) -> T:
    """Repeat a request until Kafka is ready to answer it."""
    give_up = time.monotonic() + timeout
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in _NOT_YET or time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def _ends(consumer: Consumer, place: TopicPartition, timeout: float) -> tuple[int, int]:
    """Return the first offset of a partition and the next offset to be written."""
    return _patiently(lambda: consumer.get_watermark_offsets(place, timeout=timeout), timeout)


def _committed(consumer: Consumer, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
    """Return the committed offsets of a queue, with their metadata."""
    return _patiently(lambda: consumer.committed(places, timeout=timeout), timeout)


def _leave_to_parent(client: object) -> None:
    """In a fork: make sure that a client is never destroyed, because its threads do not exist here."""
    if client is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
