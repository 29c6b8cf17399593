"""Many new sagas in a few statements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, String, Text, bindparam, cast, column, func, select
from sqlalchemy.dialects import postgresql

from sagas.checkpoints import SagaRecord
from sagas.stores import schema
from sagas.stores.rows import SAGA_FIELDS

__all__ = ["insert_many"]


def _insert_arrays() -> Any:
    """Build PostgreSQL's statement: an array for each column, so that its text is the same for any number of rows."""
    arrays, columns = [], []
    for name in SAGA_FIELDS:
        each = schema.sagas.c[name]
        # A cast to a shorter text would cut it, and say nothing.
        kind = postgresql.ARRAY(Text() if isinstance(each.type, String) else each.type)
        arrays.append(cast(bindparam(each.name, type_=kind), kind))
        columns.append(column(each.name, each.type))
    new = func.unnest(*arrays).table_valued(*columns, name="new").render_derived()
    insertion = postgresql.insert(schema.sagas).from_select([each.name for each in columns], select(new))
    return insertion.on_conflict_do_nothing(index_elements=("name", "key")).returning(schema.sagas.c.id)


_INSERT_ARRAYS = _insert_arrays()


def insert_many(
    connection: Connection,
    insert_or_keep: Any,
    records: Sequence[SagaRecord],
    to_row: Callable[[SagaRecord], Mapping[str, Any]],
    of_row: Callable[[RowMapping], SagaRecord],
) -> Sequence[SagaRecord]:
    """Store new sagas of one name, each with a key of its own. Return, for each, the saga that has its name and key."""
    found: dict[str, SagaRecord] = {}
    left = sorted(records, key=lambda record: record.key)  # in one order: two callers must not wait for each other
    while left:
        new = _insert(connection, insert_or_keep, left, to_row)
        found |= {record.key: record for record in left if record.id in new}
        kept = [record.key for record in left if record.id not in new]
        # A locking read: the rows that were in the way may be younger than this transaction's snapshot.
        query = select(schema.sagas).where(schema.sagas.c.name == left[0].name, schema.sagas.c.key.in_(kept))
        rows = connection.execute(query.with_for_update(read=True)).mappings() if kept else ()
        found |= {row["key"]: of_row(row) for row in rows}
        left = [record for record in left if record.key not in found]  # purged since: insert those again
    return [found[record.key] for record in records]


def _insert(
    connection: Connection,
    insert_or_keep: Any,
    records: Sequence[SagaRecord],
    to_row: Callable[[SagaRecord], Mapping[str, Any]],
) -> set[str]:
    """Insert what is not there yet, and return the ids of what was inserted."""
    rows = [to_row(record) for record in records]
    if connection.dialect.name == "postgresql":
        arrays = {name: [row[name] for row in rows] for name in rows[0]}
        return set(connection.execute(_INSERT_ARRAYS, arrays).scalars())
    connection.execute(insert_or_keep, rows)
    ours = select(schema.sagas.c.id).where(schema.sagas.c.id.in_([record.id for record in records]))
    return set(connection.execute(ours).scalars())
