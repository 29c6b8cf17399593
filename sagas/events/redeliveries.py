"""Messages that were given out more than once: how often each was begun by somebody who never came back.

One that kills whoever handles it is found out by that. A broker's own count is no help: it also goes up for the
innocent that were fetched together with it, and were never begun.
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
    """Return how often messages of a queue were begun, those left out that were not."""
    query = select(_TABLE.c.event_id, _TABLE.c.deliveries).where(_TABLE.c.queue == queue, _TABLE.c.event_id.in_(ids))
    with reading(engine) as connection:
        return {event_id: times for event_id, times in connection.execute(query)}  # noqa: C416 - rows are not pairs


def begin(engine: Engine, queue: str, event_id: str) -> int:
    """Count that a message is begun; return how often it has been, this time included."""
    now = datetime.now(UTC)
    with translated(engine), begun(engine) as connection:
        more = _of(update(_TABLE), queue, event_id).values(deliveries=_TABLE.c.deliveries + 1, seen_at=now)
        if connection.execute(more).rowcount == 0:
            connection.execute(insert(_TABLE), {"queue": queue, "event_id": event_id, "deliveries": 1, "seen_at": now})
        times: int = connection.execute(_of(select(_TABLE.c.deliveries), queue, event_id)).scalar_one()
    return times


def clear(engine: Engine, queue: str, event_id: str) -> None:
    """Note that whoever began a message came back, whatever came of it."""
    with translated(engine), begun(engine) as connection:
        clear_in(connection, queue, event_id)


def clear_in(connection: Connection, queue: str, event_id: str) -> None:
    """Do as `clear`, in a transaction of the caller's."""
    connection.execute(_of(delete(_TABLE), queue, event_id))


def _of(statement: Any, queue: str, event_id: str) -> Any:
    return statement.where(_TABLE.c.queue == queue, _TABLE.c.event_id == event_id)
