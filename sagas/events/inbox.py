"""The inbox: a handler's effect in the database happens once, however often its message is delivered."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, bindparam, delete, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from sagas.causes import within
from sagas.commands import command
from sagas.endings import ends_process, meant
from sagas.errors import (
    DefinitionError,
    InvalidMessage,
    NoHandler,
    NotOwner,
    RetryableError,
    StoreUnavailable,
    TerminalError,
    TransactionMisuse,
    UnknownVersion,
)
from sagas.events import redeliveries
from sagas.events.bindings import Bindings
from sagas.events.deadletters import DeadLetters, replay_of
from sagas.events.envelope import Envelope
from sagas.events.incoming import read
from sagas.events.leases import is_mine
from sagas.events.messages import any_version
from sagas.events.services import Handler, HandlerContext, Subscription
from sagas.observers import Handling, Observers
from sagas.stores import schema
from sagas.stores.engines import reading, translated
from sagas.stores.transactions import Lent, begun
from sagas.text import describe

__all__ = ["HANDLING", "Call", "End", "Inbox", "Outcome"]

logger = logging.getLogger(__name__)

#: The handler that runs now: what it may publish is what it declares.
HANDLING: ContextVar[Handler | None] = ContextVar("sagas_current_handler", default=None)

#: So often a message that was given out again is begun. What kills whoever handles it must end.
MOST_BEGUN = 5

#: What trying again cannot mend, other than by other code.
_HOPELESS = (TerminalError, InvalidMessage, UnknownVersion, DefinitionError, NotOwner, NoHandler, TransactionMisuse)

#: Rows that are deleted at once.
_BATCH = 1000


class End(enum.StrEnum):
    """How the handling of a delivery ended."""

    HANDLED = "handled"
    SKIPPED = "skipped"  #: it had been handled before, or was discarded
    UNSUBSCRIBED = "unsubscribed"  #: it is of a type that the queue was unbound from
    PARKED = "parked"  #: behind a dead letter of its key
    FAILED = "failed"  #: try again
    REJECTED = "rejected"  #: trying again is no use
    DEFERRED = "deferred"  #: the database did not answer: that says nothing about the message
    LOST = "lost"  #: whoever handled it died, or was told to stop: nobody knows how far it got
    DEAD_LETTERED = "dead_lettered"  #: its consumer filed it as a dead letter; comes after one of the others
    DOWN = "down"  #: nothing was delivered: the queue is not what is declared, and is not read


@dataclass(frozen=True, slots=True)
class Call:
    """What must be known to handle a delivery, in whatever process. Can be pickled."""

    queue: str
    topic: str
    body: bytes
    attempt: int  #: from 1
    redelivered: bool  #: it was given out before
    headers: Mapping[str, str] = field(default_factory=dict)
    owner: str | None = None  #: of an ordered queue: who reads it


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a `Call`. Can be pickled."""

    end: End
    error: str = ""
    after: float | None = None  #: seconds until the next attempt, where the handler said so


class Inbox:
    """Runs handlers, each in one transaction with its inbox row, what it writes and what it publishes.

    `publish(message, session, *, key)`: what `HandlerContext.emit` calls.
    """

    def __init__(
        self,
        engine: Engine,
        subscriptions: Mapping[str, Subscription],
        dead_letters: DeadLetters,
        bindings: Bindings,
        publish: Callable[..., Envelope],
        observers: Observers,
    ) -> None:
        self._observers = observers
        self._engine = engine
        self._subscriptions = subscriptions
        self._dead_letters = dead_letters
        self._bindings = bindings
        self._publish = publish
        self._unsubscribed: set[tuple[str, str]] = set()  # what was logged

    def handle(self, call: Call) -> Outcome:
        """Handle a delivery. Everything that can go wrong is an outcome; only the end of the process is raised."""
        outcome = self._outcome(call)
        if call.redelivered and outcome.end not in (End.HANDLED, End.REJECTED, End.DEFERRED):
            with suppress(StoreUnavailable, InvalidMessage):  # then it counts as begun once too often
                redeliveries.clear(self._engine, call.queue, read(call.body, call.headers).event_id)
        return outcome

    def _outcome(self, call: Call) -> Outcome:
        try:
            return Outcome(self._handle(call))
        except RetryableError as error:
            return Outcome(End.FAILED, _told(error), error.after)
        except _HOPELESS as error:
            return Outcome(End.REJECTED, _told(error))
        except StoreUnavailable as error:
            return Outcome(End.FAILED if self._answers() else End.DEFERRED, _told(error))
        except DBAPIError as error:
            away = error.connection_invalidated or not self._answers()
            return Outcome(End.DEFERRED if away else End.FAILED, _told(error))
        except BaseException as error:
            if ends_process(error):
                raise
            return _failed(call, error)

    def _handle(self, call: Call) -> End:
        subscription = self._subscriptions[call.queue]
        envelope = read(call.body, call.headers)
        if self._is_unsubscribed(subscription, envelope):
            return End.UNSUBSCRIBED
        handler = _handler(subscription, envelope)
        seen = Handling(
            queue=call.queue,
            type=envelope.event_type,
            event_id=envelope.event_id,
            correlation_id=envelope.correlation_id,
            attempt=call.attempt,
            metadata=envelope.metadata,
        )
        # The commit is in it: what is asked for after that belongs to the same story.
        with self._observers.during(seen), within(envelope.cause):
            end = self._handle_once(call, subscription, envelope, handler)
            seen.outcome = end.value
            return end

    def _is_unsubscribed(self, subscription: Subscription, envelope: Envelope) -> bool:
        """Tell whether a message is of a type that its queue was unbound from. Only a person decides that."""
        queue, name = subscription.queue, envelope.event_type
        if any(name in declared.names for handler in subscription.handlers.values() for declared in handler.handles):
            return False
        with reading(self._engine) as connection:
            if not self._bindings.is_removed(connection, queue, name):
                return False
        if (queue, name) not in self._unsubscribed:
            self._unsubscribed.add((queue, name))
            logger.warning("%s: passes over %s, which it was unsubscribed from; this is said once", queue, name)
        return True

    def _handle_once(self, call: Call, subscription: Subscription, envelope: Envelope, handler: Handler) -> End:
        replay = replay_of(envelope)
        if call.redelivered and redeliveries.begin(self._engine, call.queue, envelope.event_id) > MOST_BEGUN:
            raise TerminalError(
                f"it was begun {MOST_BEGUN} times and more, and whoever handled it never came back: it seems to kill "
                "its process"
            )
        with Session(self._engine) as session:
            connection = session.connection()
            if replay is not None and self._dead_letters.discarded(connection, call.queue, envelope):
                return End.SKIPPED
            if subscription.ordered and envelope.key is not None:
                first = self._dead_letters.first(connection, call.queue, envelope.key)
                if first is not None and first.id != replay:
                    self._park(connection, call, envelope, first.id)
                    session.commit()
                    return End.PARKED
            entered_at = _enter(connection, call.queue, envelope)
            for old in subscription.was if entered_at else ():  # as code does that knows it by an old name
                entered_at = entered_at and _enter(connection, old, envelope)
            if entered_at is None:
                session.rollback()
                connection = session.connection()
                _check_same(connection, call.queue, envelope)
                self._settle(connection, call, envelope)
                session.commit()
                return End.SKIPPED
            message = envelope.open(_declared(handler, envelope))
            context = HandlerContext(
                envelope=envelope,
                subscription=call.queue,
                attempt=call.attempt,
                session=session,
                _publish=self._publish,
            )
            with Lent(session, self._engine, f"handler {call.queue!r}") as lent:
                lent.hold(connection)
                try:
                    with _running(handler):
                        handler(message, context)
                    with translated(self._engine):
                        lent.verify()
                    self._settle(connection, call, envelope)
                    if call.owner is not None and not is_mine(connection, call.queue, call.owner):
                        return End.LOST  # somebody else reads the queue now, and may have come further
                    with translated(self._engine):
                        lent.commit()
                except Exception as error:
                    if not lent.is_whole() and self._take_out(lent, call, envelope, entered_at):
                        raise TransactionMisuse(
                            f"handler {call.queue!r}: a statement in it, a procedure or DDL, committed its "
                            "transaction. What it wrote before that is there, what came after is not. Mend it, see "
                            "what is to be undone, and replay it"
                        ) from error
                    raise
            return End.HANDLED

    def _take_out(self, lent: Lent, call: Call, envelope: Envelope, entered_at: datetime) -> bool:
        """Take a message out of the inbox that was committed there before it was handled; tell whether it was."""
        lent.take_back()
        lent.session.rollback()
        mine = delete(schema.inbox).where(*_entry(call.queue, envelope), schema.inbox.c.handled_at == entered_at)
        with translated(self._engine), begun(self._engine) as connection:
            return connection.execute(mine).rowcount == 1

    def _settle(self, connection: Connection, call: Call, envelope: Envelope) -> None:
        """Close what is open about a message that is handled."""
        if call.redelivered:
            redeliveries.clear_in(connection, call.queue, envelope.event_id)
        if replay_of(envelope) is not None:
            self._dead_letters.handled(connection, call.queue, envelope)

    def _park(self, connection: Connection, call: Call, envelope: Envelope, behind: int) -> None:
        self._dead_letters.file_in(
            connection,
            call.queue,
            envelope,
            body=call.body,
            headers=call.headers,
            error=f"parked behind dead letter {behind}, an earlier message of its key",
            attempts=0,
            behind=behind,
        )

    def _answers(self) -> bool:
        try:
            with reading(self._engine) as connection:
                connection.execute(select(1))
        except StoreUnavailable:
            return False
        return True

    def purge(self, older: timedelta) -> int:
        """Forget what was handled longer ago than that. Returns how much. Each thousand is a transaction."""
        before, total = datetime.now(UTC) - older, 0
        for table, moment in (
            (schema.inbox, schema.inbox.c.handled_at),
            (schema.redeliveries, schema.redeliveries.c.seen_at),
        ):
            key = tuple(table.primary_key)
            found = select(*key).where(moment < before).order_by(moment).limit(_BATCH)
            gone = delete(table).where(*(column == bindparam(f"key_{column.name}") for column in key))
            count = _BATCH
            while count == _BATCH:
                with translated(self._engine), begun(self._engine) as connection:
                    rows = [
                        {f"key_{name}": value for name, value in row.items()}
                        for row in connection.execute(found).mappings()
                    ]
                    if rows:
                        connection.execute(gone, rows)
                count = len(rows)
                total += count
        return total


@contextmanager
def _running(handler: Handler) -> Iterator[None]:
    before = HANDLING.set(handler)
    try:
        yield
    finally:
        HANDLING.reset(before)


def _handler(subscription: Subscription, envelope: Envelope) -> Handler:
    handler = subscription.handlers.get(envelope.topic)
    if handler is not None:
        return handler
    known = sorted(subscription.handlers)
    unsubscribe = ""
    if any_version(envelope.event_type) not in subscription.topics:
        unsubscribe = ". If it is no longer wanted, unbind it: " + command("events", "topology", "apply", "--delete")
    raise NoHandler(
        f"{subscription.queue} has no handler for {envelope.topic}, only for {', '.join(known)}. Deploy code that has "
        f"one, or an upcaster, then replay it{unsubscribe}"
    )


def _declared(handler: Handler, envelope: Envelope) -> Any:
    return next(declared for declared in handler.handles if envelope.event_type in declared.names)


_ENTER: Mapping[str, Any] = {
    "postgresql": postgresql.insert(schema.inbox).on_conflict_do_nothing().execution_options(preserve_rowcount=True),
    "sqlite": sqlite.insert(schema.inbox).on_conflict_do_nothing().execution_options(preserve_rowcount=True),
}


def _enter(connection: Connection, queue: str, envelope: Envelope) -> datetime | None:
    """Write down that a message is handled; return when, or None when it had been.

    Waits for whoever handles it meanwhile.
    """
    now = datetime.now(UTC)
    row = {
        "queue": queue,
        "event_id": envelope.event_id,
        "type": envelope.event_type,
        "version": envelope.version,
        "source": envelope.source,
        "correlation_id": envelope.correlation_id,
        "causation_id": envelope.causation_id,
        "digest": envelope.digest,
        "handled_at": now,
    }
    statement = _ENTER.get(connection.dialect.name)
    if statement is not None:
        return now if connection.execute(statement, row).rowcount == 1 else None
    try:
        # MySQL can only ignore a conflict together with everything else that is wrong with a row.
        connection.execute(insert(schema.inbox), row)
    except IntegrityError:
        return None
    return now


def _check_same(connection: Connection, queue: str, envelope: Envelope) -> None:
    """Raise `InvalidMessage` for a message that has the id of another one of its source."""
    handled = connection.execute(select(schema.inbox.c.digest).where(*_entry(queue, envelope))).scalar()
    if handled is not None and handled != envelope.digest:
        raise InvalidMessage(
            f"{envelope.source!r} has sent another message with the id {envelope.event_id!r}, which {queue} has "
            "handled already; this one has other content. Each message needs its own id: mend the publisher, and "
            "publish it with a new one"
        )


def _entry(queue: str, envelope: Envelope) -> tuple[ColumnElement[bool], ...]:
    table = schema.inbox.c
    return table.queue == queue, table.source == envelope.source, table.event_id == envelope.event_id


def _failed(call: Call, error: BaseException) -> Outcome:
    """Say what came of a call whose handler raised what nothing else is made of."""
    said = meant(error)
    if isinstance(said, TerminalError):
        return Outcome(End.REJECTED, _told(said))
    logger.warning("%s: attempt %d failed", call.queue, call.attempt, exc_info=error)
    return Outcome(End.FAILED, _told(said), said.after if isinstance(said, RetryableError) else None)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {describe(error)}"
