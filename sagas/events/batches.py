"""Batches: messages that wait share a transaction. If it is rolled back, each of them is handled alone.

A batch only ever succeeds. Whatever prevents that (a handler that raises, a message that was handled before, a key with
a dead letter, a lease that is lost) is left to the inbox, which finds it out again for the one message it concerns.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sagas.causes import within
from sagas.endings import ends_process
from sagas.errors import StoreUnavailable
from sagas.events.deadletters import DeadLetters
from sagas.events.envelope import Envelope
from sagas.events.inbox import (
    Batch,
    Call,
    End,
    Inbox,
    Outcome,
    declared_of,
    described,
    enter,
    handler_of,
    handling,
    running,
)
from sagas.events.incoming import read
from sagas.events.leases import is_mine
from sagas.events.services import Handler, HandlerContext, Subscription
from sagas.observers import Handling, Observers
from sagas.stores.commits import Commits
from sagas.stores.engines import translated
from sagas.stores.transactions import Lent

__all__ = ["Batches"]

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Message:
    """A message of a batch.

    Its handler and its observers run in a context of their own: what they set there, such as the active span, is not
    seen by its neighbours, and is still there when the batch has committed.
    """

    call: Call
    envelope: Envelope
    handler: Handler
    opened: Any
    seen: Handling
    surrounded: ExitStack = field(default_factory=ExitStack)
    context: Context = field(default_factory=copy_context)

    @classmethod
    def of(cls, call: Call, subscription: Subscription) -> _Message:
        envelope = read(call.body, call.headers)
        handler = handler_of(subscription, envelope)
        opened = envelope.open(declared_of(handler, envelope))
        return cls(call, envelope, handler, opened, handling(call, envelope))

    def begin(self, observers: Observers) -> None:
        self.surrounded.enter_context(observers.during(self.seen))
        self.surrounded.enter_context(within(self.envelope.cause))

    def handle(self, lent: Lent, context: HandlerContext) -> None:
        """Call the handler, and leave the session to the next one as if it were new."""
        began = time.perf_counter()
        with running(self.handler):
            self.handler(self.opened, context)
        lent.check()
        lent.session.flush()
        Commits.prepare(lent.session)
        lent.session.flush()
        lent.session.expunge_all()
        self.seen.seconds = time.perf_counter() - began

    def end(self, outcome: End, share: float) -> None:
        self.seen.outcome = outcome.value
        self.seen.seconds += share
        self.surrounded.close()


class Batches:
    """Handles batches, each in one transaction with the inbox rows and the writes of all of its messages."""

    def __init__(
        self,
        engine: Engine,
        subscriptions: Mapping[str, Subscription],
        dead_letters: DeadLetters,
        inbox: Inbox,
        observers: Observers,
    ) -> None:
        self._engine = engine
        self._subscriptions = subscriptions
        self._dead_letters = dead_letters
        self._inbox = inbox
        self._observers = observers

    def handle(self, batch: Batch) -> Sequence[Outcome]:
        """Handle a batch; return the outcome of each message. Only exceptions that end the process are raised.

        All are handled, or nothing of any of them is left. A handler that committed the transaction by itself, which
        cannot be undone, has all of them rejected.
        """
        queue, count = batch.calls[0].queue, len(batch.calls)
        try:
            outcome = self._handle(batch, self._subscriptions[queue])
        except BaseException as error:
            if ends_process(error):
                raise
            is_of_database = isinstance(error, StoreUnavailable | DBAPIError)
            away = is_of_database and not self._inbox.answers()
            outcome = Outcome(End.DEFERRED if away else End.ROLLED_BACK, described(error))
        if outcome.end is not End.HANDLED:
            logger.warning("%s: %s, a batch of %d messages: %s", queue, outcome.end, count, outcome.error)
        return [outcome] * count

    def _handle(self, batch: Batch, subscription: Subscription) -> Outcome:
        messages = [_Message.of(call, subscription) for call in batch.calls]
        outcome, began = Outcome(End.ROLLED_BACK), time.perf_counter()
        try:
            with Session(self._engine) as session:
                outcome = self._handle_in(session, messages, subscription)
        finally:
            shared = time.perf_counter() - began - sum(message.seen.seconds for message in messages)
            for message in messages:
                message.context.run(message.end, outcome.end, shared / len(messages))
        return outcome

    def _handle_in(self, session: Session, messages: Sequence[_Message], subscription: Subscription) -> Outcome:
        queue, owner = subscription.queue, messages[0].call.owner
        envelopes = [message.envelope for message in messages]
        connection = session.connection()
        keys = {envelope.key for envelope in envelopes if envelope.key is not None}
        if subscription.ordered and self._dead_letters.any_open(connection, queue, keys):
            return Outcome(End.ROLLED_BACK, "a key has a dead letter")
        entered_at = enter(connection, subscription, *envelopes)
        if entered_at is None:
            return Outcome(End.ROLLED_BACK, "a message was handled before")
        with Lent(session, self._engine, f"handler {queue!r}") as lent:
            lent.hold(connection)
            try:
                for message in messages:
                    message.context.run(message.begin, self._observers)
                    context = self._inbox.context(message.call, message.envelope, session)
                    message.context.run(message.handle, lent, context)
                with translated(self._engine):
                    lent.verify()
                if owner is not None and not is_mine(connection, queue, owner):
                    return Outcome(End.ROLLED_BACK, "another process reads the queue now")
                with translated(self._engine):
                    lent.commit()
            except Exception as error:
                if misuse := self._inbox.take_out_committed(lent, subscription, envelopes, entered_at):
                    logger.warning("%s: a batch was committed by its handler", queue, exc_info=error)
                    return Outcome(End.REJECTED, described(misuse))
                raise
        return Outcome(End.HANDLED)
