"""The composition root of events: services, a database, a broker, and what runs between them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Literal

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sagas.causes import Cause
from sagas.checkpoints import SagaRecord
from sagas.durations import seconds, whole_number
from sagas.errors import ConfigurationError, DefinitionError, DuplicateName, NoHandler, NotAllowed, NotOwner
from sagas.events import outbox
from sagas.events.bindings import Bindings, Difference
from sagas.events.breakers import CircuitBreakers
from sagas.events.brokers import Broker, Queue, Topology
from sagas.events.cloudevents import Wire
from sagas.events.consumer import Admits, Consumer, Consumers, Runner
from sagas.events.deadletters import DeadLetters, EventDeadLetter
from sagas.events.envelope import Envelope
from sagas.events.givenup import collect
from sagas.events.guards import default_guards
from sagas.events.inbox import HANDLING, Call, Inbox, Outcome
from sagas.events.lifecycle import lifecycle_events
from sagas.events.messages import Kind, MessageType, type_of
from sagas.events.projections import Projection, Projections
from sagas.events.relay import Relay
from sagas.events.schema_registry import SchemaRegistry
from sagas.events.services import Service, Subscription
from sagas.events.store import EventStore
from sagas.observers import Observers
from sagas.stores.engines import forget_after_fork
from sagas.stores.sessions import AnySession, own_session

__all__ = ["SAGAS", "Events"]

#: Who publishes what becomes of sagas, and sends the commands of their steps.
SAGAS = "sagas"

#: The lease on an ordered queue, in leases of the broker: after one of these, or with RabbitMQ after two, it gives out
#: again what a silent reader had. Ours may be taken over when two thirds of it have passed.
_LEASES = 4


class Events:
    """Puts together what a process needs to publish and to consume.

    `services`: those that this code declares. `engine`: the database whose transactions the outbox and the inbox share;
        that of a `SqlStore`, or one of your own. `broker`: what carries messages between processes.
    `exchange`: the name that all of its topics are under.
    `guards`: against storms, `sagas.events.guards.StormGuard(...)`; left out, a message that more than 32 messages, or
        more than 8 of its own type, led to becomes a dead letter; None: no limits.
    `prefetch`: how many messages of one queue a process holds at once. `concurrency`: how many of them it runs at once.
    `relay_interval`: seconds between two looks of a relay at an empty outbox.
    `store`: where events are kept for good, if they are. `projections`: what is made of those; every version that this
        code has.
    `wire`: what messages look like at the broker: "envelope", this library's own form, or a CloudEvent, "structured" or
        "binary". `Service(wire=)` says it for the messages of one service. All of them are read, whichever is written.
    `registry`: where the schemas of messages are kept, and checked at deployment; None: nowhere.
    Raises `DuplicateName` for two services, or two projections, of one name, `DefinitionError` for projections that
    have no store, or whose events it was not given.

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
                raise DuplicateName(f"there are two services {service.name!r}")
            self.services = {**self.services, service.name: service}
        self.engine = engine
        self.broker = broker
        self.exchange = exchange
        self.guards = default_guards() if guards == "default" else guards
        self.breakers = CircuitBreakers()
        self.observers = Observers()  #: those of `Sagas(observers=)`
        self._prefetch = whole_number(prefetch, "Events: prefetch", ConfigurationError)
        self._concurrency = whole_number(concurrency, "Events: concurrency", ConfigurationError)
        queues = {subscription.queue: subscription for subscription in self.subscriptions}
        renamed = {old: queue for queue, subscription in queues.items() for old in subscription.was}
        versions = {queue: () if s.is_for_commands else tuple(s.handlers) for queue, s in queues.items()}
        self._letters = DeadLetters(engine, queues, renamed)
        self._bindings = Bindings(engine, broker, self.topology, versions, self.services, renamed)
        self._inbox = Inbox(engine, queues, self._letters, self._bindings, self._emit, self.observers)
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
            raise DefinitionError(f"projection {projections[0]} has no events: Events(..., store=EventStore(...))")
        self.projections = None if store is None else Projections(store, projections)
        self.registry = registry

    def _wire_of(self, source: str) -> Wire:
        """Return what the messages that a service publishes look like at the broker."""
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
        """Publish an event in the transaction of the session: it is sent if that commits, and only then.

        `key`: messages of one key are received in the order in which they were published: the id of the order, the
            account. `correlation_id`, `cause`: left out, those of the message whose handler is running, or of the step.
        `metadata`: whatever else is to travel along, as JSON.
        Raises `NotOwner` when the event is not one of this process's services', `DefinitionError` inside a handler
        that does not say that it emits this.
        """
        declared = self._publishable(event, Kind.EVENT)
        self._check_owned(declared)
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
        """Send a command in the transaction of the session, to the queue of the service that receives it.

        `source`: the service that sends it; left out, that of the running handler, or the only one of this process.
        The rest is as for `publish`. Raises `NoHandler` when its service is of this process and has no handler for it.
        For a service elsewhere that shows only when it is sent: the command then becomes a dead letter in the database
        of the sender.
        """
        declared = self._publishable(command, Kind.COMMAND)
        queue = self._queue_of(declared)
        envelope = Envelope.wrap(
            command,
            source=source or self._sender(declared),
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
        """Return the row of the outbox for a message, for whoever writes it in a transaction of its own.

        That is the saga engine: a step emits before its checkpoint. `cause`: the saga or its step; its trace is what
        the message belongs to where no span is active. `source`: who publishes, where that is not the owner. Raises as
        `publish` and `send` do.
        """
        declared, queue = type_of(message), None
        self._publishable(message, declared.kind)
        if declared.kind is Kind.COMMAND:
            queue, source = self._queue_of(declared), source or SAGAS
        elif source is None:
            self._check_owned(declared)
        envelope = Envelope.wrap(
            message,
            source=source or declared.context,
            key=key,
            cause=cause,
            metadata=self._with_trace(None),
        )
        return outbox.outbox_row(envelope, queue)

    def lifecycle(self, before: SagaRecord, after: SagaRecord) -> Sequence[Mapping[str, Any]]:
        """Return the rows of the outbox for what a change of a saga has to tell of its life."""
        cause = after.cause()
        return [
            self.prepare(message, key=after.id, cause=cause, source=SAGAS)
            for message in lifecycle_events(before, after)
        ]

    def _with_trace(self, metadata: dict[str, Any] | None) -> dict[str, Any]:
        """Return metadata with the active span, if there is one. What the caller says himself comes first."""
        return {**self.observers.carry(), **(metadata or {})}

    def _emit(self, message: Any, session: Session, *, key: str | None) -> Envelope:
        give = self.publish if type_of(message).kind is Kind.EVENT else self.send
        return give(message, session, key=key)

    def _publishable(self, message: Any, kind: Kind) -> MessageType:
        if isinstance(message, type):
            raise DefinitionError(f"{message.__qualname__} is the class of a message: make one")
        declared = type_of(message)
        if declared.kind is not kind:
            verb = "send" if declared.kind is Kind.COMMAND else "publish"
            raise DefinitionError(f"{declared.name!r} is a {declared.kind}: use Events.{verb}")
        handler = HANDLING.get()
        if handler is not None and declared not in handler.emits:
            raise DefinitionError(
                f"service {handler.service!r}, handler {handler.name!r}: it does not say that it emits "
                f"{declared.name!r}. Add emits=[{declared.cls.__name__}] to its decorator: from that the flow is drawn "
                "and checked"
            )
        return declared

    def _check_owned(self, declared: MessageType) -> None:
        if declared.context not in self.services:
            raise NotOwner(
                f"event {declared.name!r} belongs to service {declared.context!r}; this process has "
                f"{_names(self.services)}. Only its owner publishes an event; send a command to have it do something"
            )

    def _queue_of(self, declared: MessageType) -> str:
        """Return the queue of the service that receives a command."""
        if declared.context in self.services and not self._receives(declared):
            raise NoHandler(
                f"command {declared.name!r}: service {declared.context!r} is of this process and has no handler for "
                f"{declared.topic}: declare one with @{declared.context}.handles({declared.cls.__name__})"
            )
        return f"{declared.context}.commands"

    def _receives(self, declared: MessageType) -> bool:
        subscriptions = self.services[declared.context].subscriptions
        return any(declared.topic in s.handlers for s in subscriptions if s.is_for_commands)

    def _sender(self, declared: MessageType) -> str:
        handler = HANDLING.get()
        if handler is not None:
            return handler.service
        if len(self.services) == 1:
            return next(iter(self.services))
        raise DefinitionError(
            f"command {declared.name!r}: this process has {_names(self.services)}; say which of them sends it: source="
        )

    def _write(self, session: AnySession, envelope: Envelope, queue: str | None) -> None:
        own = own_session(session)
        connection = own.connection() if isinstance(own, Session) else own
        if connection.dialect.name != self.engine.dialect.name:
            raise ConfigurationError(
                f"the session is on {connection.dialect.name}, the outbox on {self.engine.dialect.name}"
            )
        outbox.write(connection, envelope, queue)

    def outbox_age(self) -> float:
        """Return for how many seconds the oldest unsent message has waited; 0 when there is none. For an alarm."""
        return outbox.age(self.engine)

    def outbox_unsent(self) -> int:
        """Return how many messages wait for a relay."""
        return outbox.unsent(self.engine)

    def outbox_unheard(self) -> Mapping[str, int]:
        """Return how many messages of each type were sent and reached nobody: no queue was bound to their type."""
        return outbox.unheard(self.engine)

    def resend(self, types: Iterable[str]) -> int:
        """Have messages sent once more that reached nobody, once there is somebody. Returns how many.

        They come after what was published since: the order of their keys is lost. `types`: their names.
        """
        return outbox.resend(self.engine, list(types))

    def purge(self, older: timedelta) -> int:
        """Forget what was sent, handled, or resolved, longer ago than that. Returns how many rows were deleted.

        Keep the inbox for longer than a message may be on its way: one that comes back later is handled again.
        """
        return outbox.purge(self.engine, older) + self._inbox.purge(older) + self._letters.purge(older)

    # -- consuming ----------------------------------------------------------------------------------------------

    def topology(self) -> Topology:
        """Return the queues that the services read, and what comes in each: every version of a type."""
        queues = (Queue(s.queue, () if s.is_for_commands else s.topics) for s in self.subscriptions)
        return Topology(self.exchange, tuple(queues))

    def apply_topology(
        self, *, delete: bool = False, others: Iterable[str] = (), discard: bool = False
    ) -> Sequence[str]:
        """Make what is missing of the topology at the broker; say what was made. Do it before the first message.

        Consumers also do it when they start. An event that is sent before its subscriber's queue is there is not kept
        for it. What is in a queue that has another name now (`was=`) is moved.

        `delete`: also take away what `topology_difference` tells: bindings, and queues that hold nothing. `others`:
        queues of services that this code does not declare, which go too. `discard`: with what they hold.
        Raises `BrokerUnavailable`, `StoreUnavailable`; `QueueMismatch` once all else is done, but before anything is
        taken away.
        """
        self._letters.follow()
        made = self._bindings.declare()
        if delete:
            made += self._bindings.remove(others=frozenset(others), discard=discard)
        return made

    def queue_mismatches(self) -> Mapping[str, str]:
        """Return what is wrong with those queues at the broker that are not what is declared. Nobody reads these.

        Raises `BrokerUnavailable`.
        """
        return self._bindings.mismatches()

    def topology_difference(self) -> Sequence[Difference]:
        """Return what is missing at the broker, and what was declared there once and no longer is.

        Raises `StoreUnavailable`.
        """
        return self._bindings.difference()

    def handle(self, call: Call) -> Outcome:
        """Handle a delivery in this process. For those who run consumers; it never raises."""
        return self._inbox.handle(call)

    def consumers(self, runner: Runner, queues: Iterable[str] | None = None) -> Consumers:
        """Return what reads these queues, or all of the services', and has `runner` run their handlers.

        Raises `ConfigurationError` for a queue that is none of theirs.
        """
        ours = {subscription.queue: subscription for subscription in self.subscriptions}
        wanted = list(ours) if queues is None else list(queues)
        if unknown := [queue for queue in wanted if queue not in ours]:
            raise ConfigurationError(f"there is no queue {unknown[0]!r}; there is: {_names(ours)}")
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
        """Take what the broker itself gave up, RabbitMQ past its delivery limit; return how many messages that was.

        What was not begun too often is sent to its queue again, the rest becomes dead letters. Consumers do this now
        and then. Raises `BrokerUnavailable`, `StoreUnavailable`.
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
        """Return dead letters, oldest first: by their ids; or the open ones, and with `resolved` also the others.

        Raises `NotAllowed` for an id that is not there.
        """
        if ids is not None:
            return self._letters.get(ids)
        return self._letters.select(
            queue=queue, type=type, key=key, correlation_id=correlation_id, resolved=resolved, limit=limit
        )

    def open_dead_letters(self) -> Mapping[str, int]:
        """Return how many dead letters of each queue wait for a person. The queue "" is for what nobody could take."""
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
        """Have messages handled once more, each by the one subscriber that failed. Returns those that are sent.

        Nothing is sent unless `dry_run=False`. `rate`: at most so many a second.
        Left out are those that are resolved, that are no envelope, or that are parked: these follow the first of their
        key by themselves. Raises `NotAllowed` without a reason.

        >>> events.replay(events.dead_letters(queue="inventory.reserve_stock"), reason="fixed in 1.2.3", dry_run=False)
        ... # doctest: +SKIP
        """
        return self._letters.replay(letters, reason=_reason(reason), actor=actor, rate=rate, dry_run=dry_run)

    def discard(
        self, letters: Iterable[EventDeadLetter], *, reason: str, actor: str | None = None
    ) -> Sequence[EventDeadLetter]:
        """Decide that messages will not be handled. Returns those that were open. Raises `NotAllowed` without a reason.

        In an ordered queue, what was parked behind them goes on.
        """
        return self._letters.discard(letters, reason=_reason(reason), actor=actor)


def _reason(reason: str) -> str:
    if not reason.strip():
        raise NotAllowed("say why: whoever looks at it later will want to know")
    return reason


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
