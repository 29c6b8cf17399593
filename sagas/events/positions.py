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

import abc
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, func, insert, select, text, update
from sqlalchemy.dialects import mysql, postgresql, sqlite

from sagas.errors import ConfigurationError
from sagas.stores.engines import database_now
from sagas.stores.schema import positions, stored_events, streams

__all__ = ["Row", "Writing", "writing_on"]

#: The expected version of a stream if any will do. A number expects exactly that version.
_ANY = None


class Row(msgspec.Struct, frozen=True):
    """An event to be written. The database provides the rest."""

    number: int  #: within its append, from 1
    event_id: str
    type: str
    version: int
    data: str
    metadata: str


class Writing(abc.ABC):
    """What differs between databases. The given connections are in a transaction, unless `at_once` says otherwise."""

    at_once = False  #: whether `append` is a single statement that needs no explicit transaction

    @abc.abstractmethod
    def append(self, connection: Connection, stream: str, expected: int | None, rows: Sequence[Row]) -> int | None:
        """Append events to a stream and return its version, or write nothing and return None on a version mismatch.

        `expected`: the version that the stream must have, 0 if it must not exist; None: any.
        """

    @abc.abstractmethod
    def lock(self, connection: Connection, stream: str) -> None:
        """Prevent other transactions from appending to a stream until this transaction ends."""

    def safe_position(self, connection: Connection) -> int | None:  # noqa: ARG002 - for databases that need one
        """Return the position up to which no event is still uncommitted; None if everything visible is safe.

        `connection`: a connection that begins no transaction.
        """
        return None


def writing_on(dialect: str) -> Writing:
    """Return the implementation for a database. Raises `ConfigurationError` if it is not supported."""
    database_now(dialect)
    return {"postgresql": _Postgres, "sqlite": _Sqlite}.get(dialect, _Mysql)()


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


# A writer's lock: its first half is the table, its second half the low half of the last assigned position. It is taken
# once per transaction and table: the setting records the table. Rolling back to a savepoint undoes lock and setting.
_MARK = """
mark AS MATERIALIZED (
    SELECT CASE WHEN current_setting('sagas.appending', true) IS DISTINCT FROM CAST(here.id AS text) THEN
        set_config('sagas.appending', CAST(here.id AS text), true) || CAST(pg_advisory_xact_lock_shared(
            CAST(here.id AS int),
            CAST(CAST((SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM events_event_position_seq)
                      AS bit(32)) AS int)
        ) AS text)
    END
    FROM (SELECT CAST(CAST('events_event' AS regclass) AS oid) AS id) AS here
)"""
_ON_CONFLICT = """
    INSERT INTO events_stream AS s (name, version) SELECT CAST(:stream AS varchar), CAST(:count AS int) FROM mark
    ON CONFLICT (name) DO UPDATE SET version = s.version + excluded.version {where} RETURNING version"""
_MOVED = {
    "any": _ON_CONFLICT.format(where=""),
    "first": _ON_CONFLICT.format(where="WHERE s.version = 0"),
    "exact": """
    UPDATE events_stream SET version = version + CAST(:count AS int) FROM mark
    WHERE name = :stream AND version = :expected RETURNING version""",
}
# Any number of events is one JSON text: the driver takes six times as long for arrays. The events get their positions
# after the stream's row is locked, because they need the version that it returns.
_APPEND = """
WITH {mark}, moved AS ({moved}
), written AS (
    INSERT INTO events_event (stream, stream_version, event_id, type, version, data, metadata, recorded_at)
    SELECT :stream, moved.version - :count + e.number, e.event_id, e.type, e.version, e.data, e.metadata,
           clock_timestamp()
    FROM moved, json_to_recordset(CAST(:events AS json))
                AS e (number int, event_id text, type text, version int, data text, metadata text)
    ORDER BY e.number
)
SELECT version FROM moved"""

_ENCODER = msgspec.json.Encoder()


class _Postgres(Writing):
    at_once = True
    # With the column declared, SQLAlchemy does not inspect each result again.
    _append = {  # noqa: RUF012
        how: text(_APPEND.format(mark=_MARK, moved=moved)).columns(streams.c.version) for how, moved in _MOVED.items()
    }
    _begin = postgresql.insert(streams).values(name=bindparam("stream"), version=0).on_conflict_do_nothing()
    _lock = select(streams.c.name).where(streams.c.name == bindparam("stream")).with_for_update()
    _last = text(
        "SELECT pg_is_in_recovery(), CASE WHEN is_called THEN last_value ELSE 0 END FROM events_event_position_seq"
    )
    _marks = text("""
        SELECT CAST(objid AS bigint) FROM pg_locks
        WHERE locktype = 'advisory' AND classid = CAST('events_event' AS regclass) AND objsubid = 2
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """)

    def append(self, connection: Connection, stream: str, expected: int | None, rows: Sequence[Row]) -> int | None:
        how = "any" if expected is _ANY else "exact" if expected else "first"
        values: dict[str, Any] = {"stream": stream, "count": len(rows), "events": _ENCODER.encode(rows).decode()}
        if expected:
            values["expected"] = expected
        version: int | None = connection.execute(self._append[how], values).scalar_one_or_none()
        return version

    def lock(self, connection: Connection, stream: str) -> None:
        connection.execute(self._begin, {"stream": stream})
        connection.execute(self._lock, {"stream": stream})

    def safe_position(self, connection: Connection) -> int:
        # Two statements, so that the locks are read after the position, and before the events, whose snapshot must be
        # younger than both.
        replica, last = connection.execute(self._last).one()
        if replica:
            raise ConfigurationError(
                "this database is a replica and does not know which transactions are writing, so a reader of all "
                "events would miss some. Read them from the primary"
            )
        safe_position: int = min([last, *(_whole(mark, last) for mark in connection.execute(self._marks).scalars())])
        return safe_position


def _whole(mark: int, last: int) -> int:
    """Return the position from the low 32 bits in a lock: the candidate that is closest to the last position."""
    away = (mark - last) & 0xFFFF_FFFF
    return last + (away if away < 1 << 31 else away - (1 << 32))
