"""The queues and bindings that were declared, and those that are no longer needed.

Brokers keep what was declared once, and not every broker can list it. The services' database therefore records each
binding. Nothing is removed from the broker until an operator asks for it, because other code may still need it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from sagas.errors import BrokerUnavailable, QueueMismatch
from sagas.events.brokers import Broker, Outgoing, Topology
from sagas.events.messages import any_version
from sagas.stores import schema
from sagas.stores.engines import reading, translated
from sagas.stores.transactions import begun

__all__ = ["Bindings", "Difference"]

_TABLE = schema.bindings.c

#: Seconds without a message after which a queue counts as drained. Kafka consumers take a while to start.
_DRAINED = 5.0

#: How many messages one round of draining moves.
_BATCH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A queue or binding that differs: declared but missing at the broker, or no longer declared."""

    queue: str
    topics: tuple[str, ...]
    whole: bool  #: the queue itself is stale, not only some of its bindings
    ours: bool  #: this code declares its service. Otherwise other code may need the queue
    read_as: str | None  #: the queue that replaces it, as `was=` declares
    messages: int | None  #: how many messages it holds; None if the broker has no such queue
    missing: bool = False  #: the reverse case: the queue is declared, and the broker does not have it

    @property
    def what(self) -> str:
        """Describe the difference."""
        if self.missing:
            return "missing"
        return "queue no longer declared" if self.whole else "bindings no longer declared"


class Bindings:
    """The bindings of one database's services at one broker.

    `wanted`: returns the topology that is declared now. `versions`: the topics of each queue, each with its version:
    earlier releases bound these instead of all versions. `services`: the names of the services that this code
    declares. `renamed`: old queues and the queues that replace them.
    """

    def __init__(
        self,
        engine: Engine,
        broker: Broker,
        wanted: Callable[[], Topology],
        versions: Mapping[str, Collection[str]],
        services: Collection[str],
        renamed: Mapping[str, str],
    ) -> None:
        self._engine = engine
        self._broker = broker
        self._wanted = wanted
        self._versions = versions
        self._services = services
        self._renamed = renamed

    def declare(self) -> list[str]:
        """Create what is missing and return a description of each change. Messages of replaced queues are moved.

        Raises `QueueMismatch` after everything else is done.
        """
        wanted = self._wanted()
        # First: otherwise an older process would treat a message of a new binding as unwanted.
        new_here = self._remember(wanted)
        mismatch: QueueMismatch | None = None
        try:
            made = [f"created {what}" for what in self._broker.declare(wanted)]
        except QueueMismatch as error:
            made, mismatch = [], error
        for queue in sorted(new_here):
            self._broker.unbind(wanted.exchange, queue, self._versions.get(queue, ()))
        for old, new in self._renamed.items():
            if self._depth(old) is not None:
                made += self._move(wanted.exchange, old, new)
        if mismatch is not None:
            raise mismatch
        return made

    def mismatches(self) -> Mapping[str, str]:
        """Return the existing queues that differ from their declaration, with a description of what is wrong."""
        return self._broker.mismatches(self._wanted())

    def difference(self) -> list[Difference]:
        """Return bindings that are no longer declared, and declared queues that the broker does not have."""
        wanted = {queue.name: set(queue.topics) for queue in self._wanted().queues}
        found = []
        for queue, topics in sorted(self._remembered().items()):
            gone = topics - wanted.get(queue, set())
            if gone or queue not in wanted:
                found.append(
                    Difference(
                        queue=queue,
                        topics=tuple(sorted(gone)),
                        whole=queue not in wanted,
                        ours=queue.partition(".")[0] in self._services or queue in self._renamed,
                        read_as=self._renamed.get(queue),
                        messages=self._held(queue),
                    )
                )
        missing = [queue for queue in self._wanted().queues if self._depth(queue.name) is None]
        about: dict[str, Any] = {"whole": True, "ours": True, "read_as": None, "messages": None, "missing": True}
        return [*found, *(Difference(queue=queue.name, topics=queue.topics, **about) for queue in missing)]

    def remove(self, *, others: Collection[str] = (), discard: bool = False) -> Iterator[str]:
        """Remove what is stale and yield a description of each change.

        A queue that holds messages stays, unless `discard` is set. `others`: queues of services that this code does not
        declare, to be removed nevertheless.
        """
        exchange = self._wanted().exchange
        for stale in self.difference():
            if stale.missing:
                continue
            if not stale.ours and stale.queue not in others:
                yield (
                    f"kept queue {stale.queue}: this code does not declare its service, so other code may read it. "
                    "Name the queue to delete it"
                )
                continue
            if stale.whole and stale.messages and not discard:
                yield (
                    f"kept queue {stale.queue}: it holds {stale.messages} messages and has no consumer. Declare its "
                    "replacement with was=, which moves the messages there, or discard them"
                )
                continue
            if stale.messages is not None:
                self._broker.unbind(exchange, stale.queue, stale.topics)
            self._forget(stale.queue, stale.topics)
            yield from (f"unbound {topic} from {stale.queue}" for topic in stale.topics)
            if stale.whole:
                if stale.messages is not None:
                    self._broker.delete(stale.queue)
                self._forget(stale.queue, ("",))
                yield f"deleted queue {stale.queue}, which held {stale.messages or 0} messages"

    def is_removed(self, connection: Connection, queue: str, event_type: str) -> bool:
        """Return whether a queue was unbound from a type, so that remaining messages of that type are unwanted."""
        mine = _TABLE.queue == queue, _TABLE.topic == any_version(event_type)
        return connection.execute(select(_TABLE.removed_at).where(*mine)).scalar() is not None

    # -- the record -------------------------------------------------------------------------------------------------

    def _remembered(self) -> dict[str, set[str]]:
        found: defaultdict[str, set[str]] = defaultdict(set)
        query = select(_TABLE.queue, _TABLE.topic)
        here = _TABLE.exchange == self._wanted().exchange, _TABLE.removed_at.is_(None)
        with reading(self._engine) as connection:
            for queue, topic in connection.execute(query.where(*here)):
                found[queue].update([topic] if topic else [])
        return found

    def _remember(self, wanted: Topology) -> set[str]:
        """Record the declared topology; return the queues for which something was new."""
        needed = {(queue.name, topic) for queue in wanted.queues for topic in ("", *queue.topics)}
        with reading(self._engine) as connection:
            rows = connection.execute(select(_TABLE.queue, _TABLE.topic, _TABLE.exchange, _TABLE.removed_at)).all()
        known = {(row.queue, row.topic): row.exchange == wanted.exchange and row.removed_at is None for row in rows}
        now = datetime.now(UTC)
        new = sorted(needed - {which for which, current in known.items() if current})
        for queue, topic in new:
            which = _TABLE.queue == queue, _TABLE.topic == topic
            values = {"exchange": wanted.exchange, "declared_at": now, "removed_at": None}
            with translated(self._engine):
                try:
                    with begun(self._engine) as connection:
                        if not connection.execute(update(schema.bindings).where(*which).values(values)).rowcount:
                            connection.execute(insert(schema.bindings).values(queue=queue, topic=topic, **values))
                except IntegrityError:
                    pass  # another process was faster
        return {queue for queue, _ in new}

    def _forget(self, queue: str, topics: Collection[str]) -> None:
        gone = update(schema.bindings).where(_TABLE.queue == queue, _TABLE.topic.in_(topics))
        with translated(self._engine), begun(self._engine) as connection:
            connection.execute(gone.values(removed_at=datetime.now(UTC)))

    # -- the broker -------------------------------------------------------------------------------------------------

    def _depth(self, queue: str) -> int | None:
        try:
            return self._broker.depth(queue)
        except BrokerUnavailable:
            return None

    def _held(self, queue: str) -> int | None:
        """Return how many messages deleting the queue would lose, including those that the broker gave up on."""
        messages, given_up = self._depth(queue), self._broker.given_up(queue)
        return messages if messages is None or given_up is None else messages + (self._depth(given_up) or 0)

    def _move(self, exchange: str, old: str, new: str) -> Iterator[str]:
        topics = {*self._remembered().get(old, ()), *self._versions[new]}
        topics.update(*(queue.topics for queue in self._wanted().queues if queue.name == new))
        moved = self._drain(old, new)  # on Kafka the bindings define what is in a queue
        self._broker.unbind(exchange, old, topics)
        moved += self._drain(old, new)
        yield f"moved {moved} messages from {old} to {new}, which replaces it"
        if left := self._depth(old):
            yield f"kept queue {old}: {left} of its messages are still being handled. Apply the topology again later"
            return
        self._broker.delete(old)
        self._forget(old, ("", *topics))

    def _drain(self, old: str, new: str) -> int:
        reader, moved = self._broker.reader(old), 0
        give_up = time.monotonic() + _DRAINED
        try:
            while self._depth(old) and time.monotonic() < give_up:
                received = reader.receive(_BATCH, 0.5)
                self._broker.publish(
                    [
                        Outgoing(
                            id=delivery.headers.get("eventId", ""),
                            topic=delivery.topic,
                            body=delivery.body,
                            headers=delivery.headers,
                            key=delivery.key,
                            queue=new,
                        )
                        for delivery in received
                    ]
                )
                for delivery in received:
                    reader.ack(delivery)
                moved += len(received)
                if received:
                    give_up = time.monotonic() + _DRAINED
        finally:
            reader.close()
        return moved
