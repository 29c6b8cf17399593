"""Services and handlers: the declarations from which topology, graph and documents are derived."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sagas.definition import Saga
from sagas.durations import seconds, whole_number
from sagas.errors import DefinitionError, DuplicateName
from sagas.events.cloudevents import Wire
from sagas.events.envelope import Envelope
from sagas.events.messages import Kind, MessageType, any_version, topic, type_of
from sagas.events.waits import event_waits, queue_of
from sagas.functions import finish, refuse_unfinished
from sagas.retries import Retry

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Handler", "HandlerContext", "Service", "Subscription"]

F = TypeVar("F", bound=Callable[..., Any])

#: The name of a service's command queue.
COMMANDS = "commands"

_SERVICE = re.compile(r"[a-z][a-z0-9_]{0,99}")
_PURPOSE = re.compile(r"[A-Za-z0-9_-]{1,90}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerContext:
    """A handler's view of its message and delivery. A parameter annotated `HandlerContext` receives it."""

    envelope: Envelope
    subscription: str
    attempt: int  #: from 1
    session: Session = field(repr=False)  #: in the inbox's transaction: do not commit it
    _publish: Callable[..., Envelope] = field(repr=False)
    _signal: Callable[..., None] = field(repr=False)

    @property
    def correlation_id(self) -> str:
        return self.envelope.correlation_id

    @property
    def idempotency_key(self) -> str:
        """Identifies this handler's effect: the same for every delivery of the message."""
        return f"{self.subscription}:{self.envelope.event_id}"

    def emit(self, message: Any, *, key: str | None = None) -> Envelope:
        """Publish an event or send a command in the handler's transaction, with the handled message as its cause.

        `key`: as in `Events.publish`; by default the key of the message being handled.
        """
        return self._publish(message, self.session, key=self.envelope.key if key is None else key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """One function of a service, with the messages it handles and those it may publish."""

    service: str
    name: str
    handles: tuple[MessageType, ...]
    emits: tuple[MessageType, ...]
    compensates: tuple[MessageType, ...]  #: events whose effect this handler undoes
    function: Callable[..., Any] = field(repr=False)
    message_parameter: str
    context_parameter: str | None

    def __call__(self, message: Any, context: HandlerContext) -> None:
        arguments = {self.message_parameter: message}
        if self.context_parameter is not None:
            arguments[self.context_parameter] = context
        # A function that looks synchronous may return a coroutine: run it rather than drop it.
        refuse_unfinished(finish(self.function(**arguments)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """One queue of a service, with the handlers of its messages.

    `retry`: how often and how soon a failed handler is retried before its message becomes a dead letter.
    `ordered`: a dead-lettered message holds back later messages with its key: they are parked behind its dead letter.
    `breaker`: after this many consecutive failures the queue is paused for `breaker_pause` seconds; None: never.
    `batch_size`: how many waiting messages may share a transaction. The handler is still called for each message. If
    anything in a batch fails, its transaction is rolled back, and each of its messages is handled alone.
    """

    service: str
    name: str
    handlers: Mapping[str, Handler]  #: by topic
    retry: Retry
    ordered: bool = False
    breaker: int | None = None
    breaker_pause: float = 30.0
    batch_size: int = 1
    was: tuple[str, ...] = ()  #: the queues that it replaces

    @property
    def queue(self) -> str:
        return f"{self.service}.{self.name}"

    @property
    def topics(self) -> tuple[str, ...]:
        """The bindings of its queue: every version of each handled type, under the current and former names.

        A version that is too new for this code therefore arrives and becomes a dead letter. With bindings for the known
        versions only, the broker would drop it.
        """
        handled = {declared for handler in self.handlers.values() for declared in handler.handles}
        return tuple(sorted(any_version(name) for declared in handled for name in declared.names))

    @property
    def is_for_commands(self) -> bool:
        return self.name == COMMANDS

    @property
    def compensates(self) -> bool:
        """Whether it compensates events: then no circuit breaker may pause it."""
        return any(handler.compensates for handler in self.handlers.values())


class Service:
    """One bounded context: it owns the events and receives the commands of its name, and handles messages.

    `publishes`: what it publishes besides what its handlers emit. `was`: former names; the messages in their queues and
    their dead letters now belong to this service. `wire`: the broker format of the messages that it publishes, if it
    differs from `Events(wire=)`.

    >>> from sagas.events import Service, event
    >>> @event("orders.order.placed")
    ... class OrderPlaced:
    ...     order_id: str
    >>> inventory = Service("inventory")
    >>> @inventory.on(OrderPlaced)
    ... def reserve_stock(event: OrderPlaced) -> None:
    ...     print("reserving for", event.order_id)
    >>> [subscription.queue for subscription in inventory.subscriptions]
    ['inventory.reserve_stock']
    """

    def __init__(
        self,
        name: str,
        *,
        publishes: Iterable[type] = (),
        was: Iterable[str] = (),
        wire: Wire | Literal["envelope", "structured", "binary"] | None = None,
    ) -> None:
        self.was = tuple(was)
        self.wire = None if wire is None else Wire.of(wire)
        if not _SERVICE.fullmatch(name):
            raise DefinitionError(
                f"service {name!r}: a name consists of a-z, 0-9 and _, starts with a letter, and has at most 100 "
                "characters"
            )
        self.name = name
        self.publishes = tuple(type_of(cls) for cls in publishes)  #: besides what its handlers emit
        for declared in self.publishes:
            self._check_owned(declared, "publishes")
        self._subscriptions: dict[str, Subscription] = {}
        self._commands: dict[str, Handler] = {}
        self._command_retry = Retry(max_attempts=3)

    def __repr__(self) -> str:
        return f"<Service {self.name}: {', '.join(s.name for s in self.subscriptions)}>"

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        own = tuple(self._subscriptions.values())
        if not self._commands:
            return own
        return (
            *own,
            Subscription(
                service=self.name,
                name=COMMANDS,
                handlers=dict(self._commands),
                retry=self._command_retry,
                was=self._old_queues(COMMANDS, ()),
            ),
        )

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return tuple({id(h): h for s in self.subscriptions for h in s.handlers.values()}.values())

    def on(
        self,
        *events: type,
        emits: Iterable[type] = (),
        compensates: Iterable[type] = (),
        name: str | None = None,
        retry: Retry | None = None,
        ordered: bool = False,
        breaker: int | None = None,
        breaker_pause: float | timedelta = 30.0,
        batch_size: int = 1,
        was: Iterable[str] = (),
    ) -> Callable[[F], F]:
        """Declare a handler of events. It gets its own queue, named after the function or `name`.

        `emits`: the messages it may publish; publishing others raises an error. `compensates`: the events whose effect
        it undoes. `was`: former names; the messages in their queues and their dead letters now belong to this handler.
        `Subscription` describes the other parameters. The function takes the event and, optionally, a `HandlerContext`.
        Raises `DefinitionError` for a command, or for an emitted event that another service owns.
        """

        def declare(function: F) -> F:
            purpose = name or _name(function)
            where = f"service {self.name!r}, handler {purpose!r}"
            if not events:
                raise DefinitionError(f"{where}: it handles no events. Pass their classes to on()")
            if not _PURPOSE.fullmatch(purpose):
                raise DefinitionError(
                    f"{where}: a name consists of letters, digits, _ and -, at most 90 characters. Pass one with name="
                )
            if breaker is not None:
                whole_number(breaker, f"{where}: breaker", DefinitionError, why="it is a number of failures,")
            pause = seconds(breaker_pause, f"{where}: breaker_pause", DefinitionError)
            whole_number(batch_size, f"{where}: batch_size", DefinitionError, why="it is a number of messages,")
            if purpose == COMMANDS or purpose in self._subscriptions:
                raise DuplicateName(f"{where}: this service has another queue with this name. Pass name= to rename it")
            handler = self._handler(function, purpose, events, emits, compensates, Kind.EVENT)
            self._subscriptions[purpose] = Subscription(
                service=self.name,
                name=purpose,
                handlers=_by_topic(handler),
                retry=retry or Retry(max_attempts=5),
                ordered=ordered,
                breaker=breaker,
                breaker_pause=pause,
                batch_size=batch_size,
                was=self._old_queues(purpose, was),
            )
            return function

        return declare

    def handles(
        self, command: type, *, emits: Iterable[type] = (), compensates: Iterable[type] = ()
    ) -> Callable[[F], F]:
        """Declare the handler of one of this service's commands. All share the queue `<service>.commands`.

        Raises `DefinitionError` for an event or another service's command, and `DuplicateName` for a second handler.
        """

        def declare(function: F) -> F:
            declared = type_of(command)
            name = _name(function)
            where = f"service {self.name!r}, handler {name!r}"
            if declared.kind is Kind.COMMAND and declared.context != self.name:
                raise DefinitionError(
                    f"{where}: command {declared.name!r} goes to service {declared.context!r}, not to {self.name!r}"
                )
            handler = self._handler(function, name, (command,), emits, compensates, Kind.COMMAND)
            for each in _by_topic(handler):
                if each in self._commands:
                    raise DuplicateName(
                        f"{where}: command {declared.name!r} already has a handler, {self._commands[each].name!r}. "
                        "A command has one handler; use an event if several need to react"
                    )
                self._commands[each] = handler
            return function

        return declare

    def forward_to(self, *sagas: Saga) -> None:
        """Forward events to the sagas that wait for them: `Wait(on=, key=)`. Name every version that is in flight.

        Each wait has its own queue, named after the saga and the wait. Raises `DefinitionError` for sagas that wait for
        no event.
        """
        found = event_waits(sagas)
        if not found:
            raise DefinitionError(
                f"service {self.name!r}: {', '.join(repr(saga.name) for saga in sagas) or 'no saga'} waits for no "
                "event. Give a Wait on= and key="
            )
        for (saga, wait), events in found.items():
            self.on(*events, name=queue_of(saga, wait))(_forwarding(saga, wait))

    def _old_queues(self, name: str, was: Iterable[str]) -> tuple[str, ...]:
        named = {f"{service}.{each}" for service in (self.name, *self.was) for each in (name, *was)}
        return tuple(sorted(named - {f"{self.name}.{name}"}))

    def _handler(
        self,
        function: Callable[..., Any],
        name: str,
        messages: Iterable[type],
        emits: Iterable[type],
        compensates: Iterable[type],
        kind: Kind,
    ) -> Handler:
        where = f"service {self.name!r}, handler {name!r}"
        handled, emitted = tuple(map(type_of, messages)), tuple(map(type_of, emits))
        for declared in handled:
            if declared.kind is not kind:
                what = "a command. Handle it with @service.handles"
                if declared.kind is Kind.EVENT:
                    what = "an event. Handle it with @service.on"
                raise DefinitionError(f"{where}: {declared.name!r} is {what}")
        for declared in emitted:
            self._check_owned(declared, f"handler {name!r} emits")
        message, context = parameters(function, where, HandlerContext)
        return Handler(
            service=self.name,
            name=name,
            handles=handled,
            emits=emitted,
            compensates=tuple(map(type_of, compensates)),
            function=function,
            message_parameter=message,
            context_parameter=context,
        )

    def _check_owned(self, declared: MessageType, what: str) -> None:
        if declared.kind is Kind.EVENT and declared.context != self.name:
            raise DefinitionError(
                f"service {self.name!r}, {what}: event {declared.name!r} belongs to {declared.context!r}. Only its "
                "owner publishes an event. Send a command to have another service act"
            )


def _forwarding(saga: str, wait: str) -> Callable[..., None]:
    def forward(event: Any, context: HandlerContext) -> None:
        context._signal(saga, wait, event, context.envelope, context.session)  # noqa: SLF001

    return forward


def _by_topic(handler: Handler) -> dict[str, Handler]:
    from_old = {topic(name, version) for t in handler.handles for name in t.names for version in t.versions}
    return dict.fromkeys(sorted(from_old), handler)


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", function))


def parameters(function: Callable[..., Any], where: str, context: type) -> tuple[str, str | None]:
    """Return the name of the parameter for the message, and that of the parameter with type `context`, if any."""
    if not (inspect.isfunction(function) or inspect.ismethod(function)) or inspect.iscoroutinefunction(function):
        raise DefinitionError(f"{where}: a handler must be a plain function, neither async nor a callable object")
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise DefinitionError(f"{where}: an annotation cannot be resolved: {error}") from error
    taken = inspect.signature(function).parameters
    if any(p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in taken.values()):
        raise DefinitionError(f"{where}: arguments are passed by name, so the function cannot have *args, ** or /")
    names = list(taken)
    contexts = [name for name in names if hints.get(name) is context]
    messages = [name for name in names if name not in contexts]
    if len(messages) != 1 or len(contexts) > 1:
        raise DefinitionError(
            f"{where}: it must take one message and, optionally, one {context.__name__}, but takes {names}"
        )
    return messages[0], contexts[0] if contexts else None
