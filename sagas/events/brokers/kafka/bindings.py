"""The compacted topic `sagas.bindings`: which queues exist in a cluster, and what is bound to them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any

import msgspec
from confluent_kafka import Consumer, Message, TopicPartition

from sagas.errors import BrokerUnavailable
from sagas.events.brokers import Topology
from sagas.events.brokers.kafka.cluster import Cluster, leave_to_parent
from sagas.events.brokers.kafka.records import Record
from sagas.events.brokers.shared import in_forks, is_bound

__all__ = ["BINDINGS", "Binding", "Bindings"]

logger = logging.getLogger(__name__)

#: The topic that holds the bindings of all exchanges in a cluster.
BINDINGS = "sagas.bindings"

#: The value of a record that removes a binding.
_REMOVED = b"removed"


class Binding(msgspec.Struct, frozen=True, array_like=True):
    """The content of one record of `sagas.bindings`: a queue exists, or a topic is bound to it."""

    queue: str
    exchange: str = ""
    topic: str = ""

    def record(self, *, removed: bool = False) -> Record:
        """Return the record that declares it, or removes it."""
        return Record(BINDINGS, msgspec.json.encode(self), _REMOVED if removed else b"")

    @classmethod
    def of(cls, topology: Topology) -> Iterator[Binding]:
        """Yield everything that a topology declares."""
        for queue in topology.queues:
            yield cls(queue.name)
            for topic in queue.topics:
                yield cls(queue.name, topology.exchange, topic)


class Bindings:
    """Reads `sagas.bindings`, and each record once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._consumer: Consumer | None = None
        #: It reads nothing. A query on the other consumer would wait behind its fetch, half a second each time.
        self._asking: Consumer | None = None
        self._begin()
        in_forks(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._known: frozenset[Binding] = frozenset()
        self._read = 0  # the offset of the next record

    def after_fork(self) -> None:
        leave_to_parent(self._consumer)
        leave_to_parent(self._asking)
        self._consumer = self._asking = None
        self._begin()

    def has(self, queue: str) -> bool:
        return Binding(queue) in self._known or Binding(queue) in self.all()

    def of(self, queue: str, exchange: str, *, now: bool) -> frozenset[str]:
        """Return the topics that are bound to a queue: up to date if `now`, else as far as they are known."""
        known = self.all() if now else self._known
        return frozenset(b.topic for b in known if b.queue == queue and b.exchange == exchange)

    def sources(self, queue: str) -> list[str]:
        """Return the Kafka topics that a queue reads from."""
        bindings = [binding for binding in self.all() if binding.queue == queue]
        if not bindings:
            raise BrokerUnavailable(f"there is no queue {queue!r} at {self._cluster!r}. Declare it")
        return sorted({queue, *(binding.exchange for binding in bindings if binding.exchange)})

    def unheard(self, exchange: str, topics: set[str]) -> Collection[str]:
        """Return the topics that no queue is bound to."""

        def unbound(known: frozenset[Binding]) -> set[str]:
            bound = {binding.topic for binding in known if binding.exchange == exchange}
            return {topic for topic in topics if not is_bound(topic, bound)}

        return unbound(self._known) and unbound(self.all())

    def all(self) -> frozenset[Binding]:
        """Return all current bindings, including everything declared before this call."""
        timeout = self._cluster.timeout
        with self._lock:
            if self._consumer is None or self._asking is None:
                settings = self._cluster.config(
                    group_id=BINDINGS, enable_auto_commit=False, auto_offset_reset="earliest"
                )
                self._consumer, self._asking = Consumer(settings), Consumer(settings)
                self._consumer.assign([TopicPartition(BINDINGS, 0, self._read)])
            give_up = time.monotonic() + timeout
            _, end = self._cluster.ends(self._asking, TopicPartition(BINDINGS, 0))
            while self._read < end:
                message = self._consumer.poll(0.1)
                if message is not None and message.error() is None:
                    offset = message.offset()
                    assert offset is not None
                    self._take(message)
                    self._read = offset + 1
                elif time.monotonic() > give_up:
                    raise BrokerUnavailable(f"{self._cluster!r} did not send {BINDINGS!r} within {timeout:g} s")
            return self._known

    def _take(self, message: Message) -> None:
        key: Any = message.key()
        try:
            binding = msgspec.json.decode(key or b"", type=Binding)
        except (msgspec.MsgspecError, ValueError) as error:
            logger.warning("skipped record %s of %s: it is not a binding: %s", message.offset(), BINDINGS, error)
            return
        self._known = self._known - {binding} if message.value() == _REMOVED else self._known | {binding}

    def close(self) -> None:
        with self._lock:
            for consumer in (self._consumer, self._asking):
                if consumer is not None:
                    consumer.close()
            self._consumer = self._asking = None
