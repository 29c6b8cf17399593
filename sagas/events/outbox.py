"""The outbox: messages that commit together with the changes they report, and wait there for the relay."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, select, update
from sqlalchemy.orm import Session

from sagas.events.envelope import Envelope
from sagas.stores import schema
from sagas.stores.engines import reading, translated

__all__ = ["SHARDS", "age", "outbox_row", "purge", "resend", "shard_of", "unheard", "unsent", "write"]

#: The number of parts of the outbox. One relay at a time sends a part, which keeps the messages of each key in order.
SHARDS = 16

#: How many rows are deleted at once.
_BATCH = 1000


def shard_of(key: str) -> int:
    """Return the part of the outbox that a key belongs to. It is the same in every process."""
    return zlib.crc32(key.encode()) % SHARDS


def outbox_row(envelope: Envelope, queue: str | None = None) -> dict[str, Any]:
    """Return the `events_outbox` row that makes the relay send a message.

    `queue`: send it only to this queue: a command or a replay. None: send it to every queue bound to its topic.
    """
    return {
        "shard": shard_of(envelope.event_id if envelope.key is None else envelope.key),
        "event_id": envelope.event_id,
        "type": envelope.event_type,
        "version": envelope.version,
        "source": envelope.source,
        "key": envelope.key,
        "correlation_id": envelope.correlation_id,
        "causation_id": envelope.causation_id,
        "queue": queue,
        "body": envelope.encode().decode(),
        "created_at": datetime.now(UTC),
    }


def write(session: Session | Connection, envelope: Envelope, queue: str | None = None) -> None:
    """Put a message into the outbox, in the session's transaction. See `outbox_row`."""
    connection = session.connection() if isinstance(session, Session) else session
    connection.execute(insert(schema.outbox), outbox_row(envelope, queue))


def unsent(engine: Engine) -> int:
    """Return how many messages await a relay."""
    query = select(func.count()).select_from(schema.outbox).where(schema.outbox.c.sent_at.is_(None))
    with reading(engine) as connection:
        return connection.execute(query).scalar_one()


def unheard(engine: Engine) -> dict[str, int]:
    """Return, per type, how many messages were sent to nobody."""
    table = schema.outbox.c
    query = select(table.type, func.count()).where(table.heard.is_not(None), table.heard.is_(False))
    with reading(engine) as connection:
        return {name: count for name, count in connection.execute(query.group_by(table.type))}  # noqa: C416


def resend(engine: Engine, types: Collection[str]) -> int:
    """Mark messages of these types that reached nobody to be sent again. Returns how many."""
    table = schema.outbox.c
    again = update(schema.outbox).where(table.heard.is_(False), table.type.in_(types))
    with translated(engine), engine.begin() as connection:
        return connection.execute(again.values(sent_at=None, heard=None)).rowcount


def age(engine: Engine) -> float:
    """Return the age of the oldest unsent message in seconds; 0 if there is none."""
    table = schema.outbox.c
    # An index finds the first message of each shard, however many are behind it.
    first = (
        select(func.min(table.id))
        .where(table.shard == schema.relay_shards.c.shard, table.sent_at.is_(None))
        .scalar_subquery()
    )
    query = select(func.min(table.created_at)).where(table.id.in_(select(first)))
    with reading(engine) as connection:
        return _age(connection.execute(query).scalar_one())


def _age(oldest: datetime | None) -> float:
    return 0.0 if oldest is None else max((datetime.now(UTC) - oldest).total_seconds(), 0.0)


def purge(engine: Engine, older: timedelta) -> int:
    """Delete messages that were sent longer ago than `older`. Returns how many. Each batch is a transaction."""
    table = schema.outbox
    before = datetime.now(UTC) - older
    found = select(table.c.id).where(table.c.sent_at < before).order_by(table.c.sent_at).limit(_BATCH)
    total = 0
    while True:
        with translated(engine), engine.begin() as connection:
            ids = connection.execute(found).scalars().all()
            if ids:
                connection.execute(delete(table).where(table.c.id.in_(ids)))
        total += len(ids)
        if len(ids) < _BATCH:
            return total
