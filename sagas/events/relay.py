"""The relay: sends messages from the outbox to the broker."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, select, update

from sagas.commands import command
from sagas.errors import (
    BrokerUnavailable,
    ConfigurationError,
    InvalidMessage,
    NoHandler,
    QueueMismatch,
    SagaError,
    StoreUnavailable,
)
from sagas.events.brokers import Broker, Outgoing
from sagas.events.cloudevents import PREFIX, Wire, written
from sagas.events.deadletters import DeadLetters
from sagas.events.envelope import Envelope
from sagas.events.letters import replay_of
from sagas.events.messages import topic
from sagas.observers import Observers
from sagas.stores import schema
from sagas.stores.engines import reading, translated
from sagas.stores.transactions import begun
from sagas.text import describe

__all__ = ["Relay"]

logger = logging.getLogger(__name__)

#: How many messages are published, and then marked as sent, at once.
_BATCH = 100

#: The longest pause after an error, in seconds.
_LONGEST_PAUSE = 30.0

#: Seconds that the broker may take for a batch. Meanwhile the database hears nothing from this connection.
_LONGEST_SEND = 120.0

#: Seconds before the warning about a topic without subscribers is repeated.
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
#: SQLite has one lock for everything, and this is the only way to get it in every mode of the caller's engine.
_LOCK_ALL = update(schema.relay_shards).where(schema.relay_shards.c.shard == bindparam("_shard")).values(
    shard=schema.relay_shards.c.shard
)  # fmt: skip
_UNSENT = (
    select(_TABLE.id, _TABLE.queue, _TABLE.body, _TABLE.type, _TABLE.version, _TABLE.key, _TABLE.event_id)
    .where(_TABLE.shard == bindparam("shard"), _TABLE.sent_at.is_(None))
    .order_by(_TABLE.id)
    .limit(_BATCH)
)


#: Errors that say nothing about a message: it is uncertain whether it was sent, or nothing can be sent.
_UNSURE = (BrokerUnavailable, ConfigurationError)

#: After this many consecutive shards that the broker does not accept, it counts as unavailable.
_AWAY = 2


@dataclass(frozen=True, slots=True)
class _Message:
    row: int  #: its id in the outbox
    envelope: Envelope
    outgoing: Outgoing


class Relay:
    """Sends the messages in the outbox at least once; those with the same key in the order of their transactions.

    Any number of relays may run, in any processes: the relay that holds the lock of a shard sends that shard. It marks
    a message as sent after the broker has confirmed it. If it dies in between, the message is sent again.

    What cannot be sent becomes a dead letter in this database, the sender's: a command or replay for a queue that the
    broker does not have, a message that the broker rejects, or a damaged row. The messages after it are sent, also
    those with its key. A shard that cannot be sent now pauses for a while, and the others continue.

    `wire`: returns the broker format for the messages of a source. `declare`: creates the topology at the broker;
        called before the first message, and after an error.
    `interval`: seconds between polls of an empty outbox.
    """

    def __init__(
        self,
        engine: Engine,
        broker: Broker,
        dead_letters: DeadLetters,
        *,
        declare: Callable[[], object],
        wire: Callable[[str], Wire],
        interval: float = 0.2,
        observers: Observers,
    ) -> None:
        self._observers = observers
        self._wire = wire
        self._engine = engine
        self._broker = broker
        self._dead_letters = dead_letters
        self._declare = declare
        self._declared = False
        self._interval = interval
        self._mismatch = ""  # the queue mismatch that was last logged
        self._resting: dict[int, tuple[float, float]] = {}  # shards: until when, by the monotonic clock; how long
        self._warned: dict[str, float] = {}  # when the warning about a topic without subscribers was last logged
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def send(self) -> int:
        """Send everything in the outbox. Returns how many. Raises `BrokerUnavailable` and `StoreUnavailable`."""
        self._resting.clear()
        total, failure = 0, None
        while True:
            sent, failed = self._look()
            total, failure = total + sent, failure or failed
            if not sent:
                break
        if failure is not None:
            raise failure
        return total

    def _look(self) -> tuple[int, Exception | None]:
        """Send a batch of each shard that has messages and is not being sent by another relay.

        Return how many messages were sent, and the first error of the others.
        """
        with reading(self._engine) as connection:
            shards = list(connection.execute(_WITH_WORK).scalars())
        now = time.monotonic()
        shards = [shard for shard in shards if self._resting.get(shard, (0.0, 0.0))[0] <= now]
        if shards and not self._declared:  # this also writes to the database, so it is in no transaction of ours
            self._declare_all()
        random.shuffle(shards)  # so that several relays do not compete for the same one
        sent, failure, in_a_row = 0, None, 0
        for shard in shards:
            try:
                sent += self._send(shard)
            except StoreUnavailable:
                raise  # it affects every shard
            except Exception as error:  # noqa: BLE001 - logged in `_rest`
                failure = failure or error
                in_a_row += 1
                self._rest(shard, error)
                if in_a_row == _AWAY and isinstance(error, BrokerUnavailable):
                    break  # every other shard would wait for the broker, too
            else:
                in_a_row = 0
                self._resting.pop(shard, None)
        return sent, failure

    def _declare_all(self) -> None:
        try:
            self._declare()
        except QueueMismatch as error:
            if str(error) != self._mismatch:  # the queue's consumer logs it repeatedly
                self._mismatch = str(error)
                logger.error("the relay continues despite a mismatch: %s", error)  # noqa: TRY400
        self._declared = True

    def _rest(self, shard: int, error: Exception) -> None:
        _, pause = self._resting.get(shard, (0.0, self._interval))
        pause = min(max(pause, 0.1) * 2, _LONGEST_PAUSE)
        self._resting[shard] = time.monotonic() + pause, pause
        if isinstance(error, SagaError):
            logger.warning("shard %d of the outbox pauses for %.1f s: %s", shard, pause, error)
        else:
            logger.error("shard %d of the outbox pauses for %.1f s", shard, pause, exc_info=error)

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

    def _publish(self, connection: Connection, rows: Sequence[Any]) -> list[int]:
        """Publish rows of the outbox. Return the ids of those that reached nobody."""
        messages = [message for row in rows if (message := self._message(connection, row)) is not None]
        unheard: set[str] = set()
        try:
            unheard.update(self._broker.publish([message.outgoing for message in messages]))
        except _UNSURE:
            raise
        except Exception:  # noqa: BLE001 - a message may make a client raise anything
            # One message is at fault. Those before it may be sent twice; the inbox handles them once.
            for message in messages:
                unheard.update(self._publish_alone(connection, message))
        for name in sorted(unheard):
            self._warn_unheard(name)
        return [
            message.row for message in messages if message.outgoing.queue is None and message.outgoing.topic in unheard
        ]

    def _publish_alone(self, connection: Connection, message: _Message) -> Collection[str]:
        outgoing = message.outgoing
        try:
            return self._broker.publish([outgoing])
        except _UNSURE:
            raise
        except Exception as error:
            if outgoing.queue is None and isinstance(error, NoHandler):
                raise  # the exchange does not exist: declaring it again helps
            letter = self._dead_letters.file_in(
                connection,
                outgoing.queue or "",
                message.envelope,
                body=outgoing.body,
                headers=outgoing.headers,
                error=f"it cannot be sent: {type(error).__name__}: {describe(error)}",
                attempts=0,
            )
            logger.error(  # noqa: TRY400
                "dead letter %d: %s %s cannot be sent: %s", letter, outgoing.topic, outgoing.id, describe(error)
            )
            return ()

    def _message(self, connection: Connection, row: Any) -> _Message | None:
        """Return the message in a row of the outbox. A damaged row becomes a dead letter."""
        body = row.body if isinstance(row.body, bytes) else str(row.body).encode()
        try:
            envelope = Envelope.decode(body)
        except InvalidMessage as error:
            letter = self._dead_letters.file_unread_in(
                connection,
                row.queue or "",
                topic=topic(row.type, row.version),
                key=row.key,
                headers={"eventId": row.event_id},
                body=body,
                error=f"row {row.id} of the outbox is damaged: {error}",
            )
            logger.error("dead letter %d: row %d of the outbox is damaged: %s", letter, row.id, error)  # noqa: TRY400
            return None
        # A replay goes to one of our own queues, and nobody else reads it.
        wire = Wire.ENVELOPE if replay_of(envelope) is not None else self._wire(envelope.source)
        headers, sent = envelope.headers(), body
        if wire is not Wire.ENVELOPE:
            headers, sent = written(envelope, wire, getattr(self._broker, "cloudevents_prefix", PREFIX))
        outgoing = Outgoing(
            id=envelope.event_id,
            topic=envelope.topic,
            body=sent,
            headers=headers,
            key=envelope.key,
            queue=row.queue,
        )
        return _Message(row.id, envelope, outgoing)

    def _warn_unheard(self, name: str) -> None:
        now = time.monotonic()
        if now - self._warned.get(name, -math.inf) > _SAY_AGAIN:
            self._warned[name] = now
            logger.warning(
                "%s reached nobody: no queue is bound to its type, and the broker does not keep it for later "
                "subscribers. Apply the subscribers' topology before publishing (sagas events topology apply, with "
                "their app), then send the messages again: %s. If nobody needs them yet, ignore this",
                name,
                command("events", "outbox", "resend"),
            )

    # -- running ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run in a thread, until `stop`."""
        self._stop.clear()
        self._thread = threading.Thread(target=self.run, name="sagas-relay", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread after its current batch. Waits at most `timeout` seconds."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def run(self) -> None:
        """Send until `stop` is called. Survives outages of the broker and the database."""
        pause = self._interval
        while not self._stop.wait(pause * random.uniform(0.8, 1.2)):  # noqa: S311
            try:
                sent, _ = self._look()
                pause = 0.0 if sent else self._interval
            except SagaError as error:
                pause = min(max(pause, self._interval) * 2, _LONGEST_PAUSE)
                logger.warning("the relay pauses for %.1f s: %s", pause, error)
            except Exception:
                pause = min(max(pause, self._interval) * 2, _LONGEST_PAUSE)
                logger.exception("the relay failed and pauses for %.1f s", pause)
