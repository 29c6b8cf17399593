"""Trace one flow by its correlation id or a business key: messages, handlers, dead letters and sagas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Column, Connection, Engine, Table, select

from sagas.checkpoints import StepStatus, step_name
from sagas.nesting import DEEPEST
from sagas.stores import schema
from sagas.stores.engines import reading
from sagas.text import is_clean

__all__ = ["Entry", "trace", "walk"]

_AT_ONCE = 500

#: How many entries may nest in the JSON form, where each entry is an object in a list.
_DEEPEST = DEEPEST // 2 - 2


@dataclass(slots=True)
class Entry:
    """Something that happened, and what it led to.

    ==============  =====================================================  ==========================================
    `kind`          `who`                                                  `what`
    ==============  =====================================================  ==========================================
    message         the service that published or sent it                  its type
    handled         the queue                                              the type of the message
    dead letter     the queue                                              the error
    saga            the name of the saga                                   its status
    step            the step                                               its status
    history         the step, or the saga                                  the history entry
    ==============  =====================================================  ==========================================
    """

    kind: Literal["message", "handled", "dead letter", "saga", "step", "history"]
    at: datetime | None  #: UTC; None for a message from another database, and for a step that has not started
    who: str
    what: str
    id: str  #: the event id or the saga id
    detail: str = ""
    children: list[Entry] = field(default_factory=list)  #: sorted by time

    def as_json(self, levels: int = _DEEPEST) -> dict[str, Any]:
        """Return it as values that JSON can represent, with so many levels of children."""
        values: dict[str, Any] = {
            "kind": self.kind,
            "at": None if self.at is None else self.at.isoformat(),
            "who": self.who,
            "what": self.what,
            "id": self.id,
            "detail": self.detail,
            "children": [child.as_json(levels - 1) for child in self.children] if levels else [],
        }
        if self.children and not levels:
            values["cut"] = f"nested too deep: {sum(1 for _ in walk(self.children))} entries are omitted"
        return values


def trace(engine: Engine, name: str) -> list[Entry]:
    """Return the starting entries of a flow, each with what it led to, sorted by time.

    `name`: the flow's correlation id; or a name that leads to it: a business key of messages or a saga, a saga id, or
    a message id. For a key that occurs in several flows, all of them are returned. Only a correlation id and a saga id
    are found without reading the whole outbox.
    Only this database is searched: a service with its own database has its own part of the flow. Purged data is gone.
    Returns nothing for an unknown name. Raises `StoreUnavailable`.
    """
    if not is_clean(name):
        return []  # no database stores such text, and some refuse to search for it
    with reading(engine) as connection:
        return _Trace(connection, _correlation_ids(connection, name)).entries()


def _correlation_ids(connection: Connection, name: str) -> list[str]:
    """Return the correlation ids that a name leads to."""
    sagas, outbox, inbox, letters = schema.sagas.c, schema.outbox.c, schema.inbox.c, schema.event_dead_letters.c
    found = {name}
    for column, what in (
        (sagas.correlation_id, (sagas.id == name) | (sagas.key == name)),
        (outbox.correlation_id, (outbox.event_id == name) | (outbox.key == name)),
        (inbox.correlation_id, inbox.event_id == name),
        (letters.correlation_id, (letters.event_id == name) | (letters.key == name)),
    ):
        found.update(connection.execute(select(column).where(what).distinct()).scalars())
    return sorted(found)


class _Trace:
    """The rows of some flows, assembled into a tree of entries."""

    def __init__(self, connection: Connection, correlation_ids: Sequence[str]) -> None:
        def rows(table: Table) -> Sequence[Any]:
            return _found(connection, table, table.c.correlation_id, correlation_ids)

        self.roots: list[Entry] = []
        self.messages: dict[str, Entry] = {}
        self.handled: dict[str, dict[str, Entry]] = {}  # per event id, by queue
        self.steps: dict[str, Entry] = {}  # by the causation id of the messages that they emitted
        self.outbox, self.inbox = rows(schema.outbox), rows(schema.inbox)
        self.letters, self.sagas = rows(schema.event_dead_letters), rows(schema.sagas)
        ids = [row.id for row in self.sagas]
        self.saga_steps = _found(connection, schema.steps, schema.steps.c.saga_id, ids)
        history = _found(connection, schema.history, schema.history.c.saga_id, ids)
        self.history = sorted(history, key=lambda row: row.id)

    def entries(self) -> list[Entry]:
        self._add_sagas()
        causes: dict[str, tuple[str | None, str]] = {}
        for row in sorted(self.outbox, key=lambda row: row.id):
            if row.event_id not in self.messages:  # otherwise it is a replay
                detail = ("" if row.queue is None else f"to {row.queue}") + ("" if row.sent_at else " NOT SENT YET")
                self.messages[row.event_id] = Entry(
                    "message", row.created_at, row.source, row.type, row.event_id, detail.strip()
                )
                causes[row.event_id] = row.causation_id, row.source
        for row in self.inbox:
            self._message_of(row, causes, row.source)
            entry = Entry("handled", row.handled_at, row.queue, row.type, row.event_id)
            self.handled.setdefault(row.event_id, {})[row.queue] = entry
            self.messages[row.event_id].children.append(entry)
        for row in self.letters:
            self._message_of(row, causes, "?")
            resolved = "" if row.resolution is None else f"{row.resolution}: {row.reason}"
            entry = Entry("dead letter", row.created_at, row.queue, row.error, row.event_id, resolved)
            self.messages[row.event_id].children.append(entry)
        for event_id, (cause, source) in causes.items():
            self._siblings(cause, source).append(self.messages[event_id])
        for row in self.sagas:
            cause = None if row.caused_by is None else row.caused_by.id
            self._siblings(cause, None).append(self.steps[row.id])
        _sort(self.roots)
        return self.roots

    def _add_sagas(self) -> None:
        for row in self.sagas:
            saga = Entry("saga", row.created_at, row.name, row.status, row.id, row.error or "")
            self.steps[row.id] = saga
        for row in self.saga_steps:
            if row.started_at is None and row.status == StepStatus.PENDING:
                continue
            name = step_name(row.node, row.item)
            step = Entry("step", row.started_at, name, row.status, row.saga_id, row.error or "")
            self.steps[f"{row.saga_id}:{name}"] = step
            self.steps[row.saga_id].children.append(step)
        for row in self.history:
            who = row.step or self.steps[row.saga_id].who
            self.steps[row.saga_id].children.append(Entry("history", row.at, who, row.what, row.saga_id, row.detail))

    def _message_of(self, row: Any, causes: dict[str, tuple[str | None, str]], source: str) -> None:
        """Make sure that the message has an entry: it may have been published in another database."""
        if row.event_id not in self.messages:
            elsewhere = "published elsewhere, or purged"
            self.messages[row.event_id] = Entry("message", None, source, row.type, row.event_id, elsewhere)
            causes[row.event_id] = getattr(row, "causation_id", None), source

    def _siblings(self, cause: str | None, source: str | None) -> list[Entry]:
        """Return the list that a message belongs to: that of the handler which published it, else that of its cause.

        `source`: None for a saga: if several handlers received the message, nothing shows which of them started it.
        """
        if cause in self.steps:
            return self.steps[cause].children
        if cause not in self.messages:
            return self.roots
        handlers = self.handled.get(cause, {})
        if source is None:
            handler = next(iter(handlers.values())) if len(handlers) == 1 else None
        else:
            handler = next((entry for queue, entry in handlers.items() if queue.partition(".")[0] == source), None)
        return (handler or self.messages[cause]).children


def _found(connection: Connection, table: Table, column: Column[Any], values: Sequence[str]) -> Sequence[Any]:
    """Return the rows with one of these values, in batches: databases limit the number of parameters."""
    return [
        row
        for start in range(0, len(values), _AT_ONCE)
        for row in connection.execute(select(table).where(column.in_(values[start : start + _AT_ONCE])))
    ]


def walk(entries: Sequence[Entry]) -> Iterator[tuple[int, Entry]]:
    """Yield all entries of a trace in the order of display, each with its depth."""
    waiting = [(0, entry) for entry in reversed(entries)]
    while waiting:
        depth, entry = waiting.pop()
        yield depth, entry
        waiting += [(depth + 1, child) for child in reversed(entry.children)]


def _sort(entries: list[Entry]) -> None:
    """Sort by time. An entry without a time comes where the first entry comes that it led to."""
    first: dict[int, float] = {}  # by the identity of an entry
    for each in reversed([entries, *(entry.children for _, entry in walk(entries))]):  # the deepest first
        for entry in each:
            times = (first[id(child)] for child in entry.children)
            first[id(entry)] = min(times, default=float("inf")) if entry.at is None else entry.at.timestamp()
        each.sort(key=lambda entry: first[id(entry)])
