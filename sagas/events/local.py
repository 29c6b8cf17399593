"""The in-process bus: events and commands within one process, tied to the caller's transaction."""

from __future__ import annotations

import logging
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from sagas.endings import ends_process
from sagas.errors import DefinitionError, DuplicateName, EventError, HandlersFailed, NoHandler
from sagas.events.messages import Kind, MessageType, type_of
from sagas.events.services import parameters
from sagas.stores.commits import Commits
from sagas.stores.sessions import AnySession, own_session
from sagas.text import describe

__all__ = ["LocalBus"]

F = TypeVar("F", bound=Callable[..., Any])

_log = logging.getLogger(__name__)

#: When a handler of an event is called.
When = Literal["inline", "before_commit", "after_commit"]


@dataclass(frozen=True, slots=True)
class _Listener:
    name: str
    call: Callable[[Any, Session | None], Any]
    takes_session: bool


@dataclass(slots=True)
class _Listeners:
    """The handlers of one event class."""

    inline: list[_Listener] = field(default_factory=list)
    before_commit: list[_Listener] = field(default_factory=list)
    after_commit: list[_Listener] = field(default_factory=list)


class LocalBus:
    """Calls handlers in this process: in the caller's thread, one after the other, in the order of subscription.

    =============  ==================================================  ==============================================
    `when`         called                                              if a handler fails
    =============  ==================================================  ==============================================
    inline         by `publish`, at once                               the others are still called, then `publish`
                                                                       raises `HandlersFailed`
    before_commit  when the session's outermost transaction commits,   nothing is committed; the commit raises
                   inside it                                           `HandlersFailed`
    after_commit   after that commit                                   it is logged; the caller is not affected
    =============  ==================================================  ==============================================

    If the transaction or savepoint is rolled back, `before_commit` and `after_commit` handlers are not called.
    Without a session there is no commit to wait for: all handlers are called at once, in the order of the table.

    Nothing is stored: publish what must survive a crash through the outbox (`Events.publish`).
    Subscribe while the program starts; publish from any thread.

    >>> from sagas.events import command, event
    >>> @event("orders.order.placed")
    ... class OrderPlaced:
    ...     order_id: str
    >>> @command("stock.reserve")
    ... class Reserve:
    ...     sku: str
    >>> bus = LocalBus()
    >>> @bus.subscribe(OrderPlaced, when="after_commit")
    ... def thank(event: OrderPlaced) -> None:
    ...     print("thanks for", event.order_id)
    >>> @bus.handles(Reserve)
    ... def reserve(command: Reserve) -> str:
    ...     return f"{command.sku} is reserved"
    >>> bus.publish(OrderPlaced(order_id="o-1"))
    thanks for o-1
    >>> bus.send(Reserve(sku="tea"))
    'tea is reserved'
    """

    def __init__(self) -> None:
        self._listeners: dict[type, _Listeners] = {}
        self._receivers: dict[type, _Listener] = {}

    # -- subscribing ----------------------------------------------------------------------------------------------

    @typing.overload
    def subscribe(self, event: type, function: F, *, when: When = "inline") -> F: ...

    @typing.overload
    def subscribe(self, event: type, *, when: When = "inline") -> Callable[[F], F]: ...

    def subscribe(self, event: type, function: Any = None, *, when: When = "inline") -> Any:
        """Call a function for each event of a class. Without `function`, a decorator.

        The function takes the event. Unless it is called after the commit, it may also take a `Session`: the
        publisher's. Raises `DefinitionError` if the class is not an event, or if the function has other parameters.
        """
        if function is None:
            return lambda function: self.subscribe(event, function, when=when)
        if when not in get_args(When):
            raise DefinitionError(f"when={when!r} must be one of {', '.join(get_args(When))}")
        declared = _declared(event, Kind.EVENT)
        listener = _listener(function, declared)
        if when == "after_commit" and listener.takes_session:
            raise DefinitionError(
                f"{listener.name}: after the commit, the publisher's session is no longer usable. Open a new session"
            )
        getattr(self._listeners.setdefault(event, _Listeners()), when).append(listener)
        return function

    @typing.overload
    def handles(self, command: type, function: F) -> F: ...

    @typing.overload
    def handles(self, command: type) -> Callable[[F], F]: ...

    def handles(self, command: type, function: Any = None) -> Any:
        """Register the handler of a command. Without `function`, a decorator.

        The function takes the command and may take a `Session`: the sender's. Raises `DuplicateName` for a second
        handler, and `DefinitionError` if the class is not a command, or if the function has other parameters.
        """
        if function is None:
            return lambda function: self.handles(command, function)
        declared = _declared(command, Kind.COMMAND)
        listener = _listener(function, declared)
        if command in self._receivers:
            raise DuplicateName(
                f"{listener.name}: command {declared.name!r} already has a handler, {self._receivers[command].name}. "
                "A command has one handler; use an event if several need to react"
            )
        self._receivers[command] = listener
        return function

    # -- publishing -----------------------------------------------------------------------------------------------

    def publish(self, event: Any, session: AnySession | None = None) -> None:
        """Call the handlers of an event. There may be none.

        `session`: the transaction that the event belongs to. For a connection, handlers get a session on it.
        Raises `HandlersFailed` if inline handlers failed (without a session, also those of `before_commit`), and
        `DefinitionError` if the object is not an event.
        """
        listeners = self._listeners.get(type(event))
        if listeners is None:
            _declared(type(event), Kind.EVENT)
            return
        if session is None:
            _call(event, None, [*listeners.inline, *listeners.before_commit])
            _call_and_log(event, listeners.after_commit)
            return
        own = own_session(session)
        if listeners.before_commit or listeners.after_commit:
            commits = Commits.of(own)
            if listeners.before_commit:
                commits.before(lambda: _call(event, own, listeners.before_commit))
            if listeners.after_commit:
                commits.after(lambda: _call_and_log(event, listeners.after_commit))
        _call(event, own, listeners.inline)

    def send(self, command: Any, session: AnySession | None = None) -> Any:
        """Call the one handler of a command and return its result. Its exceptions propagate.

        Raises `NoHandler` if there is none, and `DefinitionError` if the object is not a command.
        """
        receiver = self._receivers.get(type(command))
        if receiver is None:
            declared = _declared(type(command), Kind.COMMAND)
            known = ", ".join(sorted(type_of(cls).name for cls in self._receivers)) or "none"
            raise NoHandler(f"command {declared.name!r} has no handler on this bus. It has handlers for: {known}")
        with _session_on(None if session is None else own_session(session)) as own:
            return receiver.call(command, own)


@contextmanager
def _session_on(given: Session | Connection | None) -> Iterator[Session | None]:
    """Yield a session in the given transaction."""
    if not isinstance(given, Connection):
        yield given
        return
    if not given.in_transaction():
        given.begin()  # otherwise the session would begin and end the transaction
    with Session(given, join_transaction_mode="rollback_only") as session:
        yield session
        session.commit()  # writes what it holds to the connection; the owner ends the transaction


def _call(event: Any, given: Session | Connection | None, listeners: Sequence[_Listener]) -> None:
    failures = []
    for listener in listeners:
        try:
            with _session_on(given if listener.takes_session else None) as session:
                listener.call(event, session)
        except RecursionError:
            raise  # events that answer each other: one such error says more than nested groups of them
        except BaseException as error:
            if ends_process(error):
                raise
            failures.append((listener.name, _as_failure(error)))
    if failures:
        for name, failure in failures:
            failure.add_note(f"raised by {name}, a handler of event {type_of(event).name!r}")
        summary = "; ".join(f"{name}: {type(failure).__name__}: {failure}" for name, failure in failures)
        raise HandlersFailed(
            f"event {type_of(event).name!r}: {len(failures)} of {len(listeners)} handlers failed: {summary}",
            [failure for _, failure in failures],
        )


def _call_and_log(event: Any, listeners: Sequence[_Listener]) -> None:
    for listener in listeners:
        try:
            listener.call(event, None)
        except BaseException as error:
            if ends_process(error):
                raise
            _log.exception("%s, a handler of event %r after the commit, failed", listener.name, type_of(event).name)


def _as_failure(error: BaseException) -> Exception:
    """Return an exception that an exception group can hold."""
    if isinstance(error, Exception):
        return error
    failure = EventError(f"{type(error).__name__}: {describe(error)}")
    failure.__cause__ = error
    return failure


def _declared(cls: type, kind: Kind) -> MessageType:
    declared = type_of(cls)
    if declared.kind is not kind:
        what = "an event. Subscribe to or publish it" if declared.kind is Kind.EVENT else "a command. Handle or send it"
        raise DefinitionError(f"{declared.name!r} is {what}")
    return declared


def _listener(function: Callable[..., Any], declared: MessageType) -> _Listener:
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"
    message, session = parameters(function, f"{name}, a handler of {declared.kind} {declared.name!r}", Session)
    if session is None:
        return _Listener(name, lambda given, _: function(**{message: given}), takes_session=False)

    def call(given: Any, publishers: Session | None) -> Any:
        if publishers is None:
            raise EventError(f"{name} takes a session, but {declared.name!r} came without one. Pass session=")
        return function(**{message: given, session: publishers})

    return _Listener(name, call, takes_session=True)
