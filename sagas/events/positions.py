"""How events get their positions, so that a reader who follows the positions misses none.

A position is assigned when an event is written, but the event becomes visible when its transaction commits. If writers
overlap, a later position can become visible first; a reader that remembers it would never see the earlier one. So no
reader goes past the *safe position*: no event below it is still uncommitted. Each database determines it differently:

PostgreSQL
    A writer first reads the last assigned position, and holds an advisory lock with that number until its transaction
    ends. All of its own positions are higher. A reader also reads the last position, and then the locks: the safe
    position is the lowest of these numbers. Suppose the reader could miss a writer's position: that position was
    assigned before the reader looked, so either the writer's lock, taken even earlier, is still held, or its events are
    already visible. No one waits for anyone.

MySQL, MariaDB
    Their counters do not show which writers are still active. A row holds the last position, and an appending
    transaction locks that row until it ends: positions follow the order of commits, one writer at a time.

SQLite
    It has only one writer at a time.

Within a stream, positions rise with the versions on all databases: an appending transaction first locks the stream's
row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, func, insert, select, update
from sqlalchemy.dialects import mysql, sqlite

from sagas.events.postgres import PostgresWriting, PsycopgWriting
from sagas.events.writing import Row, Writing
from sagas.stores.engines import database_now
from sagas.stores.schema import positions, stored_events, streams

__all__ = ["writing_on"]

#: The expected version of a stream if any will do. A number expects exactly that version.
_ANY = None


def writing_on(engine: Engine) -> Writing:
    """Return the implementation for a database. Raises `ConfigurationError` if it is not supported."""
    database_now(engine.dialect.name)
    match engine.dialect.name:
        case "postgresql":
            # Django's connections come with a module of their own: what they execute, Django is to see.
            driver = getattr(engine.dialect.loaded_dbapi, "__name__", None)
            return PsycopgWriting(engine) if driver == "psycopg" else PostgresWriting()
        case "sqlite":
            return _Sqlite()
        case _:
            return _Mysql()


def _inserted(dialect: str) -> Any:
    return insert(stored_events).values(recorded_at=database_now(dialect))


def _numbered(stream: str, version: int, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows for the events that bring a stream to a version."""
    before = version - len(rows)
    return [
        {
            "stream": stream,
            "stream_version": before + row.number,
            "event_id": row.event_id,
            "type": row.type,
            "version": row.version,
            "data": row.data,
            "metadata": row.metadata,
        }
        for row in rows
    ]


# -- advancing a stream, on databases with ON CONFLICT ----------------------------------------------------------------

_MOVE = (
    update(streams)
    .where(streams.c.name == bindparam("stream"), streams.c.version == bindparam("expected"))
    .values(version=streams.c.version + bindparam("count"))
    .returning(streams.c.version)
)


def _begin(statement: Any, *, only_new: bool) -> Any:
    """Build the statement that creates a stream or advances an existing one. A row of version 0 is not yet a stream."""
    return statement.on_conflict_do_update(
        index_elements=["name"],
        set_={"version": streams.c.version + statement.excluded.version},
        where=streams.c.version == 0 if only_new else None,
    ).returning(streams.c.version)


class _Sqlite(Writing):
    _new_row = sqlite.insert(streams).values(name=bindparam("stream"), version=bindparam("count"))
    _any, _first = _begin(_new_row, only_new=False), _begin(_new_row, only_new=True)
    _lock = sqlite.insert(streams).values(name=bindparam("stream"), version=0).on_conflict_do_nothing()
    _insert = _inserted("sqlite")

    def append(self, connection: Connection, stream: str, expected: int | None, rows: Sequence[Row]) -> int | None:
        # The first statement is a write: a transaction that reads first cannot write after another one has written.
        statement = self._any if expected is _ANY else _MOVE if expected else self._first
        values = {"stream": stream, "count": len(rows)} | ({"expected": expected} if expected else {})
        version: int | None = connection.execute(statement, values).scalar_one_or_none()
        if version is not None:
            connection.execute(self._insert, _numbered(stream, version, rows))
        return version

    def lock(self, connection: Connection, stream: str) -> None:
        connection.execute(self._lock, {"stream": stream})


class _Mysql(Writing):
    _count = (
        mysql.insert(positions)
        .values(id=1, position=func.last_insert_id(bindparam("count")))
        .on_duplicate_key_update(position=func.last_insert_id(positions.c.position + bindparam("count")))
    )
    _counted = select(func.last_insert_id())
    _version = select(streams.c.version).where(streams.c.name == bindparam("stream")).with_for_update()
    _begin = insert(streams)
    _move = update(streams).where(streams.c.name == bindparam("stream")).values(version=bindparam("now"))
    _insert = _inserted("mysql")

    def append(self, connection: Connection, stream: str, expected: int | None, rows: Sequence[Row]) -> int | None:
        # Always the counter before the stream: then two transactions on the same two streams cannot deadlock.
        last = self._take(connection, len(rows))
        found = connection.execute(self._version, {"stream": stream}).scalar_one_or_none()
        if expected is not _ANY and expected != (found or 0):
            return None
        version = (found or 0) + len(rows)
        if found is None:
            connection.execute(self._begin, {"name": stream, "version": version})
        else:
            connection.execute(self._move, {"stream": stream, "now": version})
        ahead = last - version  # of the positions over the versions
        numbered = _numbered(stream, version, rows)
        connection.execute(self._insert, [{**row, "position": row["stream_version"] + ahead} for row in numbered])
        return version

    def _take(self, connection: Connection, count: int) -> int:
        connection.execute(self._count, {"count": count})
        last: int = connection.execute(self._counted).scalar_one()
        return last

    def lock(self, connection: Connection, stream: str) -> None:  # noqa: ARG002 - this locks all of them
        self._take(connection, 0)
