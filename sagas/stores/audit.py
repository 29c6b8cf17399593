"""What was done to the sagas as a whole: in a table of its own, for the history of a saga goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from sagas.stores import schema
from sagas.stores.engines import reading
from sagas.stores.protocols import OperatorStore
from sagas.text import clean

__all__ = ["MaintenanceEntry", "audit", "count_up", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceEntry:
    """Something that was done to the sagas as a whole, by whom, why, and to how many."""

    at: datetime
    actor: str | None
    what: str  #: purge, reencrypt
    detail: str
    reason: str
    count: int


def audit(store: OperatorStore, limit: int = 100) -> Sequence[MaintenanceEntry]:
    """Return what was done, newest first."""
    columns = [schema.audit.c[field.name] for field in fields(MaintenanceEntry)]
    query = select(*columns).order_by(schema.audit.c.id.desc()).limit(limit)
    with reading(store.engine) as connection:
        return [MaintenanceEntry(**row) for row in connection.execute(query).mappings()]


def note(connection: Connection, entry: MaintenanceEntry) -> int:
    """Write an entry in a transaction of the caller's, and return its id."""
    row = {field.name: getattr(entry, field.name) for field in fields(MaintenanceEntry)}
    row |= {name: clean(text) for name, text in row.items() if isinstance(text, str)}
    (number,) = connection.execute(insert(schema.audit).values(row)).inserted_primary_key or (0,)
    return int(number)


def count_up(connection: Connection, number: int, more: int) -> None:
    """Add to the count of an entry, in the transaction of what is counted."""
    entry = schema.audit.c
    connection.execute(update(schema.audit).where(entry.id == number).values(count=entry.count + more))
