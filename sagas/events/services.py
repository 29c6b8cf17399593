"""Who handles what, and what comes of it: the declarations from which topology, graph and documents are made."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sagas.definition import Retry
from sagas.durations import seconds, whole_number
from sagas.errors import DefinitionError, DuplicateName
from sagas.events.cloudevents import Wire
from sagas.events.envelope import Envelope
from sagas.events.messages import Kind, MessageType, any_version, topic, type_of
from sagas.functions import finish, refuse_unfinished

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Handler", "HandlerContext", "Service", "Subscription"]

F = TypeVar("F", bound=Callable[..., Any])

#: The queue of a service that its commands come in.
COMMANDS = "commands"

_SERVICE = re.compile(r"[a-z][a-z0-9_]{0,99}")
_PURPOSE = re.compile(r"[A-Za-z0-9_-]{1,90}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerContext:
    """What a handler may ask about its message. A parameter annotated `HandlerContext` receives it."""

    envelope: Envelope
    subscription: str
    attempt: int  #: from 1
    session: Session = field(repr=False)  #: in the transaction of the inbox: do not commit it
    _publish: Callable[..., Envelope] = field(repr=False)

    @property
    def correlation_id(self) -> str:
        return self.envelope.correlation_id

    @property
    def idempotency_key(self) -> str:
        """The name of this handler's effect: the same however often the message is delivered."""
        return f"{self.subscription}:{self.envelope.event_id}"

    def emit(self, message: Any, *, key: str | None = None) -> Envelope:
        """Publish an event, or send a command, in the transaction of the handler and caused by its message.

        `key`: as in `Events.publish`; left out, that of the message being handled.
        """
        return self._publish(message, self.session, key=self.envelope.key if key is None else key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """One function of a service, with the messages it takes and those it may publish."""

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
        # What looks plain may return a coroutine: it is run, not dropped.
        refuse_unfinished(finish(self.function(**arguments)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A queue of one service, and the handlers of what comes in it.

    `retry`: when a handler fails, how often and how soon it is tried again before the message becomes a dead letter.
    `ordered`: a message that fails holds back the later ones of its key: they are parked behind its dead letter.
    `breaker`: after this many failures in a row the queue is left alone for `breaker_pause` seconds; None: never.
    """

    service: str
    name: str
    handlers: Mapping[str, Handler]  #: by topic
    retry: Retry
    ordered: bool = False
    breaker: int | None = None
    breaker_pause: float = 30.0
    was: tuple[str, ...] = ()  #: queues whose place it has taken

    @property
    def queue(self) -> str:
        return f"{self.service}.{self.name}"

    @property
    def topics(self) -> tuple[str, ...]:
        """What its queue is bound to: every version of each type that it asked for, by whatever name.

        A version that is too new for this code then comes all the same, and is kept as a dead letter; bound to the
        versions that are known here, it would be dropped by the broker.
        """
        handled = {declared for handler in self.handlers.values() for declared in handler.handles}
        return tuple(sorted(any_version(name) for declared in handled for name in declared.names))

    @property
    def is_for_commands(self) -> bool:
        return self.name == COMMANDS

    @property
    def compensates(self) -> bool:
        """Tell whether it undoes things: then no breaker may hold it back."""
        return any(handler.compensates for handler in self.handlers.values())


class Service:
    """One bounded context: it owns the events of its name, receives the commands of its name, and handles messages.

    `publishes`: what it publishes beside what its handlers emit. `was`: names that it had before. What is in the queues
    of those names, and their dead letters, are its own now. `wire`: what the messages that it publishes look like at
    the broker, if not as `Events(wire=)` says.

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
                f"service {name!r}: a name is of a-z, 0-9 and _, begins with a letter, and has 100 characters at most"
            )
        self.name = name
        self.publishes = tuple(type_of(cls) for cls in publishes)  #: beside what its handlers emit
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
        was: Iterable[str] = (),
    ) -> Callable[[F], F]:
        """Declare a handler of events. It has a queue of its own, named after the function or `name`.

        `emits`: what it may publish; anything else is refused. `compensates`: the events whose effect it undoes.
        `was`: names that it had before. What is in their queues, and their dead letters, are its own now.
        The rest is described at `Subscription`. The function takes the event and, if it asks, a `HandlerContext`.
        Raises `DefinitionError` for a command, or for an emitted event of another owner.
        """

        def declare(function: F) -> F:
            purpose = name or _name(function)
            where = f"service {self.name!r}, handler {purpose!r}"
            if not events:
                raise DefinitionError(f"{where}: name the events that it handles")
            if not _PURPOSE.fullmatch(purpose):
                raise DefinitionError(f"{where}: a name is of letters, digits, _ and -, 90 at most; give it one: name=")
            if breaker is not None:
                whole_number(breaker, f"{where}: breaker", DefinitionError, why="it is a number of failures,")
            pause = seconds(breaker_pause, f"{where}: breaker_pause", DefinitionError)
            if purpose == COMMANDS or purpose in self._subscriptions:
                raise DuplicateName(f"{where}: there is another queue of this name; give it a name of its own")
            handler = self._handler(function, purpose, events, emits, compensates, Kind.EVENT)
            self._subscriptions[purpose] = Subscription(
                service=self.name,
                name=purpose,
                handlers=_by_topic(handler),
                retry=retry or Retry(max_attempts=5),
                ordered=ordered,
                breaker=breaker,
                breaker_pause=pause,
                was=self._old_queues(purpose, was),
            )
            return function

        return declare

    def handles(
        self, command: type, *, emits: Iterable[type] = (), compensates: Iterable[type] = ()
    ) -> Callable[[F], F]:
        """Declare the handler of a command of this service. All of them share the queue `<service>.commands`.

        Raises `DefinitionError` for an event or a command of another service, `DuplicateName` for a second handler.
        """

        def declare(function: F) -> F:
            declared = type_of(command)
            name = _name(function)
            where = f"service {self.name!r}, handler {name!r}"
            if declared.kind is Kind.COMMAND and declared.context != self.name:
                raise DefinitionError(
                    f"{where}: command {declared.name!r} is received by {declared.context!r}, not by {self.name!r}"
                )
            handler = self._handler(function, name, (command,), emits, compensates, Kind.COMMAND)
            for each in _by_topic(handler):
                if each in self._commands:
                    raise DuplicateName(
                        f"{where}: command {declared.name!r} already has a handler, {self._commands[each].name!r}. "
                        "A command has one; what many react to is an event"
                    )
                self._commands[each] = handler
            return function

        return declare

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
                what = "a command: handle it with @service.handles"
                if declared.kind is Kind.EVENT:
                    what = "an event: handle it with @service.on"
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
                "owner publishes an event; send a command to have another service do something"
            )


def _by_topic(handler: Handler) -> dict[str, Handler]:
    from_old = {topic(name, version) for t in handler.handles for name in t.names for version in t.versions}
    return dict.fromkeys(sorted(from_old), handler)


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", function))


def parameters(function: Callable[..., Any], where: str, context: type) -> tuple[str, str | None]:
    """Return the names of the parameters that take the message and, if there is one, that of the type `context`."""
    if not (inspect.isfunction(function) or inspect.ismethod(function)) or inspect.iscoroutinefunction(function):
        raise DefinitionError(f"{where}: handlers are plain functions, neither async nor wrapped in another object")
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise DefinitionError(f"{where}: an annotation cannot be resolved: {error}") from error
    taken = inspect.signature(function).parameters
    if any(p.kind not in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in taken.values()):
        raise DefinitionError(f"{where}: its parameters are given by name, so it cannot have *args, ** or /")
    names = list(taken)
    contexts = [name for name in names if hints.get(name) is context]
    messages = [name for name in names if name not in contexts]
    if len(messages) != 1 or len(contexts) > 1:
        raise DefinitionError(
            f"{where}: it must take its message and, if it wants to, one {context.__name__}; not {names}"
        )
    return messages[0], contexts[0] if contexts else None
