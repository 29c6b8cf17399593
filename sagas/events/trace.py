"""One whole story, by its correlation id or a business key: messages, who handled them, dead letters, and sagas."""

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

#: Entries that may lie within one another as JSON, where each is an object in a list.
_DEEPEST = DEEPEST // 2 - 2


@dataclass(slots=True)
class Entry:
    """Something that happened, and what came of it.

    ==============  =====================================================  ==========================================
    `kind`          `who`                                                  `what`
    ==============  =====================================================  ==========================================
    message         the service that published or sent it                  its type
    handled         the queue                                              the type of the message
    dead letter     the queue                                              the error
    saga            the name of the saga                                   its status
    step            the step                                               its status
    history         the step, or the saga                                  what is in its history
    ==============  =====================================================  ==========================================
    """

    kind: Literal["message", "handled", "dead letter", "saga", "step", "history"]
    at: datetime | None  #: UTC; None for a message that was published in another database, and a step not begun
    who: str
    what: str
    id: str  #: the event id or the saga id
    detail: str = ""
    children: list[Entry] = field(default_factory=list)  #: in the order of time

    def as_json(self, levels: int = _DEEPEST) -> dict[str, Any]:
        """Return it as what JSON can hold, with so many levels of children."""
        told: dict[str, Any] = {
            "kind": self.kind,
            "at": None if self.at is None else self.at.isoformat(),
            "who": self.who,
            "what": self.what,
            "id": self.id,
            "detail": self.detail,
            "children": [child.as_json(levels - 1) for child in self.children] if levels else [],
        }
        if self.children and not levels:
            told["cut"] = f"nested too deep: {sum(1 for _ in walk(self.children))} entries are left out"
        return told


def trace(engine: Engine, name: str) -> list[Entry]:
    """Return what began a story, each with what it led to, in the order of time.

    `name`: the correlation id of the story; or what leads to it: a business key (of messages or of a saga), the id of
    a saga, the id of a message. A key that is in several stories returns all of them. Only a correlation id and the id
    of a saga are found without reading the outbox whole.
    Of the tables of this database: a service with a database of its own tells its own part. What was purged is gone.
    Returns nothing for a name that is not known. Raises `StoreUnavailable`.
    """
    if not is_clean(name):
        return []  # no database holds such a text, and some refuse to look for it
    with reading(engine) as connection:
        return _Story(connection, _stories_of(connection, name)).told()


def _stories_of(connection: Connection, name: str) -> list[str]:
    """Return the correlation ids that a name stands for."""
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


class _Story:
    def __init__(self, connection: Connection, correlation_ids: Sequence[str]) -> None:
        def rows(table: Table) -> Sequence[Any]:
            return _found(connection, table, table.c.correlation_id, correlation_ids)

        self.roots: list[Entry] = []
        self.messages: dict[str, Entry] = {}
        self.handled: dict[str, dict[str, Entry]] = {}  # per event id, by queue
        self.steps: dict[str, Entry] = {}  # by what a message that they emitted is caused by
        self.outbox, self.inbox = rows(schema.outbox), rows(schema.inbox)
        self.letters, self.sagas = rows(schema.event_dead_letters), rows(schema.sagas)
        ids = [row.id for row in self.sagas]
        self.saga_steps = _found(connection, schema.steps, schema.steps.c.saga_id, ids)
        history = _found(connection, schema.history, schema.history.c.saga_id, ids)
        self.history = sorted(history, key=lambda row: row.id)

    def told(self) -> list[Entry]:
        self._tell_sagas()
        causes: dict[str, tuple[str | None, str]] = {}
        for row in sorted(self.outbox, key=lambda row: row.id):
            if row.event_id not in self.messages:  # else a replay
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

    def _tell_sagas(self) -> None:
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
        """See to it that there is a message: it may have been published in another database."""
        if row.event_id not in self.messages:
            elsewhere = "published elsewhere, or purged"
            self.messages[row.event_id] = Entry("message", None, source, row.type, row.event_id, elsewhere)
            causes[row.event_id] = getattr(row, "causation_id", None), source

    def _siblings(self, cause: str | None, source: str | None) -> list[Entry]:
        """Return where a message belongs: to the handler of its cause that published it, else to the cause itself.

        `source`: None for a saga: where several handlers had the message, nothing says which of them started it.
        """
        if cause in self.steps:
            return self.steps[cause].children
        if cause not in self.messages:
            return self.roots
        handlers = self.handled.get(cause, {})
        if source is None:
            actor = next(iter(handlers.values())) if len(handlers) == 1 else None
        else:
            actor = next((entry for queue, entry in handlers.items() if queue.partition(".")[0] == source), None)
        return (actor or self.messages[cause]).children


def _found(connection: Connection, table: Table, column: Column[Any], values: Sequence[str]) -> Sequence[Any]:
    """Return the rows with one of these values. Databases take only so many at once."""
    return [
        row
        for start in range(0, len(values), _AT_ONCE)
        for row in connection.execute(select(table).where(column.in_(values[start : start + _AT_ONCE])))
    ]


def walk(entries: Sequence[Entry]) -> Iterator[tuple[int, Entry]]:
    """Yield all entries of a story in the order in which they are told, each with how deep it lies."""
    waiting = [(0, entry) for entry in reversed(entries)]
    while waiting:
        depth, entry = waiting.pop()
        yield depth, entry
        waiting += [(depth + 1, child) for child in reversed(entry.children)]


def _sort(entries: list[Entry]) -> None:
    """Sort by time. What has none comes where the first thing does that it led to."""
    first: dict[int, float] = {}  # by the identity of an entry
    for each in reversed([entries, *(entry.children for _, entry in walk(entries))]):  # the deepest come first
        for entry in each:
            times = (first[id(child)] for child in entry.children)
            first[id(entry)] = min(times, default=float("inf")) if entry.at is None else entry.at.timestamp()
        each.sort(key=lambda entry: first[id(entry)])
