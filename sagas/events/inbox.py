"""The inbox: a handler's effect in the database happens once, however often its message is delivered."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from sagas.events.deadletters import DeadLetters
from sagas.events.envelope import Envelope
from sagas.events.incoming import read
from sagas.events.leases import is_mine
from sagas.events.letters import replay_of
from sagas.events.messages import any_version
from sagas.events.services import Handler, HandlerContext, Subscription
from sagas.observers import Handling, Observers
from sagas.stores import schema
from sagas.stores.engines import reading, translated
from sagas.stores.transactions import Lent, begun
from sagas.text import describe

__all__ = [
    "HANDLING",
    "Batch",
    "Call",
    "End",
    "Inbox",
    "Outcome",
    "declared_of",
    "described",
    "enter",
    "handler_of",
    "handling",
    "running",
]

logger = logging.getLogger(__name__)

#: The handler that is running: it may publish only what it declares.
HANDLING: ContextVar[Handler | None] = ContextVar("sagas_current_handler", default=None)

#: How often a redelivered message is begun at most. A message that kills its process must not do so forever.
MOST_BEGUN = 5

#: Errors that no retry can repair without other code.
_HOPELESS = (TerminalError, InvalidMessage, UnknownVersion, DefinitionError, NotOwner, NoHandler, TransactionMisuse)

#: How many rows are deleted at once.
_BATCH = 1000


class End(enum.StrEnum):
    """How the handling of a delivery ended."""

    HANDLED = "handled"
    SKIPPED = "skipped"  #: it was handled before, or discarded
    UNSUBSCRIBED = "unsubscribed"  #: its queue was unbound from its type
    PARKED = "parked"  #: behind a dead letter with its key
    FAILED = "failed"  #: to be retried
    REJECTED = "rejected"  #: a retry would not help
    DEFERRED = "deferred"  #: the database did not answer: that says nothing about the message
    ROLLED_BACK = "rolled_back"  #: its batch was: nothing is left of this, and it is handled again, alone
    LOST = "lost"  #: the process handling it died or was stopped: how far it got is unknown
    DEAD_LETTERED = "dead_lettered"  #: its consumer filed it as a dead letter; comes after one of the others
    DOWN = "down"  #: nothing was delivered: the queue differs from its declaration and is not read


@dataclass(frozen=True, slots=True)
class Call:
    """What any process needs to handle a delivery. Can be pickled."""

    queue: str
    topic: str
    body: bytes
    attempt: int  #: from 1
    redelivered: bool  #: whether it was delivered before
    headers: Mapping[str, str] = field(default_factory=dict)
    owner: str | None = None  #: the consumer that holds the lease, for an ordered queue


@dataclass(frozen=True, slots=True)
class Batch:
    """Deliveries of one queue to handle in one transaction, in this order. Can be pickled.

    None of them was delivered before, and none is a replay.
    """

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a `Call`. Can be pickled."""

    end: End
    error: str = ""
    after: float | None = None  #: seconds until the next attempt, if the handler asked for them


class Inbox:
    """Runs each handler in one transaction with its inbox row, its writes and the messages it publishes.

    `publish(message, session, *, key)`: called by `HandlerContext.emit`. `signal`: delivers an event to a saga that
    waits for it.
    """

    def __init__(
        self,
        engine: Engine,
        subscriptions: Mapping[str, Subscription],
        dead_letters: DeadLetters,
        bindings: Bindings,
        publish: Callable[..., Envelope],
        signal: Callable[..., None],
        observers: Observers,
    ) -> None:
        self._observers = observers
        self._engine = engine
        self._subscriptions = subscriptions
        self._dead_letters = dead_letters
        self._bindings = bindings
        self._publish = publish
        self._signal = signal
        self._unsubscribed: set[tuple[str, str]] = set()  # logged already

    def handle(self, call: Call) -> Outcome:
        """Handle a delivery. Every error becomes an outcome; only exceptions that end the process are raised."""
        outcome = self._outcome(call)
        if call.redelivered and outcome.end not in (End.HANDLED, End.REJECTED, End.DEFERRED):
            with suppress(StoreUnavailable, InvalidMessage):  # the message then counts as begun once too often
                redeliveries.clear(self._engine, call.queue, read(call.body, call.headers).event_id)
        return outcome

    def _outcome(self, call: Call) -> Outcome:
        try:
            return Outcome(self._handle(call))
        except RetryableError as error:
            return Outcome(End.FAILED, described(error), error.after)
        except _HOPELESS as error:
            return Outcome(End.REJECTED, described(error))
        except StoreUnavailable as error:
            return Outcome(End.FAILED if self.answers() else End.DEFERRED, described(error))
        except DBAPIError as error:
            unavailable = error.connection_invalidated or not self.answers()
            return Outcome(End.DEFERRED if unavailable else End.FAILED, described(error))
        except BaseException as error:
            if ends_process(error):
                raise
            return _failed(call, error)

    def _handle(self, call: Call) -> End:
        subscription = self._subscriptions[call.queue]
        envelope = read(call.body, call.headers)
        if self._is_unsubscribed(subscription, envelope):
            return End.UNSUBSCRIBED
        handler = handler_of(subscription, envelope)
        seen = handling(call, envelope)
        # This includes the commit: queries after that belong to the same flow.
        with self._observers.during(seen), within(envelope.cause):
            end = self._handle_once(call, subscription, envelope, handler)
            seen.outcome = end.value
            return end

    def _is_unsubscribed(self, subscription: Subscription, envelope: Envelope) -> bool:
        """Return whether its queue was unbound from the type of a message. Only a person decides that."""
        queue, name = subscription.queue, envelope.event_type
        if any(name in declared.names for handler in subscription.handlers.values() for declared in handler.handles):
            return False
        with reading(self._engine) as connection:
            if not self._bindings.is_removed(connection, queue, name):
                return False
        if (queue, name) not in self._unsubscribed:
            self._unsubscribed.add((queue, name))
            logger.warning("%s: skipping messages of %s, which it was unbound from (logged once)", queue, name)
        return True

    def _handle_once(self, call: Call, subscription: Subscription, envelope: Envelope, handler: Handler) -> End:
        replay = replay_of(envelope)
        if call.redelivered and redeliveries.begin(self._engine, call.queue, envelope.event_id) > MOST_BEGUN:
            raise TerminalError(
                f"it was begun more than {MOST_BEGUN} times, and its handler never returned: the message seems to kill "
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
            entered_at = enter(connection, subscription, envelope)
            if entered_at is None:
                session.rollback()
                connection = session.connection()
                _check_same(connection, call.queue, envelope)
                self._settle(connection, call, envelope)
                session.commit()
                return End.SKIPPED
            message = envelope.open(declared_of(handler, envelope))
            context = self.context(call, envelope, session)
            with Lent(session, self._engine, f"handler {call.queue!r}") as lent:
                lent.hold(connection)
                try:
                    with running(handler):
                        handler(message, context)
                    with translated(self._engine):
                        lent.verify()
                    self._settle(connection, call, envelope)
                    if call.owner is not None and not is_mine(connection, call.queue, call.owner):
                        return End.LOST  # another process reads the queue now, and may be further ahead
                    with translated(self._engine):
                        lent.commit()
                except Exception as error:
                    if misuse := self.take_out_committed(lent, subscription, (envelope,), entered_at):
                        raise misuse from error
                    raise
            return End.HANDLED

    def context(self, call: Call, envelope: Envelope, session: Session) -> HandlerContext:
        """Return what a handler sees of its message and delivery."""
        return HandlerContext(
            envelope=envelope,
            subscription=call.queue,
            attempt=call.attempt,
            session=session,
            _publish=self._publish,
            _signal=self._signal,
        )

    def take_out_committed(
        self, lent: Lent, subscription: Subscription, envelopes: Sequence[Envelope], entered_at: datetime
    ) -> TransactionMisuse | None:
        """After an error, remove messages from the inbox that a handler itself committed; return its misuse, if any."""
        if lent.is_whole():
            return None
        lent.take_back()
        lent.session.rollback()
        with translated(self._engine), begun(self._engine) as connection:
            taken_out = sum(
                connection.execute(delete(schema.inbox).where(*mine, schema.inbox.c.handled_at == entered_at)).rowcount
                for queue in (subscription.queue, *subscription.was)
                for mine in (_entry(queue, envelope) for envelope in envelopes)
            )
        if not taken_out:
            return None
        others = "" if len(envelopes) == 1 else f". The same is true of all {len(envelopes)} messages of its batch"
        return TransactionMisuse(
            f"handler {subscription.queue!r}: a statement in it, such as a procedure or DDL, committed its "
            "transaction. What it wrote before that is stored, what it wrote later is not. Fix the "
            f"handler, check what to undo, and replay the message{others}"
        )

    def _settle(self, connection: Connection, call: Call, envelope: Envelope) -> None:
        """Close the redelivery count and the dead letter of a handled message."""
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
            error=f"parked behind dead letter {behind}, an earlier message with the same key",
            attempts=0,
            behind=behind,
        )

    def answers(self) -> bool:
        """Return whether the database answers."""
        try:
            with reading(self._engine) as connection:
                connection.execute(select(1))
        except StoreUnavailable:
            return False
        return True

    def purge(self, older: timedelta) -> int:
        """Delete what was handled longer ago than `older`. Returns how many rows. Each batch is a transaction."""
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
def running(handler: Handler) -> Iterator[None]:
    """Make this the handler that is running."""
    before = HANDLING.set(handler)
    try:
        yield
    finally:
        HANDLING.reset(before)


def handling(call: Call, envelope: Envelope) -> Handling:
    """Return what observers are told of a delivery."""
    return Handling(
        queue=call.queue,
        type=envelope.event_type,
        event_id=envelope.event_id,
        correlation_id=envelope.correlation_id,
        attempt=call.attempt,
        metadata=envelope.metadata,
    )


def handler_of(subscription: Subscription, envelope: Envelope) -> Handler:
    """Return the handler of a message. Raises `NoHandler`."""
    handler = subscription.handlers.get(envelope.topic)
    if handler is not None:
        return handler
    known = sorted(subscription.handlers)
    unsubscribe = ""
    if any_version(envelope.event_type) not in subscription.topics:
        unsubscribe = ". If it is no longer needed, unbind it: " + command("events", "topology", "apply", "--delete")
    raise NoHandler(
        f"{subscription.queue} has no handler for {envelope.topic}, only for {', '.join(known)}. Deploy code with "
        f"such a handler or an upcaster, and replay the message{unsubscribe}"
    )


def declared_of(handler: Handler, envelope: Envelope) -> Any:
    """Return the declaration of a message that a handler handles."""
    return next(declared for declared in handler.handles if envelope.event_type in declared.names)


_ENTER: Mapping[str, Any] = {
    "postgresql": postgresql.insert(schema.inbox).on_conflict_do_nothing().execution_options(preserve_rowcount=True),
    "sqlite": sqlite.insert(schema.inbox).on_conflict_do_nothing().execution_options(preserve_rowcount=True),
}


def enter(connection: Connection, subscription: Subscription, *envelopes: Envelope) -> datetime | None:
    """Record that messages are handled; return the time, or None if any of them was handled before.

    Waits for another transaction that is handling one of them.
    """
    now = datetime.now(UTC)
    # Code that knows the queue by an old name does the same.
    for queue in (subscription.queue, *subscription.was):
        rows = [_inbox_row(queue, envelope, now) for envelope in envelopes]
        given: Any = rows if len(rows) > 1 else rows[0]
        statement = _ENTER.get(connection.dialect.name)
        if statement is not None:
            if connection.execute(statement, given).rowcount != len(rows):
                return None
            continue
        try:
            # MySQL can only ignore a conflict together with every other error in a row.
            connection.execute(insert(schema.inbox), given)
        except IntegrityError:
            return None
    return now


def _inbox_row(queue: str, envelope: Envelope, now: datetime) -> dict[str, Any]:
    return {
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


def _check_same(connection: Connection, queue: str, envelope: Envelope) -> None:
    """Raise `InvalidMessage` if another message from the same source has the same id."""
    handled = connection.execute(select(schema.inbox.c.digest).where(*_entry(queue, envelope))).scalar()
    if handled is not None and handled != envelope.digest:
        raise InvalidMessage(
            f"{envelope.source!r} has sent another message with the id {envelope.event_id!r}, which {queue} has "
            "already handled, but with other content. Each message needs its own id: fix the publisher, and publish "
            "this message with a new id"
        )


def _entry(queue: str, envelope: Envelope) -> tuple[ColumnElement[bool], ...]:
    table = schema.inbox.c
    return table.queue == queue, table.source == envelope.source, table.event_id == envelope.event_id


def _failed(call: Call, error: BaseException) -> Outcome:
    """Return the outcome of a call whose handler raised any other exception."""
    reported = meant(error)
    if isinstance(reported, TerminalError):
        return Outcome(End.REJECTED, described(reported))
    logger.warning("%s: attempt %d failed", call.queue, call.attempt, exc_info=error)
    return Outcome(End.FAILED, described(reported), reported.after if isinstance(reported, RetryableError) else None)


def described(error: BaseException) -> str:
    """Return an error's type and text."""
    return f"{type(error).__name__}: {describe(error)}"
