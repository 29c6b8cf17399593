"""What can be asked of a database about itself, and about the work that stands still in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, select

from sagas.checkpoints import NOT_SENT, TERMINAL, SagaStatus
from sagas.stores import schema
from sagas.stores.engines import reading
from sagas.stores.lists import STANDS_STILL

if TYPE_CHECKING:
    from sagas.stores.sql import SqlStore

__all__ = ["Backlog", "Found", "backlog", "settings", "tables"]

_sagas, _steps, _letters = schema.sagas.c, schema.steps.c, schema.dead_letters.c
_events = schema.event_dead_letters.c

#: What is asked of each kind of database. MariaDB's names are MySQL's, except where it has none.
_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "postgresql": (
        "server_version", "fsync", "synchronous_commit", "transaction_isolation", "statement_timeout",
        "idle_in_transaction_session_timeout", "idle_session_timeout", "transaction_timeout",
    ),
    "mysql": (
        "version", "innodb_flush_log_at_trx_commit", "tx_isolation", "transaction_isolation", "wait_timeout",
        "innodb_lock_wait_timeout",
    ),
    "sqlite": ("journal_mode", "foreign_keys", "synchronous"),
}  # fmt: skip


def settings(store: SqlStore) -> dict[str, str]:
    """Return the version and those settings of the database that matter to sagas, as a connection of ours sees them."""
    with reading(store.engine) as connection:
        match store.dialect:
            case "postgresql":
                query = "SELECT name, setting FROM pg_settings"
                found = {name: setting for name, setting in connection.exec_driver_sql(query)}  # noqa: C416
            case "sqlite":
                found = {name: _pragma(connection, name) for name in _SETTINGS["sqlite"]}
                found["version"] = str(connection.exec_driver_sql("SELECT sqlite_version()").scalar_one())
                return found
            case _:
                found = {name.lower(): value for name, value in connection.exec_driver_sql("SHOW VARIABLES")}
    wanted = _SETTINGS["postgresql" if store.dialect == "postgresql" else "mysql"]
    found = {name: str(found[name]) for name in wanted if name in found}
    # Under one name, whatever the database calls it.
    found["version"] = found.pop("server_version", found.get("version", "unknown"))
    if "tx_isolation" in found:
        found["transaction_isolation"] = found.pop("tx_isolation")
    return found


def _pragma(connection: Connection, name: str) -> str:
    return str(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()).lower()


def tables(store: SqlStore) -> tuple[str | None, str | None]:
    """Return the revision that the tables are at, None where there are none, and the one that this code needs."""
    from sagas.stores import migrate  # noqa: PLC0415 - Alembic is slow to import and rarely needed

    with reading(store.engine):  # so that a database that is away is told from one without tables
        return migrate.current(store.engine), migrate.head()


@dataclass(frozen=True, slots=True)
class Found:
    """How many there are, since when the oldest waits, and one of them."""

    count: int
    oldest: datetime | None = None
    example: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The work that is not done."""

    unfinished: Found
    stuck: Found
    standing: Found  #: overdue for a long time: nobody begins their next step
    not_sent: Found  #: steps whose message no broker takes
    letters: Found  #: open dead letters of sagas
    event_letters: Found  #: open dead letters of events


def backlog(store: SqlStore) -> Backlog:
    """Return what waits in the database."""
    unfinished = tuple(sorted(status for status in SagaStatus if status not in TERMINAL))
    with reading(store.engine) as connection:

        def ask(oldest: Any, example: Any, *where: Any) -> Found:
            row = connection.execute(select(func.count(), func.min(oldest), func.min(example)).where(*where)).one()
            return Found(*row)

        return Backlog(
            unfinished=ask(_sagas.created_at, _sagas.id, _sagas.status.in_(unfinished)),
            stuck=ask(_sagas.updated_at, _sagas.id, _sagas.status == SagaStatus.STUCK),
            standing=ask(_sagas.ready_at, _sagas.id, STANDS_STILL),
            not_sent=ask(
                _sagas.ready_at,
                _sagas.id,
                _steps.saga_id == _sagas.id,
                _sagas.wake_at.is_not(None),
                _steps.error.startswith(f"{NOT_SENT}:"),
            ),
            letters=ask(_letters.created_at, _letters.saga_id, _letters.resolved_at.is_(None)),
            event_letters=ask(_events.created_at, _events.id, _events.resolved_at.is_(None)),
        )
