"""Choreography: the flow of messages between services, assembled from declarations, checked, and observed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Engine, func, select

from sagas.events.messages import Kind, MessageType
from sagas.events.services import COMMANDS, Handler, Service
from sagas.stores import schema
from sagas.stores.engines import reading

__all__ = ["Difference", "Graph", "Heard", "Problem", "compared", "graph", "observed", "problems"]

#: A flow through more services than this is hard to follow.
_MANY_SERVICES = 5


@dataclass(frozen=True, slots=True)
class Graph:
    """Which services handle and emit which messages, as declared. Message names have no versions."""

    services: tuple[str, ...]
    handlers: tuple[Handler, ...]
    published: Mapping[str, tuple[MessageType, ...]]  #: per service, what it publishes outside of handlers
    messages: Mapping[str, MessageType]  #: by name; the newest version that is declared

    def emitted(self, name: str) -> bool:
        """Return whether any service here emits or publishes this message."""
        return any(declared.name == name for declared in self.sent())

    def handlers_of(self, name: str) -> tuple[Handler, ...]:
        return tuple(handler for handler in self.handlers if name in _names(handler.handles))

    def emitters_of(self, name: str) -> tuple[Handler, ...]:
        return tuple(handler for handler in self.handlers if name in _names(handler.emits))

    def next(self, name: str, *, but_compensations: bool = False) -> tuple[str, ...]:
        """Return the messages that handlers of this message may emit."""
        handlers = (h for h in self.handlers_of(name) if not (but_compensations and h.compensates))
        return tuple(dict.fromkeys(emitted for handler in handlers for emitted in _names(handler.emits)))

    def sent(self) -> Iterator[MessageType]:
        """Yield every message that is published or emitted here."""
        for declared in self.published.values():
            yield from declared
        for handler in self.handlers:
            yield from handler.emits


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding about a choreography."""

    level: Literal["problem", "advice"]  #: a problem is an error in the declarations; advice may not apply
    kind: Literal["cycle", "unhandled", "unemitted", "unread version", "uncompensated", "long"]
    text: str
    path: tuple[str, ...] = ()  #: the messages it concerns, in order


def graph(services: Iterable[Service]) -> Graph:
    """Assemble the graph from services. You can leave out services that live elsewhere: nothing is said about them."""
    services = tuple(services)
    handlers = tuple(handler for service in services for handler in service.handlers)
    messages: dict[str, MessageType] = {}
    declared = [*(d for s in services for d in s.publishes), *(d for h in handlers for d in (*h.handles, *h.emits))]
    for one in declared:
        known = messages.get(one.name)
        if known is None or one.version > known.version:
            messages[one.name] = one
    return Graph(
        services=tuple(service.name for service in services),
        handlers=handlers,
        published={service.name: service.publishes for service in services if service.publishes},
        messages=messages,
    )


# -- what is wrong ------------------------------------------------------------------------------------------------


def problems(graph: Graph) -> list[Problem]:
    """Return what is wrong, or may be, in a choreography. Only the services in the graph are judged.

    ===============  =========  ================================================================================
    kind             level      meaning
    ===============  =========  ================================================================================
    cycle            problem    messages lead to each other: only a handler's own logic ends the cycle
    unhandled        problem    nobody handles a failure event, or a command whose service is here
    unhandled        advice     nobody handles an event; there may be subscribers elsewhere
    unemitted        problem    a handler expects an event that its owner, a service here, does not emit
    unemitted        advice     the same for a command; code outside handlers may send it
    unread version   problem    an event is emitted in a version that one of its handlers cannot read
    uncompensated    problem    a failure after an event does not reach the handler that compensates that event
    uncompensated    advice     a failure may follow an event, and no handler declares that it compensates it
    long             advice     a flow passes through more than five services: a saga would be easier to follow
    ===============  =========  ================================================================================
    """
    checks: tuple[Callable[[Graph], Iterator[Problem]], ...] = (
        _cycles,
        _unhandled,
        _unemitted,
        _unread,
        _uncompensated,
        _long,
    )
    found = [problem for check in checks for problem in check(graph)]
    return sorted(found, key=lambda problem: problem.level != "problem")  # stable: the rest stays in the order above


def _cycles(graph: Graph) -> Iterator[Problem]:
    reported: set[frozenset[str]] = set()
    for name in sorted(graph.messages):
        path = _way(graph.next, name, name)
        if path is not None and frozenset(path) not in reported:
            reported.add(frozenset(path))
            yield Problem("problem", "cycle", f"messages lead to each other in a cycle: {_arrows(path)}", tuple(path))


def _unhandled(graph: Graph) -> Iterator[Problem]:
    for name, declared in sorted(graph.messages.items()):
        if graph.handlers_of(name) or not graph.emitted(name):
            continue
        if declared.failure:
            yield Problem("problem", "unhandled", f"no service handles the failure event {name}", (name,))
        elif declared.kind is Kind.EVENT:
            yield Problem("advice", "unhandled", f"no service here handles event {name}", (name,))
        elif declared.context in graph.services:
            yield Problem("problem", "unhandled", f"service {declared.context} has no handler for {name}", (name,))


def _unemitted(graph: Graph) -> Iterator[Problem]:
    for name, declared in sorted(graph.messages.items()):
        if graph.emitted(name):
            continue
        handlers = ", ".join(_label(handler) for handler in graph.handlers_of(name))
        if declared.kind is Kind.COMMAND:
            yield Problem(
                "advice", "unemitted", f"no service here declares that it sends {name}, handled by {handlers}", (name,)
            )
        elif declared.context in graph.services:
            text = (
                f"service {declared.context} does not declare that it emits {name}, handled by {handlers}: add it to "
                "publishes=[...]"
            )
            yield Problem("problem", "unemitted", text, (name,))


def _unread(graph: Graph) -> Iterator[Problem]:
    sent = {(declared.name, declared.version) for declared in graph.sent()}
    for handler in graph.handlers:
        readable: dict[str, set[int]] = {}
        for declared in handler.handles:
            readable.setdefault(declared.name, set()).update(declared.versions)
        for name, version in sorted(sent):
            if name in readable and version not in readable[name]:
                known = ", ".join(map(str, sorted(readable[name])))
                text = f"{name} is emitted in version {version}; {_label(handler)} reads only {known}"
                yield Problem("problem", "unread version", text, (name,))


def _uncompensated(graph: Graph) -> Iterator[Problem]:
    forward = lambda name: () if graph.messages[name].failure else graph.next(name, but_compensations=True)  # noqa: E731
    for name, declared in sorted(graph.messages.items()):
        undoing = [handler for handler in graph.handlers if name in _names(handler.compensates)]
        backward = any(handler.compensates for handler in graph.emitters_of(name))
        if declared.kind is not Kind.EVENT or declared.failure or not graph.emitted(name) or backward:
            continue
        for failure in _reached(forward, name):
            if not graph.messages[failure].failure:
                continue
            path = _way(forward, name, failure)
            assert path is not None
            if not undoing:
                text = (
                    f"{failure} may follow {name} ({_arrows(path)}), and no handler declares that it compensates {name}"
                )
                yield Problem("advice", "uncompensated", text, tuple(path))
                break
            reached = {failure, *_reached(graph.next, failure)}
            for handler in undoing:
                if reached.isdisjoint(_names(handler.handles)):
                    text = f"after {_arrows(path)}, {_label(handler)} must compensate {name}, but no message reaches it"
                    yield Problem("problem", "uncompensated", text, tuple(path))


def _long(graph: Graph) -> Iterator[Problem]:
    for name, declared in sorted(graph.messages.items()):
        if graph.emitters_of(name):
            continue  # a flow does not start here
        through = {declared.context} | {
            handler.service for message in (name, *_reached(graph.next, name)) for handler in graph.handlers_of(message)
        }
        if len(through) > _MANY_SERVICES:
            text = (
                f"the flow that starts with {name} passes through {len(through)} services "
                f"({', '.join(sorted(through))}). Consider a saga: it shows in one place what comes next and how far "
                "the flow has come"
            )
            yield Problem("advice", "long", text, (name,))


def _reached(next_: Callable[[str], Iterable[str]], start: str) -> list[str]:
    """Return everything a message leads to, nearest first. It includes the message itself only in a cycle."""
    found: dict[str, None] = {}
    waiting = deque([start])
    while waiting:
        for name in next_(waiting.popleft()):
            if name not in found:
                found[name] = None
                waiting.append(name)
    return list(found)


def _way(next_: Callable[[str], Iterable[str]], start: str, end: str) -> list[str] | None:
    """Return the shortest path of at least one step from one message to another."""
    before: dict[str, str] = {}
    waiting = deque([start])
    while waiting:
        name = waiting.popleft()
        for following in next_(name):
            if following not in before:
                before[following] = name
                waiting.append(following)
    if end not in before:
        return None
    way = [end, before[end]]
    while way[-1] != start:
        way.append(before[way[-1]])
    return way[::-1]


# -- what was observed --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Heard:
    """A message arrived in a queue and, if `emits` is set, its service emitted another message because of it."""

    message: str
    queue: str
    emits: str | None = None

    def __str__(self) -> str:
        return f"{self.message} -> {self.queue}" + (f" -> {self.emits}" if self.emits else "")


@dataclass(frozen=True, slots=True)
class Difference:
    """The differences between what was declared and what was observed."""

    undeclared: tuple[Heard, ...]  #: observed, but not declared: another deployment, or an old one
    unseen: tuple[Heard, ...]  #: declared, but not observed as far back as the tables go


def observed(engine: Engine) -> Mapping[Heard, int]:
    """Return what really happened, and how often, as far back as this database's outbox and inbox go.

    The causation ids connect a message with those it led to. If two queues of one service handle the same message, the
    tables cannot tell which of them emitted the next one: it is then attributed to both.
    Reads both tables in full. Raises `StoreUnavailable`.
    """
    inbox, outbox = schema.inbox.c, schema.outbox.c
    heard = select(inbox.type, inbox.queue, func.count()).group_by(inbox.type, inbox.queue)
    which = (inbox.type, inbox.queue, outbox.source, outbox.type)
    led = select(*which, func.count()).join(schema.outbox, outbox.causation_id == inbox.event_id).group_by(*which)
    with reading(engine) as connection:
        seen = {Heard(message, queue): count for message, queue, count in connection.execute(heard)}
        for message, queue, source, emitted, count in connection.execute(led):
            if queue.partition(".")[0] == source:
                seen[Heard(message, queue, emitted)] = count
    return seen


def compared(graph: Graph, seen: Iterable[Heard]) -> Difference:
    """Compare the declarations with the observations, for the services in the graph."""
    declared = set()
    for handler in graph.handlers:
        for message in handler.handles:
            queue = f"{handler.service}.{COMMANDS if message.kind is Kind.COMMAND else handler.name}"
            declared.add(Heard(message.name, queue))
            declared.update(Heard(message.name, queue, emitted.name) for emitted in handler.emits)
    seen = set(seen)
    # What one of two handlers of a message emits is attributed to both: it counts as declared if either declares it.
    allowed = {(one.message, one.queue.partition(".")[0], one.emits) for one in declared if one.emits}
    undeclared = {
        one
        for one in seen - declared
        if not (one.emits and (one.message, one.queue.partition(".")[0], one.emits) in allowed)
    }
    return Difference(undeclared=tuple(sorted(undeclared, key=str)), unseen=tuple(sorted(declared - seen, key=str)))


def _names(messages: Iterable[MessageType]) -> tuple[str, ...]:
    return tuple(message.name for message in messages)


def _label(handler: Handler) -> str:
    return f"{handler.service}.{handler.name}"


def _arrows(names: Iterable[str]) -> str:
    return " -> ".join(names)
