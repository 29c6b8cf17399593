"""What can be asked of a database about itself, and about the work that stands still in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Executable, Table, delete, false, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from sagas.checkpoints import FINISHED, NOT_SENT, SagaStatus
from sagas.stores import schema
from sagas.stores.engines import lacks_tables, may_not, reading, translated
from sagas.stores.lists import NOT_PROGRESSING
from sagas.stores.protocols import OperatorStore

__all__ = ["Backlog", "Forbidden", "Found", "backlog", "forbidden", "is_standby", "settings", "tables"]

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


def settings(store: OperatorStore) -> dict[str, str]:
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


def tables(store: OperatorStore) -> tuple[str | None, str | None]:
    """Return the revision that the tables are at, None where there are none, and the one that this code needs."""
    from sagas.stores import migrate  # noqa: PLC0415 - Alembic is slow to import and rarely needed

    with reading(store.engine):  # so that a database that is away is told from one without tables
        return migrate.current(store.engine), migrate.head()


@dataclass(frozen=True, slots=True)
class Forbidden:
    """What this connection may not do to a table, and what the database says of it."""

    table: str
    what: str  #: SELECT, INSERT, UPDATE, DELETE, or USAGE of the sequence of its ids
    says: str


def forbidden(store: OperatorStore, *, events: bool) -> list[Forbidden]:
    """Try every kind of statement on every table, on no row, and return what is refused. It changes nothing.

    `events`: also on the tables of events.
    """
    found = []
    wanted = [table for table in schema.metadata.sorted_tables if events or not table.name.startswith("events_")]
    for table in wanted:
        columns = list(table.columns)
        nothing = false()
        statements: dict[str, Executable] = {
            "SELECT": select(table).where(nothing),
            "INSERT": insert(table).from_select(columns, select(table).where(nothing), include_defaults=False),
            "UPDATE": update(table).values({columns[-1]: columns[-1]}).where(nothing),
            "DELETE": delete(table).where(nothing),
        }
        for what, statement in statements.items():
            if (says := _refusal(store, statement)) is not None:
                found.append(Forbidden(table.name, what, says))
    return found + (_forbidden_sequences(store, wanted) if store.dialect == "postgresql" else [])


def _refusal(store: OperatorStore, statement: Executable) -> str | None:
    """Return what a database says that does not allow a statement; None where it does, or lacks the table."""
    with translated(store.engine), store.engine.connect() as connection:
        try:
            connection.execute(statement)
        except DBAPIError as error:
            if may_not(error):
                return str(error.orig).partition("\n")[0]
            if not lacks_tables(error):
                raise
        finally:
            connection.rollback()
    return None


def _forbidden_sequences(store: OperatorStore, wanted: Sequence[Table]) -> list[Forbidden]:
    """Find the sequences that ids of new rows come from, and that this role may not use."""
    query = text(
        "SELECT table_name, pg_get_serial_sequence(quote_ident(table_name), column_name) AS sequence"
        " FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND column_default LIKE 'nextval(%'"
    )
    names = {table.name for table in wanted}
    with reading(store.engine) as connection:
        sequences = [(table, name) for table, name in connection.execute(query) if table in names and name]
        may = text("SELECT has_sequence_privilege(:name, 'USAGE')")
        return [
            Forbidden(table, "USAGE", f"permission denied for sequence {name}")
            for table, name in sequences
            if not connection.execute(may, {"name": name}).scalar_one()
        ]


def is_standby(store: OperatorStore) -> bool:
    """Tell whether this is a PostgreSQL server that follows another, and takes no writes."""
    if store.dialect != "postgresql":
        return False
    with reading(store.engine) as connection:
        return bool(connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar_one())


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
    behind_stuck: Found  #: sagas whose child saga is stuck
    standing: Found  #: overdue for a long time: nobody begins their next step
    not_sent: Found  #: steps whose message no broker takes
    letters: Found  #: open dead letters of sagas
    event_letters: Found  #: open dead letters of events


def backlog(store: OperatorStore) -> Backlog:
    """Return what waits in the database."""
    unfinished = tuple(sorted(status for status in SagaStatus if status not in FINISHED))
    with reading(store.engine) as connection:

        def ask(oldest: Any, example: Any, *where: Any) -> Found:
            row = connection.execute(select(func.count(), func.min(oldest), func.min(example)).where(*where)).one()
            return Found(*row)

        return Backlog(
            unfinished=ask(_sagas.created_at, _sagas.id, _sagas.status.in_(unfinished)),
            stuck=ask(_sagas.updated_at, _sagas.id, _sagas.status == SagaStatus.STUCK),
            behind_stuck=ask(
                _sagas.updated_at, _sagas.parent_id, _sagas.status == SagaStatus.STUCK, _sagas.parent_id.is_not(None)
            ),
            standing=ask(_sagas.stage_ready_at, _sagas.id, NOT_PROGRESSING),
            not_sent=ask(
                _sagas.stage_ready_at,
                _sagas.id,
                _steps.saga_id == _sagas.id,
                _sagas.next_check_at.is_not(None),
                _steps.error.startswith(f"{NOT_SENT}:"),
            ),
            letters=ask(_letters.created_at, _letters.saga_id, _letters.resolved_at.is_(None)),
            event_letters=ask(_events.created_at, _events.id, _events.resolved_at.is_(None)),
        )
