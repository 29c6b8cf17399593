"""Redelivered messages: how often each was begun by a process that did not end it.

This reveals messages that kill the process handling them. A broker's own count does not: it also increases for the
messages that were only fetched together with such a message and never begun.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, select, update

from sagas.stores import schema
from sagas.stores.engines import reading, translated
from sagas.stores.transactions import begun

__all__ = ["begin", "clear", "clear_in", "times_begun"]

_TABLE = schema.redeliveries


def times_begun(engine: Engine, queue: str, ids: Collection[str]) -> dict[str, int]:
    """Return how often messages of a queue were begun. Messages that were never begun are left out."""
    query = select(_TABLE.c.event_id, _TABLE.c.deliveries).where(_TABLE.c.queue == queue, _TABLE.c.event_id.in_(ids))
    with reading(engine) as connection:
        return {event_id: times for event_id, times in connection.execute(query)}  # noqa: C416 - rows are not pairs


def begin(engine: Engine, queue: str, event_id: str) -> int:
    """Count that a message begins; return how often it has begun, this time included."""
    now = datetime.now(UTC)
    with translated(engine), begun(engine) as connection:
        more = _of(update(_TABLE), queue, event_id).values(deliveries=_TABLE.c.deliveries + 1, seen_at=now)
        if connection.execute(more).rowcount == 0:
            connection.execute(insert(_TABLE), {"queue": queue, "event_id": event_id, "deliveries": 1, "seen_at": now})
        times: int = connection.execute(_of(select(_TABLE.c.deliveries), queue, event_id)).scalar_one()
    return times


def clear(engine: Engine, queue: str, event_id: str) -> None:
    """Record that the handler of a message ended, with whatever outcome."""
    with translated(engine), begun(engine) as connection:
        clear_in(connection, queue, event_id)


def clear_in(connection: Connection, queue: str, event_id: str) -> None:
    """Do the same as `clear`, in the caller's transaction."""
    connection.execute(_of(delete(_TABLE), queue, event_id))


def _of(statement: Any, queue: str, event_id: str) -> Any:
    return statement.where(_TABLE.c.queue == queue, _TABLE.c.event_id == event_id)
