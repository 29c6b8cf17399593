"""One whole story, by its correlation id: what was published, handled, put aside, and which sagas took part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, Engine, Table, select

from sagas.stores import schema
from sagas.stores.engines import reading

__all__ = ["Entry", "trace"]


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

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return {
            "kind": self.kind,
            "at": None if self.at is None else self.at.isoformat(),
            "who": self.who,
            "what": self.what,
            "id": self.id,
            "detail": self.detail,
            "children": [child.as_json() for child in self.children],
        }


def trace(engine: Engine, correlation_id: str) -> list[Entry]:
    """Return what began a story, each with what it led to, in the order of time.

    Of the tables of this database: a service with a database of its own tells its own part. What was purged is gone.
    Returns nothing for an id that is not known. Raises `StoreUnavailable`.
    """
    with reading(engine) as connection:
        return _Story(connection, correlation_id).told()


class _Story:
    def __init__(self, connection: Connection, correlation_id: str) -> None:
        def rows(table: Table) -> Sequence[Any]:
            return connection.execute(select(table).where(table.c.correlation_id == correlation_id)).all()

        self.roots: list[Entry] = []
        self.messages: dict[str, Entry] = {}
        self.handled: dict[str, dict[str, Entry]] = {}  # per event id, by queue
        self.steps: dict[str, Entry] = {}  # by what a message that they emitted is caused by
        self.outbox, self.inbox = rows(schema.outbox), rows(schema.inbox)
        self.letters, self.sagas = rows(schema.event_dead_letters), rows(schema.sagas)
        ids = [row.id for row in self.sagas]
        self.saga_steps = connection.execute(select(schema.steps).where(schema.steps.c.saga_id.in_(ids))).all()
        self.history = connection.execute(
            select(schema.history).where(schema.history.c.saga_id.in_(ids)).order_by(schema.history.c.id)
        ).all()

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
        _sort(self.roots)
        return self.roots

    def _tell_sagas(self) -> None:
        for row in self.sagas:
            saga = Entry("saga", row.created_at, row.name, row.status, row.id, row.error or "")
            self.steps[row.id] = saga
            self.roots.append(saga)
        for row in self.saga_steps:
            step = Entry("step", row.started_at, row.name, row.status, row.saga_id, row.error or "")
            self.steps[f"{row.saga_id}:{row.name}"] = step
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

    def _siblings(self, cause: str | None, source: str) -> list[Entry]:
        """Return where a message belongs: to the handler of its cause that published it, else to the cause itself."""
        if cause in self.steps:
            return self.steps[cause].children
        if cause not in self.messages:
            return self.roots
        handlers = self.handled.get(cause, {})
        by = next((entry for queue, entry in handlers.items() if queue.partition(".")[0] == source), None)
        return (by or self.messages[cause]).children


def _sort(entries: list[Entry]) -> None:
    """Sort by time. What has none comes where the first thing does that it led to."""
    for entry in entries:
        _sort(entry.children)
    entries.sort(key=lambda entry: min((at.timestamp() for at in _times(entry)), default=float("inf")))


def _times(entry: Entry) -> Iterator[datetime]:
    if entry.at is not None:
        yield entry.at
        return
    for child in entry.children:
        yield from _times(child)
