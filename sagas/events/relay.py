"""The relay: takes messages from the outbox to the broker."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, Row, bindparam, select, update

from sagas.errors import InvalidMessage, NoHandler, SagaError
from sagas.events.brokers import Broker, Outgoing
from sagas.events.deadletters import DeadLetters
from sagas.events.envelope import Envelope
from sagas.observers import Observers
from sagas.stores import schema
from sagas.stores.engines import reading, translated
from sagas.stores.transactions import begun

__all__ = ["Relay"]

logger = logging.getLogger(__name__)

#: Messages that are handed to the broker, and then marked as sent, at once.
_BATCH = 100

#: After an error the pause grows up to this many seconds.
_LONGEST_PAUSE = 30.0

#: Seconds that a broker may take over a batch, where the database could not be told meanwhile that we are there.
_LONGEST_SEND = 120.0

#: Seconds before it is said again of a topic that nobody listens to it.
_SAY_AGAIN = 3600.0

_TABLE = schema.outbox.c
_WITH_WORK = select(schema.relay_shards.c.shard).where(
    select(_TABLE.id).where(_TABLE.shard == schema.relay_shards.c.shard, _TABLE.sent_at.is_(None)).exists()
)
_LOCK = (
    select(schema.relay_shards.c.shard)
    .where(schema.relay_shards.c.shard == bindparam("shard"))
    .with_for_update(skip_locked=True)
)
#: SQLite has one lock for all, and no other way to ask for it in whatever mode the caller's engine begins.
_LOCK_ALL = update(schema.relay_shards).where(schema.relay_shards.c.shard == bindparam("_shard")).values(
    shard=schema.relay_shards.c.shard
)  # fmt: skip
_UNSENT = (
    select(_TABLE.id, _TABLE.queue, _TABLE.body)
    .where(_TABLE.shard == bindparam("shard"), _TABLE.sent_at.is_(None))
    .order_by(_TABLE.id)
    .limit(_BATCH)
)


class Relay:
    """Sends what is in the outbox, each key in the order of its transactions, at least once.

    Any number may run, in any processes: each part of the outbox is sent by the one that holds its lock. A message is
    marked as sent after the broker has confirmed it; a relay that dies in between leaves it to be sent once more.

    A command, or a replay, to a queue that the broker does not have becomes a dead letter in this database, which is
    the sender's; so does a message that the broker cannot take. What follows it is sent.

    `declare`: makes the topology at the broker; called before the first message, and after an error.
    `interval`: seconds between two looks at an outbox that was empty.
    """

    def __init__(
        self,
        engine: Engine,
        broker: Broker,
        dead_letters: DeadLetters,
        *,
        declare: Callable[[], object],
        interval: float = 0.2,
        observers: Observers,
    ) -> None:
        self._observers = observers
        self._engine = engine
        self._broker = broker
        self._dead_letters = dead_letters
        self._declare = declare
        self._declared = False
        self._interval = interval
        self._said: dict[str, float] = {}  # when it was last said of a topic that nobody listens to it
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def send(self) -> int:
        """Send all that is there. Returns how many. Raises `BrokerUnavailable`, `StoreUnavailable`."""
        total = 0
        while sent := self._look():
            total += sent
        return total

    def _look(self) -> int:
        """Send a batch of each shard that has something, and is not being sent by another relay."""
        with reading(self._engine) as connection:
            shards = list(connection.execute(_WITH_WORK).scalars())
        if shards and not self._declared:  # which writes in the database, too, so in no transaction of ours
            self._declare()
            self._declared = True
        random.shuffle(shards)  # so that several relays do not queue for the same one
        return sum(self._send(shard) for shard in shards)

    def _send(self, shard: int) -> int:
        with translated(self._engine), begun(self._engine, unheard=_LONGEST_SEND) as connection:
            if not self._lock(connection, shard):
                return 0
            rows = connection.execute(_UNSENT, {"shard": shard}).all()
            if rows:
                try:
                    unheard = self._publish(connection, rows)
                except Exception:
                    self._declared = False  # the broker may have lost what was declared
                    raise
                sent = update(schema.outbox).where(_TABLE.id.in_([row.id for row in rows]))
                connection.execute(sent.values(sent_at=datetime.now(UTC)))
                if unheard:
                    connection.execute(update(schema.outbox).where(_TABLE.id.in_(unheard)).values(heard=False))
        if rows:
            self._observers.relayed(len(rows))
        return len(rows)

    def _lock(self, connection: Connection, shard: int) -> bool:
        if connection.dialect.name == "sqlite":
            return connection.execute(_LOCK_ALL, {"_shard": shard}).rowcount == 1
        return connection.execute(_LOCK, {"shard": shard}).first() is not None

    def _publish(self, connection: Connection, rows: Sequence[Row[Any, Any, Any]]) -> list[int]:
        """Hand over rows of the outbox. Return the ids of those that reached nobody."""
        messages = [(Envelope.decode(row.body), row.queue) for row in rows]
        outgoing = [_outgoing(envelope, queue, row.body) for (envelope, queue), row in zip(messages, rows, strict=True)]
        unheard: set[str] = set()
        try:
            unheard.update(self._broker.publish(outgoing))
        except (NoHandler, InvalidMessage):
            # One of them. What was taken before it may be taken twice, which is what the inbox is for.
            for (envelope, queue), message in zip(messages, outgoing, strict=True):
                try:
                    unheard.update(self._broker.publish([message]))
                except (NoHandler, InvalidMessage) as error:
                    if queue is None and isinstance(error, NoHandler):
                        raise  # it is the exchange that is not there: declaring it again helps
                    told = f"{type(error).__name__}: {error}"
                    letter = self._dead_letters.file_in(connection, queue or "", envelope, error=told, attempts=0)
                    logger.error("dead letter %d: %s %s: %s", letter, message.topic, message.id, told)  # noqa: TRY400

        for topic in sorted(unheard):
            self._say_unheard(topic)
        return [
            row.id
            for row, message in zip(rows, outgoing, strict=True)
            if message.queue is None and message.topic in unheard
        ]

    def _say_unheard(self, topic: str) -> None:
        now = time.monotonic()
        if now - self._said.get(topic, -math.inf) > _SAY_AGAIN:
            self._said[topic] = now
            logger.warning(
                "%s reached nobody: no queue is bound to its type, and the broker keeps nothing for those who come "
                "later. Apply the topology of its subscribers before it is published (celery -A theirapp sagas events "
                "topology apply), then send it again: celery -A yourapp sagas events outbox resend. If nobody is to "
                "listen yet, all is well",
                topic,
            )

    # -- running ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run in a thread, until `stop`."""
        self._stop.clear()
        self._thread = threading.Thread(target=self.run, name="sagas-relay", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread after the batch that it is at, but do not wait for longer than that."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def run(self) -> None:
        """Send for as long as nobody calls `stop`. Outlives the broker and the database."""
        pause = self._interval
        while not self._stop.wait(pause * random.uniform(0.8, 1.2)):  # noqa: S311
            try:
                pause = self._interval if self._look() == 0 else 0.0
            except SagaError as error:
                pause = min(max(pause, self._interval) * 2, _LONGEST_PAUSE)
                logger.warning("the relay pauses for %.1f s: %s", pause, error)
            except Exception:
                pause = min(max(pause, self._interval) * 2, _LONGEST_PAUSE)
                logger.exception("the relay failed and pauses for %.1f s", pause)


def _outgoing(envelope: Envelope, queue: str | None, body: str) -> Outgoing:
    return Outgoing(
        id=envelope.event_id,
        topic=envelope.topic,
        body=body.encode(),
        headers=envelope.headers(),
        key=envelope.key,
        queue=queue,
    )
