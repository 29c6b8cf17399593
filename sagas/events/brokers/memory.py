"""A broker inside one process, for tests and demos. Its messages are lost when the process ends."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sagas.errors import BrokerUnavailable, ConfigurationError, NoHandler
from sagas.events.brokers import Delivery, Outgoing, Reader, Topology
from sagas.events.brokers.shared import exchange_of, in_forks, of_any_version

__all__ = ["MemoryBroker"]


@dataclass(slots=True, eq=False)
class _Message:
    outgoing: Outgoing
    deliveries: int = 0


#: What one reader received and has not acknowledged, oldest first.
_Given = dict[int, _Message]


@dataclass(slots=True)
class _Queue:
    waiting: deque[_Message] = field(default_factory=deque)
    unacknowledged: int = 0
    orphans: deque[_Given] = field(default_factory=deque)  #: from readers that were dropped without being closed

    def take(self, limit: int) -> _Given:
        while self.orphans:
            self.give_back(self.orphans.popleft())
        taken = [self.waiting.popleft() for _ in range(min(limit, len(self.waiting)))]
        self.unacknowledged += len(taken)
        for message in taken:
            message.deliveries += 1
        return {id(message): message for message in taken}

    def give_back(self, given: _Given) -> None:
        self.unacknowledged -= len(given)
        self.waiting.extendleft(reversed(given.values()))
        given.clear()


class MemoryBroker:
    """Carries messages between the threads of one process.

    >>> from sagas.events.brokers import Outgoing, Queue, Topology
    >>> broker = MemoryBroker()
    >>> queue = Queue("inventory.reserve_stock", ("orders.order.placed.v1",))
    >>> made = broker.declare(Topology("shop.events", (queue,)))
    >>> unheard = broker.publish([Outgoing(id="1", topic="orders.order.placed.v1", body=b"{}", headers={})])
    >>> reader = broker.reader("inventory.reserve_stock")
    >>> [delivery] = reader.receive(limit=10, timeout=1)
    >>> reader.ack(delivery)
    """

    lease = 10.0
    max_message_size = sys.maxsize

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queues: dict[str, _Queue] = {}
        self._exchanges: dict[str, dict[str, list[str]]] = {}  # per exchange, the queues of each topic
        self._exchange: str | None = None
        self._forked = False
        in_forks(self)

    def __repr__(self) -> str:
        return "<MemoryBroker>"

    def declare(self, topology: Topology) -> Sequence[str]:
        self._check()
        made = []
        with self._changed:
            self._exchange = topology.exchange
            if topology.exchange not in self._exchanges:
                self._exchanges[topology.exchange] = {}
                made.append(f"exchange {topology.exchange}")
            for queue in topology.queues:
                if queue.name not in self._queues:
                    self._queues[queue.name] = _Queue()
                    made.append(f"queue {queue.name}")
                for topic in queue.topics:
                    bound = self._exchanges[topology.exchange].setdefault(topic, [])
                    if queue.name not in bound:
                        bound.append(queue.name)
                        made.append(f"binding {topic} -> {queue.name}")
        return made

    def mismatches(self, topology: Topology) -> Mapping[str, str]:  # noqa: ARG002 - all queues here are alike
        return {}

    def publish(self, messages: Sequence[Outgoing]) -> Collection[str]:
        self._check()
        unheard = set()
        with self._changed:
            for message in messages:
                if message.queue is not None and message.queue not in self._queues:
                    raise NoHandler(f"there is no queue {message.queue!r} to send {message.topic!r} to. Declare it")
            for message in messages:
                if message.queue is not None:
                    names = [message.queue]
                else:
                    bound = self._exchanges[exchange_of(self._exchange)]
                    topics = (message.topic, of_any_version(message.topic))
                    names = list(dict.fromkeys(name for topic in topics for name in bound.get(topic, [])))
                    if not names:
                        unheard.add(message.topic)
                for name in names:
                    self._queues[name].waiting.append(_Message(message))
            self._changed.notify_all()
        return unheard

    def unbind(self, exchange: str, queue: str, topics: Iterable[str]) -> None:
        self._check()
        with self._changed:
            for topic in topics:
                bound = self._exchanges.get(exchange, {}).get(topic, [])
                if queue in bound:
                    bound.remove(queue)

    def delete(self, queue: str) -> None:
        self._check()
        with self._changed:
            self._queues.pop(queue, None)
            for exchange in self._exchanges.values():
                for bound in exchange.values():
                    if queue in bound:
                        bound.remove(queue)

    def reader(self, queue: str) -> Reader:
        self._check()
        return _Reader(self, queue)

    def given_up(self, queue: str) -> str | None:  # noqa: ARG002 - it never gives up on a message
        return None

    def depth(self, queue: str) -> int:
        self._check()
        with self._changed:
            found = self._found(queue)
            return len(found.waiting) + found.unacknowledged

    def close(self) -> None:
        """Do nothing: there is no connection to close, and the messages stay."""

    def after_fork(self) -> None:
        self._forked = True

    def _check(self) -> None:
        if self._forked:
            raise ConfigurationError(
                "this MemoryBroker was created in another process and cannot exchange messages with this one. Use "
                "threads, or a broker that runs as a server"
            )

    def _found(self, queue: str) -> _Queue:
        try:
            return self._queues[queue]
        except KeyError:
            raise BrokerUnavailable(f"there is no queue {queue!r}. Declare it") from None

    # -- for readers ----------------------------------------------------------------------------------------------

    def take(self, queue: str, limit: int, timeout: float) -> _Given:
        """Wait for messages of a queue."""
        self._check()
        give_up = time.monotonic() + timeout
        with self._changed:
            found = self._found(queue)
            while not (taken := found.take(limit)):
                left = give_up - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return taken

    def settle(self, queue: str) -> None:
        """Remove a message that was taken."""
        with self._changed:
            self._queues[queue].unacknowledged -= 1

    def give_back(self, queue: str, given: _Given) -> None:
        """Return taken messages to the queue."""
        with self._changed:
            if given:
                self._queues[queue].give_back(given)
                self._changed.notify_all()

    def orphan(self, queue: str, given: _Given) -> None:
        """Return what a dropped reader had taken. This may run at any moment, and therefore takes no lock."""
        if given:
            self._queues[queue].orphans.append(given)


class _Reader:
    def __init__(self, broker: MemoryBroker, queue: str) -> None:
        self._broker = broker
        self._queue = queue
        self._given: _Given = {}
        # A reader without references is dead, as is a reader whose process ended.
        weakref.finalize(self, broker.orphan, queue, self._given)

    def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        taken = self._broker.take(self._queue, limit, timeout)
        self._given.update(taken)
        return [
            Delivery(
                queue=self._queue,
                topic=message.outgoing.topic,
                body=message.outgoing.body,
                headers=dict(message.outgoing.headers),
                key=message.outgoing.key,
                deliveries=message.deliveries,
                tag=tag,
            )
            for tag, message in taken.items()
        ]

    def ack(self, *deliveries: Delivery) -> None:
        for delivery in deliveries:
            if self._given.pop(delivery.tag, None):
                self._broker.settle(self._queue)

    def close(self) -> None:
        self._broker.give_back(self._queue, self._given)
