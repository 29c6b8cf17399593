"""A broker on RabbitMQ, through kombu: a durable topic exchange, and a quorum queue for each queue.

A message to a single queue goes through the default exchange. Messages that RabbitMQ itself gives up on, because of a
delivery limit, go to `dlq.<queue>`. This module sets no limit: a queue's argument can never change, a policy can.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from amqp.exceptions import NotFound

from sagas.durations import seconds, whole_number
from sagas.errors import ConfigurationError, QueueMismatch
from sagas.events.brokers import Outgoing, Reader, Topology
from sagas.events.brokers.rabbitmq.publisher import Publisher
from sagas.events.brokers.rabbitmq.queues import (
    bind,
    declare,
    given_up_of,
    is_exchange_missing,
    is_queue_missing,
    queues_of,
)
from sagas.events.brokers.rabbitmq.reader import RabbitReader
from sagas.events.brokers.rabbitmq.server import Server
from sagas.events.brokers.shared import Heartbeat, exchange_of

__all__ = ["RabbitBroker"]


class RabbitBroker:
    """Carries messages through RabbitMQ 3.10 or newer.

    `url`: as kombu reads it, `amqp://user:password@127.0.0.1:5672/vhost`. `lease`: seconds of silence after which a
    reader counts as dead, and others receive its messages; a thread sends heartbeats while the reader's own thread
    works. `timeout`: how long RabbitMQ may take to answer and to confirm. `prefetch`: how many messages RabbitMQ sends
    a reader at once. A reader that asks for more while none of them is acknowledged gets as many again.
    `max_message_size`: the largest body, in bytes. RabbitMQ's own limit, the setting with the same name, is 16 MiB from
    version 4 and 128 MiB before. Other options go to `kombu.Connection`.

    RabbitMQ itself redelivers a message that is not acknowledged within its `consumer_timeout`, 30 minutes.
    """

    def __init__(
        self,
        url: str,
        *,
        lease: float | timedelta = 30.0,
        timeout: float | timedelta = 10.0,
        prefetch: int = 100,
        max_message_size: int = 16 * 1024 * 1024,
        **options: Any,
    ) -> None:
        self.lease = seconds(lease, "RabbitBroker: lease", ConfigurationError)
        timeout = seconds(timeout, "RabbitBroker: timeout", ConfigurationError)
        most = whole_number(max_message_size, "RabbitBroker: max_message_size", ConfigurationError)
        self._prefetch = whole_number(prefetch, "RabbitBroker: prefetch", ConfigurationError)
        self._exchange: str | None = None
        self._server = Server(url, timeout, options)
        self._publisher = Publisher(self._server, most)
        self._heartbeat = Heartbeat(self.lease)

    def __repr__(self) -> str:
        return repr(self._server)

    @property
    def max_message_size(self) -> int:
        """The largest body, in bytes: RabbitMQ's own limit from when that is known to be smaller."""
        return self._publisher.max_message_size

    def declare(self, topology: Topology) -> Sequence[str]:
        made: list[str] = []
        wrong: dict[str, str] = {}
        with self._server.connected() as connection:
            if is_exchange_missing(connection, topology.exchange):
                made.append(f"exchange {topology.exchange}")
            with connection.channel() as channel:
                channel.exchange_declare(topology.exchange, "topic", durable=True, auto_delete=False)
            for queue in topology.queues:
                for name, arguments in queues_of(queue.name).items():
                    missing = is_queue_missing(connection, name)
                    if refusal := declare(connection, name, arguments):
                        wrong[queue.name] = self._mismatch(name, refusal)
                    elif missing:
                        made.append(f"queue {name}")
                # Bind it even if it differs from the declaration: messages published meanwhile are kept in it.
                if refusal := bind(connection, queue, topology.exchange):
                    wrong.setdefault(queue.name, self._mismatch(queue.name, refusal))
        self._exchange = topology.exchange
        if wrong:
            raise QueueMismatch(wrong)
        return made

    def mismatches(self, topology: Topology) -> Mapping[str, str]:
        wrong: dict[str, str] = {}
        with self._server.connected() as connection:
            for queue in topology.queues:
                for name, arguments in queues_of(queue.name).items():
                    if is_queue_missing(connection, name):
                        continue
                    if refusal := declare(connection, name, arguments):
                        wrong[queue.name] = self._mismatch(name, refusal)
        return wrong

    def _mismatch(self, queue: str, refusal: str) -> str:
        return (
            f"queue {queue!r} at {self!r} differs from its declaration here: {refusal}. RabbitMQ cannot change an "
            "existing queue. It stays as it is, and messages published to it are kept, but this process does not read "
            "it. If it belongs to another application, rename this handler or service. If it does not, have its "
            f"messages read or moved, then run `rabbitmqctl delete_queue {queue} --if-empty`: it is declared again "
            "automatically"
        )

    def unbind(self, exchange: str, queue: str, topics: Iterable[str]) -> None:
        with self._server.connected() as connection:
            for topic in topics:
                with contextlib.suppress(NotFound):  # no such queue or exchange
                    connection.channel().queue_unbind(queue, exchange, topic)

    def delete(self, queue: str) -> None:
        with self._server.connected() as connection:
            for name in (queue, given_up_of(queue)):
                connection.channel().queue_delete(name)

    def publish(self, messages: Sequence[Outgoing]) -> Collection[str]:
        exchange = exchange_of(self._exchange) if any(message.queue is None for message in messages) else ""
        return self._publisher.publish(messages, exchange)

    def reader(self, queue: str) -> Reader:
        return RabbitReader(self._server, queue, lease=self.lease, prefetch=self._prefetch, heartbeat=self._heartbeat)

    def given_up(self, queue: str) -> str:
        return given_up_of(queue)

    def depth(self, queue: str) -> int:
        with self._server.connected() as connection, connection.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)

    def close(self) -> None:
        self._publisher.close()
