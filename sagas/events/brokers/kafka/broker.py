"""A broker on Kafka, through confluent-kafka: one Kafka topic for each exchange and one for each queue.

All events go to the topic of the exchange, so events with the same key stay in order whatever their types are. The
readers of a queue form a consumer group and skip what is not bound to the queue. Messages to a single queue go to that
queue's own topic. The compacted topic `sagas.bindings` records which queues exist and what is bound to them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from sagas.durations import seconds, whole_number
from sagas.errors import ConfigurationError, NoHandler, QueueMismatch
from sagas.events.brokers import Outgoing, Reader, Topology
from sagas.events.brokers.kafka.bindings import BINDINGS, Binding, Bindings
from sagas.events.brokers.kafka.cluster import Cluster
from sagas.events.brokers.kafka.publisher import AROUND, Publisher
from sagas.events.brokers.kafka.reader import KafkaReader
from sagas.events.brokers.kafka.records import Record
from sagas.events.brokers.shared import exchange_of

__all__ = ["KafkaBroker"]

#: Kafka's errors for deleting what does not exist.
_NOT_THERE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.GROUP_ID_NOT_FOUND)


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
        self.max_message_size = whole_number(max_message_size, "KafkaBroker: max_message_size", ConfigurationError)
        self.lease = seconds(lease, "KafkaBroker: lease", ConfigurationError)
        timeout = seconds(timeout, "KafkaBroker: timeout", ConfigurationError)
        self._partitions = whole_number(partitions, "KafkaBroker: partitions", ConfigurationError)
        self._exchange: str | None = None
        self._cluster = Cluster(servers, self.lease, timeout, dict(config or {}))
        self._bindings = Bindings(self._cluster)
        self._publisher = Publisher(self._cluster, self.max_message_size)

    def __repr__(self) -> str:
        return repr(self._cluster)

    #: The prefix of CloudEvents headers in the Kafka binding.
    cloudevents_prefix = "ce_"

    # -- declaring ------------------------------------------------------------------------------------------------

    def declare(self, topology: Topology) -> Sequence[str]:
        with self._cluster.asked():
            made, wrong = self._create(topology)
            known = self._bindings.all()
            for queue in topology.queues:
                if queue.topics and not any(b.queue == queue.name and b.exchange == topology.exchange for b in known):
                    self._begin_here(queue.name, topology.exchange)
            new = [binding for binding in Binding.of(topology) if binding not in known]
            self._publisher.publish([binding.record() for binding in new])
        self._exchange = topology.exchange
        if wrong:
            raise QueueMismatch(wrong)
        return made + [f"binding {binding.topic} -> {binding.queue}" for binding in new if binding.topic]

    def mismatches(self, topology: Topology) -> Mapping[str, str]:  # noqa: ARG002 - its topics have no types
        return {}

    def _create(self, topology: Topology) -> tuple[list[str], dict[str, str]]:
        """Create topics. Return what was created, and the queues that could not be created."""
        largest = {"max.message.bytes": str(self.max_message_size + AROUND)}
        wanted = [
            NewTopic(BINDINGS, 1, -1, config={"cleanup.policy": "compact"}),
            NewTopic(topology.exchange, self._partitions, -1, config=largest),
        ]
        # One partition is enough for replays. With more of them, Kafka might assign all replays to one reader and all
        # events to another, because it distributes partitions without regard to their traffic.
        wanted += [
            NewTopic(queue.name, 1 if queue.topics else self._partitions, -1, config=largest)
            for queue in topology.queues
        ]
        what = {BINDINGS: "the bindings of all queues", topology.exchange: f"exchange {topology.exchange}"}
        made, wrong = [], {}
        admin = AdminClient(self._cluster.config())  # it must outlive its futures
        timeout = self._cluster.timeout
        futures = admin.create_topics(wanted, operation_timeout=timeout, request_timeout=timeout)
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
        consumer = Consumer(self._cluster.config(group_id=queue, enable_auto_commit=False))
        try:
            places = self._cluster.partitions(consumer, exchange)
            # Read the end first. If another process does the same, messages published after either commit count.
            for place in places:
                _, place.offset = self._cluster.ends(consumer, place)
            already = self._cluster.committed(consumer, [TopicPartition(p.topic, p.partition) for p in places])
            if all(place.offset == OFFSET_INVALID for place in already):
                self._cluster.patiently(lambda: consumer.commit(offsets=places, asynchronous=False))
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_MEMBER_ID:
                raise
            # The group has a reader by now: another process has declared the queue.
        finally:
            consumer.close()

    # -- publishing -----------------------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Outgoing]) -> Collection[str]:
        exchange = exchange_of(self._exchange) if any(message.queue is None for message in messages) else ""
        for message in messages:
            self._publisher.check_size(len(message.body))
        with self._cluster.asked():
            for queue in {message.queue for message in messages if message.queue is not None}:
                if not self._bindings.has(queue):
                    raise NoHandler(f"there is no queue {queue!r} at {self!r}. Declare it")
            self._publisher.publish([Record.of(message, exchange) for message in messages])
            return self._bindings.unheard(exchange, {message.topic for message in messages if message.queue is None})

    # -- removing -------------------------------------------------------------------------------------------------

    def unbind(self, exchange: str, queue: str, topics: Iterable[str]) -> None:
        self._forget({Binding(queue, exchange, topic) for topic in topics})

    def delete(self, queue: str) -> None:
        with self._cluster.asked():
            self._forget({binding for binding in self._bindings.all() if binding.queue == queue})
            admin, timeout = AdminClient(self._cluster.config()), self._cluster.timeout
            gone = [
                *admin.delete_topics([queue], operation_timeout=timeout, request_timeout=timeout).values(),
                *admin.delete_consumer_groups([queue], request_timeout=timeout).values(),
            ]
            for future in gone:
                error = future.exception()
                if isinstance(error, KafkaException) and error.args[0].code() not in _NOT_THERE:
                    raise KafkaException(error.args[0])

    def _forget(self, bindings: Collection[Binding]) -> None:
        with self._cluster.asked():
            there = [binding for binding in self._bindings.all() if binding in bindings]
            self._publisher.publish([binding.record(removed=True) for binding in there])

    # -- the rest -------------------------------------------------------------------------------------------------

    def reader(self, queue: str) -> Reader:
        return KafkaReader(self._cluster, self._bindings, queue)

    def given_up(self, queue: str) -> str | None:  # noqa: ARG002 - Kafka never gives up on a message
        return None

    def depth(self, queue: str) -> int:
        """Return how many records its readers have yet to read, including those that are not bound to the queue."""
        consumer = Consumer(self._cluster.config(group_id=queue, enable_auto_commit=False))
        try:
            with self._cluster.asked():
                topics = self._bindings.sources(queue)
                places = [place for topic in topics for place in self._cluster.partitions(consumer, topic)]
                depth = 0
                for place in self._cluster.committed(consumer, places):
                    first, end = self._cluster.ends(consumer, place)
                    depth += end - max(place.offset, first)
                return depth
        finally:
            consumer.close()

    def close(self) -> None:
        self._publisher.close()
        self._bindings.close()
