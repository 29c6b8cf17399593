"""The composition root of events: services, a database, a broker, and the processes between them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Literal, overload

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sagas.causes import Cause
from sagas.checkpoints import SagaRecord
from sagas.definition import Saga
from sagas.durations import seconds, whole_number
from sagas.errors import ConfigurationError, DefinitionError, DuplicateName, NotAllowed
from sagas.events import outbox
from sagas.events.batches import Batches
from sagas.events.bindings import Bindings, Difference
from sagas.events.breakers import CircuitBreakers
from sagas.events.brokers import Broker, Queue, Topology
from sagas.events.cloudevents import Wire
from sagas.events.consumer import Admits, Consumer
from sagas.events.consumers import Consumers
from sagas.events.deadletters import DeadLetters
from sagas.events.envelope import Envelope
from sagas.events.givenup import collect
from sagas.events.guards import default_guards
from sagas.events.inbox import Batch, Call, Inbox, Outcome
from sagas.events.letters import EventDeadLetter
from sagas.events.lifecycle import lifecycle_events
from sagas.events.messages import Kind, MessageType, type_of
from sagas.events.ownership import Ownership
from sagas.events.projections import Projection, Projections
from sagas.events.relay import Relay
from sagas.events.runners import Runner
from sagas.events.schema_registry import SchemaRegistry
from sagas.events.services import Service, Subscription
from sagas.events.store import EventStore
from sagas.events.waits import EventSignals, Signalled, event_waits, queue_of
from sagas.observers import Observers
from sagas.stores.engines import forget_after_fork
from sagas.stores.sessions import AnySession, own_session
from sagas.text import quoted

__all__ = ["SAGAS", "Events"]

#: The source of saga lifecycle events and of the commands that steps send.
SAGAS = "sagas"

#: The lease on an ordered queue, as a multiple of the broker's lease. After one broker lease, or two with RabbitMQ, the
#: broker redelivers what a silent reader had. Another process may take over after two thirds of this lease.
_LEASES = 4


class Events:
    """Assembles what a process needs to publish and consume messages.

    `services`: the services that this code declares. `engine`: the database whose transactions the outbox and the inbox
        share: the engine of a `SqlStore`, or your own. `broker`: carries messages between processes.
    `exchange`: the exchange for all topics.
    `guards`: protection against message storms, `sagas.events.guards.StormGuard(...)`. By default, a message with more
        than 32 ancestors, or with more than 8 of its own type, becomes a dead letter. None: no limits.
    `prefetch`: how many messages of one queue a process holds at once. `concurrency`: how many of them it handles at
        once. `relay_interval`: seconds between a relay's polls of an empty outbox.
    `store`: the event store, if events are kept permanently. `projections`: the projections of its events, in every
        version that this code has.
    `wire`: the format of messages at the broker: "envelope", this library's own, or a CloudEvent, "structured" or
        "binary". `Service(wire=)` overrides it for the messages of one service. Consumers read all three formats.
    `registry`: where message schemas are stored and checked at deployment; None: nowhere.
    Raises `DuplicateName` for two services or projections with the same name, and `DefinitionError` for projections
    without a store, or whose event types the store does not know.

    >>> from sagas import SqlStore
    >>> from sagas.events import Events, Service
    >>> Events([Service("orders")], engine=SqlStore("sqlite://").engine, broker=None).topology().queues
    ()
    """

    def __init__(
        self,
        services: Iterable[Service],
        *,
        engine: Engine,
        broker: Broker,
        exchange: str = "sagas.events",
        guards: Admits | Literal["default"] | None = "default",
        prefetch: int = 20,
        concurrency: int = 4,
        relay_interval: float | timedelta = 0.2,
        store: EventStore | None = None,
        projections: Iterable[Projection] = (),
        registry: SchemaRegistry | None = None,
        wire: Wire | Literal["envelope", "structured", "binary"] = Wire.ENVELOPE,
    ) -> None:
        self.wire = Wire.of(wire)
        self.services: Mapping[str, Service] = {}
        for service in services:
            if service.name in self.services:
                raise DuplicateName(f"there are two services named {service.name!r}. Rename one of them")
            self.services = {**self.services, service.name: service}
        self._ownership = Ownership(self.services)
        self.engine = engine
        self.broker = broker
        self.exchange = exchange
        self.guards = default_guards() if guards == "default" else guards
        self.breakers = CircuitBreakers()
        self.observers = Observers()  #: the observers of `Sagas(observers=)`
        self._prefetch = whole_number(prefetch, "Events: prefetch", ConfigurationError)
        self._concurrency = whole_number(concurrency, "Events: concurrency", ConfigurationError)
        queues = {subscription.queue: subscription for subscription in self.subscriptions}
        renamed = {old: queue for queue, subscription in queues.items() for old in subscription.was}
        versions = {queue: () if s.is_for_commands else tuple(s.handlers) for queue, s in queues.items()}
        self._letters = DeadLetters(engine, queues, renamed)
        self._bindings = Bindings(engine, broker, self.topology, versions, self.services, renamed)
        self._signals = EventSignals(self.observers)
        self._inbox = Inbox(
            engine, queues, self._letters, self._bindings, self._emit, self._signals.deliver, self.observers
        )
        self._batches = Batches(engine, queues, self._letters, self._inbox, self.observers)
        self.relay = Relay(
            engine,
            broker,
            self._letters,
            declare=self.apply_topology,
            wire=self._wire_of,
            interval=seconds(relay_interval, "Events: relay_interval", ConfigurationError),
            observers=self.observers,
        )
        forget_after_fork(engine)
        self.store = store
        projections = tuple(projections)
        if projections and store is None:
            raise DefinitionError(f"projection {projections[0]} has no event store: Events(..., store=EventStore(...))")
        self.projections = None if store is None else Projections(store, projections)
        self.registry = registry

    def _wire_of(self, source: str) -> Wire:
        """Return the broker format of the messages that a service publishes."""
        service = self.services.get(source)
        return self.wire if service is None or service.wire is None else service.wire

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        return tuple(subscription for service in self.services.values() for subscription in service.subscriptions)

    @property
    def types(self) -> tuple[MessageType, ...]:
        """Every message that the services handle, emit or publish, sorted by name."""
        found: set[MessageType] = set()
        for service in self.services.values():
            found.update(service.publishes)
            for handler in service.handlers:
                found.update(handler.handles + handler.emits + handler.compensates)
        return tuple(sorted(found, key=lambda declared: (declared.name, declared.version)))

    # -- sagas that wait for events -------------------------------------------------------------------------------

    def connect(self, sagas: Signalled) -> None:
        """Say whose sagas receive the events that they wait for. `Sagas` calls this."""
        self._signals.connect(sagas)

    def check_waits(self, saga: Saga) -> None:
        """Raise `ConfigurationError` if no service forwards an event that a saga waits for."""
        forwarded = {subscription.name: subscription for subscription in self.subscriptions}
        for (name, wait), events in event_waits([saga]).items():
            subscription = forwarded.get(queue_of(name, wait))
            handled = () if subscription is None else tuple(subscription.handlers.values())
            known = {declared.cls for handler in handled for declared in handler.handles}
            if missing := [each.__qualname__ for each in events if each not in known]:
                raise ConfigurationError(
                    f"saga {name!r}, wait {wait!r}: no service forwards {missing[0]} to it, so it would wait in vain. "
                    f"Call forward_to({name}) on the service that has the saga, before you pass it to Events"
                )

    # -- publishing ---------------------------------------------------------------------------------------------

    def publish(
        self,
        event: Any,
        session: AnySession,
        *,
        key: str | None = None,
        correlation_id: str | None = None,
        cause: Envelope | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Envelope:
        """Publish an event in the session's transaction: it is sent if, and only if, that transaction commits.

        `key`: messages with the same key are received in the order of publishing; for example an order or account id.
            `correlation_id`, `cause`: by default those of the message or step that is being handled. `metadata`:
            further data to send along, as JSON.
        Raises `NotOwner` if no service of this process owns the event, and `DefinitionError` inside a handler that does
        not declare that it emits the event.
        """
        declared = self._ownership.publishable(event, Kind.EVENT)
        self._ownership.check_owner(declared)
        envelope = Envelope.wrap(
            event,
            source=declared.context,
            key=key,
            correlation_id=correlation_id,
            cause=cause,
            metadata=self._with_trace(metadata),
        )
        self._write(session, envelope, None)
        return envelope

    def send(
        self,
        command: Any,
        session: AnySession,
        *,
        source: str | None = None,
        key: str | None = None,
        correlation_id: str | None = None,
        cause: Envelope | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Envelope:
        """Send a command in the session's transaction, to the queue of the service that receives it.

        `source`: the service that sends it; by default that of the running handler, or the only one in this process.
        The other parameters are as for `publish`. Raises `NoHandler` if the receiving service belongs to this process
        and has no handler for the command. If no queue exists for a service elsewhere, the command becomes a dead
        letter in the sender's database when the relay sends it.
        """
        declared = self._ownership.publishable(command, Kind.COMMAND)
        queue = self._ownership.queue_of(declared)
        envelope = Envelope.wrap(
            command,
            source=source or self._ownership.sender_of(declared),
            key=key,
            correlation_id=correlation_id,
            cause=cause,
            metadata=self._with_trace(metadata),
        )
        self._write(session, envelope, queue)
        return envelope

    def prepare(
        self,
        message: Any,
        *,
        key: str,
        cause: Cause,
        source: str | None = None,
    ) -> Mapping[str, Any]:
        """Return the outbox row of a message, for callers that write it in their own transaction.

        The saga engine does so: a step emits before its checkpoint. `cause`: the saga or step; the message joins its
        trace if no span is active. `source`: the publisher, if it is not the owner. Raises as `publish` and `send` do.
        """
        declared, queue = type_of(message), None
        self._ownership.publishable(message, declared.kind)
        if declared.kind is Kind.COMMAND:
            queue, source = self._ownership.queue_of(declared), source or SAGAS
        elif source is None:
            self._ownership.check_owner(declared)
        return self._row(message, key=key, cause=cause, source=source or declared.context, queue=queue)

    def _row(self, message: Any, *, key: str, cause: Cause, source: str, queue: str | None = None) -> Mapping[str, Any]:
        envelope = Envelope.wrap(message, source=source, key=key, cause=cause, metadata=self._with_trace(None))
        return outbox.outbox_row(envelope, queue)

    def lifecycle(self, before: SagaRecord, after: SagaRecord) -> Sequence[Mapping[str, Any]]:
        """Return the outbox rows for the lifecycle events of a saga's change.

        They are the saga's, also when a handler changed it: the handler need not declare them.
        """
        cause = after.cause()
        return [
            self._row(message, key=after.id, cause=cause, source=SAGAS) for message in lifecycle_events(before, after)
        ]

    def _with_trace(self, metadata: dict[str, Any] | None) -> dict[str, Any]:
        """Return the metadata with the active span, if there is one. Values from the caller take precedence."""
        return {**self.observers.carry(), **(metadata or {})}

    def _emit(self, message: Any, session: Session, *, key: str | None) -> Envelope:
        give = self.publish if type_of(message).kind is Kind.EVENT else self.send
        return give(message, session, key=key)

    def _write(self, session: AnySession, envelope: Envelope, queue: str | None) -> None:
        own = own_session(session)
        connection = own.connection() if isinstance(own, Session) else own
        if connection.dialect.name != self.engine.dialect.name:
            raise ConfigurationError(
                f"the session uses {connection.dialect.name}, but the outbox is on {self.engine.dialect.name}. Pass a "
                "session of the database that Events(engine=...) uses"
            )
        outbox.write(connection, envelope, queue)

    def outbox_age(self) -> float:
        """Return the age of the oldest unsent message in seconds; 0 if there is none. Use it for alerts."""
        return outbox.age(self.engine)

    def outbox_unsent(self) -> int:
        """Return how many messages await a relay."""
        return outbox.unsent(self.engine)

    def outbox_unheard(self) -> Mapping[str, int]:
        """Return, per type, how many messages were sent to nobody because no queue was bound to their type."""
        return outbox.unheard(self.engine)

    def resend(self, types: Iterable[str]) -> int:
        """Send messages again that reached nobody, after a queue was bound to their type. Returns how many.

        They arrive after messages published since: the order within their keys is lost. `types`: message type names.
        """
        return outbox.resend(self.engine, list(types))

    def purge(self, older: timedelta) -> int:
        """Delete messages that were sent, handled or resolved longer ago than `older`. Returns the number of rows.

        Keep inbox rows longer than a message may be in transit: a message that returns later is handled again.
        """
        return outbox.purge(self.engine, older) + self._inbox.purge(older) + self._letters.purge(older)

    # -- consuming ----------------------------------------------------------------------------------------------

    def topology(self) -> Topology:
        """Return the queues that the services read, and what each receives: every version of a type."""
        queues = (Queue(s.queue, () if s.is_for_commands else s.topics) for s in self.subscriptions)
        return Topology(self.exchange, tuple(queues))

    def apply_topology(
        self, *, delete: bool = False, others: Iterable[str] = (), discard: bool = False
    ) -> Sequence[str]:
        """Create what is missing of the topology at the broker; return the changes. Call it before the first message.

        Consumers also call it when they start. A subscriber does not receive events sent before its queue exists. The
        messages of a renamed queue (`was=`) are moved.

        `delete`: also remove the bindings and empty queues that `topology_difference` lists as stale. `others`: queues
        of services that this code does not declare, to be deleted too. `discard`: delete queues with their messages.
        Raises `BrokerUnavailable` and `StoreUnavailable`; `QueueMismatch` after everything else is done, but before
        anything is removed.
        """
        self._letters.follow()
        made = self._bindings.declare()
        if delete:
            made += self._bindings.remove(others=frozenset(others), discard=discard)
        return made

    def queue_mismatches(self) -> Mapping[str, str]:
        """Return the queues at the broker that differ from their declaration, with a description. Nobody reads them.

        Raises `BrokerUnavailable`.
        """
        return self._bindings.mismatches()

    def topology_difference(self) -> Sequence[Difference]:
        """Return what is missing at the broker, and what was declared there once and no longer is.

        Raises `StoreUnavailable`.
        """
        return self._bindings.difference()

    @overload
    def handle(self, work: Call) -> Outcome: ...

    @overload
    def handle(self, work: Batch) -> Sequence[Outcome]: ...

    @overload
    def handle(self, work: Call | Batch) -> Outcome | Sequence[Outcome]: ...

    def handle(self, work: Call | Batch) -> Outcome | Sequence[Outcome]:
        """Handle a delivery, or a batch of them, in this process. For code that runs consumers; it never raises."""
        return self._inbox.handle(work) if isinstance(work, Call) else self._batches.handle(work)

    def consumers(self, runner: Runner, queues: Iterable[str] | None = None) -> Consumers:
        """Return consumers for these queues, or for all queues of the services; `runner` runs their handlers.

        Raises `ConfigurationError` for a queue that belongs to none of the services.
        """
        ours = {subscription.queue: subscription for subscription in self.subscriptions}
        wanted = list(ours) if queues is None else list(queues)
        if unknown := [queue for queue in wanted if queue not in ours]:
            raise ConfigurationError(f"there is no queue {unknown[0]!r}. The queues are: {quoted(ours)}")
        alone = threading.Lock()
        return Consumers(
            Consumer(
                ours[queue],
                engine=self.engine,
                broker=self.broker,
                declare=self.apply_topology,
                runner=runner,
                dead_letters=self._letters,
                breaker=self.breakers.of(ours[queue]),
                guards=self.guards,
                prefetch=self._prefetch,
                concurrency=self._concurrency,
                lease=_LEASES * self.broker.lease,
                alone=alone,
                collect=partial(collect, self.engine, self.broker, self._letters, ours[queue]),
                observers=self.observers,
            )
            for queue in wanted
        )

    def collect_given_up(self) -> int:
        """Collect the messages that the broker itself gave up on; return their number. See RabbitMQ's delivery limit.

        Messages that were not started too often return to their queue; the rest become dead letters. Consumers call
        this periodically. Raises `BrokerUnavailable` and `StoreUnavailable`.
        """
        return sum(collect(self.engine, self.broker, self._letters, mine) for mine in self.subscriptions)

    # -- dead letters -------------------------------------------------------------------------------------------

    def dead_letters(
        self,
        ids: Iterable[int] | None = None,
        *,
        queue: str | None = None,
        type: str | None = None,  # noqa: A002
        key: str | None = None,
        correlation_id: str | None = None,
        resolved: bool = False,
        limit: int = 100,
    ) -> Sequence[EventDeadLetter]:
        """Return dead letters, oldest first: those with the given ids, or else the open ones.

        `resolved`: include the resolved ones. Raises `NotAllowed` for an id that does not exist.
        """
        if ids is not None:
            return self._letters.get(ids)
        return self._letters.select(
            queue=queue, type=type, key=key, correlation_id=correlation_id, resolved=resolved, limit=limit
        )

    def open_dead_letters(self) -> Mapping[str, int]:
        """Return the number of open dead letters per queue. The queue "" holds messages that the broker rejected."""
        return self._letters.count()

    def replay(
        self,
        letters: Iterable[EventDeadLetter],
        *,
        reason: str,
        actor: str | None = None,
        rate: float | None = None,
        dry_run: bool = True,
    ) -> Sequence[EventDeadLetter]:
        """Send dead-lettered messages again, each to the one subscriber that failed. Returns the messages sent.

        Nothing is sent unless `dry_run=False`. `rate`: the most messages per second.
        Dead letters that are resolved, unreadable or parked are skipped: parked ones follow the first of their key
        automatically. Raises `NotAllowed` without a reason.

        >>> events.replay(events.dead_letters(queue="inventory.reserve_stock"), reason="fixed in 1.2.3", dry_run=False)
        ... # doctest: +SKIP
        """
        return self._letters.replay(letters, reason=_reason(reason), actor=actor, rate=rate, dry_run=dry_run)

    def discard(
        self, letters: Iterable[EventDeadLetter], *, reason: str, actor: str | None = None
    ) -> Sequence[EventDeadLetter]:
        """Resolve dead letters without handling them. Returns those that were open.

        In an ordered queue, the messages parked behind them continue. Raises `NotAllowed` without a reason.
        """
        return self._letters.discard(letters, reason=_reason(reason), actor=actor)


def _reason(reason: str) -> str:
    if not reason.strip():
        raise NotAllowed("give a reason, for those who look at this later")
    return reason
