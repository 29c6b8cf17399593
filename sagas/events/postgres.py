"""The event store on PostgreSQL: an append is one statement, whatever the number of events.

How positions work is described in `sagas.events.positions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, bindparam, select, text
from sqlalchemy.dialects import postgresql

from sagas.errors import ConfigurationError
from sagas.events.writing import Row, Writing
from sagas.stores.drivers import Kept
from sagas.stores.schema import streams

__all__ = ["PostgresWriting", "PsycopgWriting"]

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


class PostgresWriting(Writing):
    """A statement for each append, through SQLAlchemy."""

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
        how, values = _parameters(stream, expected, rows)
        version: int | None = connection.execute(self._append[how], values).scalar_one_or_none()
        return version

    def append_alone(self, engine: Engine, stream: str, expected: int | None, rows: Sequence[Row]) -> int | None:
        # A single statement needs no explicit transaction: one round trip instead of three.
        with engine.connect() as connection:
            return self.append(connection.execution_options(isolation_level="AUTOCOMMIT"), stream, expected, rows)

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


class PsycopgWriting(PostgresWriting):
    """The same statements, given to the driver itself where the append is a transaction of its own.

    SQLAlchemy takes as long to execute a statement as driver and database together.
    """

    def __init__(self, engine: Engine) -> None:
        self._statements = {how: str(each.compile(dialect=engine.dialect)) for how, each in self._append.items()}

    def append_alone(self, engine: Engine, stream: str, expected: int | None, rows: Sequence[Row]) -> int | None:
        how, values = _parameters(stream, expected, rows)
        with Kept.of(engine).lend() as (driver, _):
            found = driver.execute(self._statements[how], values).fetchone()
        return None if found is None else int(found[0])


def _parameters(stream: str, expected: int | None, rows: Sequence[Row]) -> tuple[str, dict[str, Any]]:
    """Return the name of the statement that appends, and its parameters."""
    values: dict[str, Any] = {"stream": stream, "count": len(rows), "events": _ENCODER.encode(rows).decode()}
    if not expected:
        return "any" if expected is None else "first", values
    return "exact", {**values, "expected": expected}


def _whole(mark: int, last: int) -> int:
    """Return the position from the low 32 bits in a lock: the candidate that is closest to the last position."""
    away = (mark - last) & 0xFFFF_FFFF
    return last + (away if away < 1 << 31 else away - (1 << 32))
