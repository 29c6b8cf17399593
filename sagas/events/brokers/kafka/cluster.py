"""A Kafka cluster: how its clients are configured, and how they ask it for what may not be there yet."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from sagas.errors import BrokerUnavailable

__all__ = ["Cluster", "leave_to_parent", "milliseconds"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

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


@dataclass(frozen=True, slots=True, repr=False)
class Cluster:
    """Where it is, and the settings of `KafkaBroker` that all clients share."""

    servers: str
    lease: float
    timeout: float
    settings: Mapping[str, Any] = field(default_factory=dict)  #: librdkafka's, which precede all others

    def __repr__(self) -> str:
        return f"<KafkaBroker {self.servers}>"

    def config(self, **settings: Any) -> dict[str, Any]:
        """Return the configuration for a librdkafka client."""
        ours = {"bootstrap.servers": self.servers, "socket.timeout.ms": milliseconds(self.timeout), "logger": logger}
        return {**ours, **{name.replace("_", "."): value for name, value in settings.items()}, **self.settings}

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Raise `BrokerUnavailable` for every Kafka error."""
        try:
            yield
        except KafkaException as error:
            raise BrokerUnavailable(f"{self!r}: {error.args[0].str()}") from error

    def patiently(self, ask: Callable[[], T]) -> T:
        """Repeat a request until Kafka is ready to answer it."""
        give_up = time.monotonic() + self.timeout
        while True:
            try:
                return ask()
            except KafkaException as error:
                if error.args[0].code() not in _NOT_YET or time.monotonic() > give_up:
                    raise
                time.sleep(0.02)

    def partitions(self, consumer: Consumer, topic: str) -> list[TopicPartition]:
        """Return the partitions of a topic, which may have been created a moment ago."""
        give_up = time.monotonic() + self.timeout
        while True:
            metadata = consumer.list_topics(topic, timeout=self.timeout).topics[topic]
            if metadata.error is None:
                return [TopicPartition(topic, number) for number in sorted(metadata.partitions)]
            if time.monotonic() > give_up:
                raise KafkaException(metadata.error)
            time.sleep(0.05)

    def ends(self, consumer: Consumer, place: TopicPartition) -> tuple[int, int]:
        """Return the first offset of a partition and the next offset to be written."""
        return self.patiently(lambda: consumer.get_watermark_offsets(place, timeout=self.timeout))

    def committed(self, consumer: Consumer, places: list[TopicPartition]) -> list[TopicPartition]:
        """Return the committed offsets of a queue, with their metadata."""
        return self.patiently(lambda: consumer.committed(places, timeout=self.timeout))


def leave_to_parent(client: object) -> None:
    """In a fork: make sure that a client is never destroyed, because its threads do not exist here."""
    if client is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


def milliseconds(seconds: float) -> int:
    """Return a duration as librdkafka takes it."""
    return round(seconds * 1000)
