"""Writes records to Kafka, and returns when all of them are stored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from sagas.errors import BrokerUnavailable, InvalidMessage
from sagas.events.brokers.kafka.cluster import Cluster, leave_to_parent, milliseconds
from sagas.events.brokers.kafka.records import Record
from sagas.events.brokers.shared import in_forks

__all__ = ["AROUND", "Publisher"]

#: Bytes that a record may add to its body for headers, key and framing.
AROUND = 64 * 1024

#: Kafka's errors for a record that is itself invalid, and that would fail again.
_REFUSALS = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP)


class Publisher:
    """An idempotent producer, replaced whenever it failed. Safe to use from any thread."""

    def __init__(self, cluster: Cluster, max_message_size: int) -> None:
        self._cluster = cluster
        self._max_message_size = max_message_size
        self._producer: Producer | None = None
        self._lock = threading.Lock()
        in_forks(self)

    def after_fork(self) -> None:
        leave_to_parent(self._producer)
        self._producer = None
        self._lock = threading.Lock()

    def check_size(self, size: int) -> None:
        """Raise `InvalidMessage` if a body is too large."""
        if size > self._max_message_size:
            raise self._too_large(size)

    def publish(self, records: Sequence[Record]) -> None:
        """Write records in order.

        Raises `InvalidMessage` for a record that Kafka cannot accept, and `BrokerUnavailable` if it is uncertain
        whether Kafka stored all of them. In each case, some may have been stored.
        """
        failures: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failures.append(error)

        with self._lock:
            producer = self._producer or self._new_producer()
            self._producer = None  # what a failed producer still sends might arrive after the next messages
            try:
                for record in records:
                    self._produce(producer, record, on_delivery)
            except BaseException:
                producer.purge()
                raise
            unanswered = producer.flush(self._cluster.timeout + 1)
            if not unanswered and not failures:
                self._producer = producer
                return
            producer.purge()
        if refused := next((error for error in failures if error.code() in _REFUSALS), None):
            raise InvalidMessage(f"{self._cluster!r} rejected a message: {refused.str()}")
        why = failures[0].str() if failures else "no answer"
        count = unanswered + len(failures)
        raise BrokerUnavailable(f"{self._cluster!r} did not confirm {count} of {len(records)} messages: {why}")

    def _new_producer(self) -> Producer:
        return Producer(
            self._cluster.config(
                enable_idempotence=True,
                acks="all",
                linger_ms=5,
                message_timeout_ms=milliseconds(self._cluster.timeout),
                message_max_bytes=self._max_message_size + AROUND,
                partitioner="murmur2_random",  # as in Java's client
            )
        )

    def _produce(
        self, producer: Producer, record: Record, on_delivery: Callable[[KafkaError | None, Message], None]
    ) -> None:
        while True:
            try:
                producer.produce(
                    record.topic, record.value, record.key, headers=list(record.headers), on_delivery=on_delivery
                )
            except BufferError:  # the producer's local queue is full
                producer.poll(0.1)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise
                raise self._too_large(len(record.value)) from error
            else:
                return

    def _too_large(self, size: int) -> InvalidMessage:
        return InvalidMessage(
            f"a message of {size:,} bytes, plus its headers, is too large for Kafka: the limit is "
            f"{self._max_message_size:,} bytes (max_message_size). Store the data elsewhere and publish a reference"
        )

    def close(self) -> None:
        with self._lock:
            self._producer = None
