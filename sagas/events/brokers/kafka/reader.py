"""Reads one queue of Kafka: a member of a consumer group."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from sagas.errors import BrokerUnavailable
from sagas.events.brokers import Delivery
from sagas.events.brokers.kafka.bindings import Bindings
from sagas.events.brokers.kafka.cluster import Cluster, leave_to_parent, milliseconds
from sagas.events.brokers.kafka.partition import Partition
from sagas.events.brokers.kafka.records import body_of, headers_of, published_under, publishers_headers
from sagas.events.brokers.shared import in_forks, is_bound, text_of

__all__ = ["KafkaReader"]

logger = logging.getLogger(__name__)


class KafkaReader:
    """A member of a consumer group. It commits its offsets up to the first unacknowledged message."""

    def __init__(self, cluster: Cluster, bindings: Bindings, queue: str) -> None:
        self._cluster = cluster
        self._bindings = bindings
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
        leave_to_parent(self._consumer)
        self._consumer = None
        self._begin()

    def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        try:
            with self._cluster.asked():
                deliveries = self._receive(self._consumer or self._open(), limit, timeout)
        except BaseException:
            self._end()  # some messages that were read may never be delivered
            raise
        down, self._down = self._down, None
        if down is not None and not deliveries:
            if down.fatal():
                self._end()
            raise BrokerUnavailable(f"{self._cluster!r}: {down.str()}")  # the consumer reconnects by itself
        return deliveries

    def _open(self) -> Consumer:
        sources = self._bindings.sources(self._queue)
        settings = self._cluster.config(
            group_id=self._queue,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy="cooperative-sticky",
            session_timeout_ms=milliseconds(self._cluster.lease),
            heartbeat_interval_ms=milliseconds(self._cluster.lease / 10),
        )
        self._consumer = Consumer({**settings, "error_cb": self._on_error})
        self._consumer.subscribe(sources, self._on_assign, self._on_revoke, self._on_lost)
        return self._consumer

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN or error.fatal():  # noqa: SLF001 - its public name
            self._down = error

    def _on_assign(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        if consumer is self._consumer:
            for place in self._cluster.committed(consumer, places):
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
            came = {published_under(each, headers_of(each)) for _, each in read if each.topic() == exchange}
            topics[exchange] = self._bindings.of(self._queue, exchange, now=False)
            if not all(is_bound(topic, topics[exchange]) for topic in came):
                # Before a message is skipped: its topic may have been bound since, before the message was published.
                topics[exchange] = self._bindings.of(self._queue, exchange, now=True)
        deliveries = []
        for partition, message in read:
            headers, offset = headers_of(message), message.offset() or 0
            topic = published_under(message, headers)
            if message.topic() != self._queue and not is_bound(topic, topics[message.topic() or ""]):
                del partition.unacknowledged[offset]
                continue
            partition.give(offset)
            deliveries.append(self._delivery(partition, message, topic, publishers_headers(message, headers)))
        return deliveries

    def _delivery(self, partition: Partition, message: Message, topic: str, headers: Mapping[str, str]) -> Delivery:
        offset, key = message.offset() or 0, message.key()
        return Delivery(
            queue=self._queue,
            topic=topic,
            body=body_of(message),
            headers=headers,
            key=None if key is None else text_of(key),
            deliveries=partition.deliveries(offset),
            tag=(partition, message.topic(), message.partition(), offset),
        )

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

    def ack(self, *deliveries: Delivery) -> None:
        for delivery in deliveries:
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
        leaving.join(self._cluster.timeout)
