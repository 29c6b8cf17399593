"""The statements that write sagas, as each kind of database spells them.

They are built once: SQLAlchemy takes longer to build a statement than to execute it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Integer,
    bindparam,
    case,
    cast,
    column,
    func,
    insert,
    literal_column,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite

from sagas.checkpoints import DeadLetter, SagaRecord, StepStatus
from sagas.stores import schema
from sagas.stores.columns import UtcDateTime
from sagas.stores.rows import LETTER_FIELDS, MUTABLE_FIELDS, SAGA_FIELDS, row_of

__all__ = [
    "BY_ID",
    "BY_KEY",
    "COMPARE_AND_SET",
    "DIALECTS",
    "RESCHEDULE",
    "STEPS",
    "TAKE_OUTLINE",
    "WAKE_PARENT",
    "WAKE_PARENT_STEP",
    "compared_and_set",
    "file_letter",
    "insert_if_free",
    "insert_together",
    "parameters_of",
    "save_at_once",
    "save_together",
]

BY_ID = select(schema.sagas).where(schema.sagas.c.id == bindparam("id"))
BY_KEY = select(schema.sagas).where(schema.sagas.c.name == bindparam("name"), schema.sagas.c.key == bindparam("key"))
STEPS = select(schema.steps).where(schema.steps.c.saga_id == bindparam("saga_id")).order_by(schema.steps.c.seq)

#: The one statement that all safety rests on.
COMPARE_AND_SET = (
    update(schema.sagas)
    .where(schema.sagas.c.id == bindparam("_id"), schema.sagas.c.revision == bindparam("_revision"))
    .values({name: bindparam(name, type_=schema.sagas.c[name].type) for name in MUTABLE_FIELDS})
)

#: A saga takes another outline hardly ever, and outlines are long: so `COMPARE_AND_SET` leaves it out.
TAKE_OUTLINE = update(schema.sagas).where(schema.sagas.c.id == bindparam("_id")).values(outline=bindparam("_outline"))

RESCHEDULE = (
    update(schema.sagas)
    .where(schema.sagas.c.id == bindparam("_id"), schema.sagas.c.revision == bindparam("_revision"))
    .values(
        idle_checks=bindparam("_idle_checks"),
        next_check_at=bindparam("_next_check_at", type_=schema.sagas.c.next_check_at.type),
    )
)


# The revision goes up, so that whoever changes the parent at this moment decides once more, and sees that its step
# is due.
WAKE_PARENT = (
    update(schema.sagas)
    .where(schema.sagas.c.id == bindparam("_parent"))
    .values(
        revision=schema.sagas.c.revision + 1,
        next_check_at=case((schema.sagas.c.next_check_at.is_(None), None), else_=bindparam("_now", type_=UtcDateTime)),
    )
)

WAKE_PARENT_STEP = (
    update(schema.steps)
    .where(
        schema.steps.c.saga_id == bindparam("_parent"),
        schema.steps.c.child_id == bindparam("_child"),
        schema.steps.c.status == StepStatus.WAITING.value,
    )
    .values(due_at=bindparam("_now", type_=UtcDateTime))
)


def compared_and_set(before: SagaRecord, after: SagaRecord) -> dict[str, Any]:
    """Return the parameters of `COMPARE_AND_SET`."""
    return {"_id": before.id, "_revision": before.revision, **row_of(after, MUTABLE_FIELDS)}


@dataclass(frozen=True)
class _Dialect:
    """The statements that differ from database to database."""

    insert_or_keep: Any
    insert_arrival: Any
    upsert: Any
    counts_inserts: bool = True  #: whether the row count tells an insert from a row that was kept


_STEP_KEY = [column.name for column in schema.steps.primary_key]


def _upsert(statement: Any) -> Any:
    return statement.on_conflict_do_update(index_elements=_STEP_KEY, set_=_not_key(statement.excluded))


def _mysql_upsert(statement: mysql.Insert) -> Any:
    return statement.on_duplicate_key_update(_not_key(statement.inserted))


def _not_key(new: Any) -> dict[str, Any]:
    return {column.name: new[column.name] for column in schema.steps.columns if column.name not in _STEP_KEY}


def _keep(statement: Any, *unique: str) -> Any:
    return statement.on_conflict_do_nothing(index_elements=unique)


# SQLAlchemy says how many rows an INSERT wrote only when it is asked; here that tells who won.
_COUNTED = {"preserve_rowcount": True}

_MYSQL = _Dialect(
    # Not INSERT IGNORE: that also cuts what is too long, and says nothing.
    insert_or_keep=mysql.insert(schema.sagas).on_duplicate_key_update(id=schema.sagas.c.id),
    insert_arrival=mysql.insert(schema.arrivals).on_duplicate_key_update(task=schema.arrivals.c.task),
    counts_inserts=False,
    upsert=_mysql_upsert(mysql.insert(schema.steps)),
)
DIALECTS: Mapping[str, _Dialect] = {
    "postgresql": _Dialect(
        insert_or_keep=_keep(postgresql.insert(schema.sagas), "name", "key").execution_options(**_COUNTED),
        insert_arrival=_keep(postgresql.insert(schema.arrivals), "task"),
        upsert=_upsert(postgresql.insert(schema.steps)),
    ),
    "sqlite": _Dialect(
        insert_or_keep=_keep(sqlite.insert(schema.sagas), "name", "key").execution_options(**_COUNTED),
        insert_arrival=_keep(sqlite.insert(schema.arrivals), "task"),
        upsert=_upsert(sqlite.insert(schema.steps)),
    ),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}


#: The same, but it passes by a saga that another transaction has locked, in place of waiting for that.
_COMPARE_AND_SET_IF_FREE = (
    update(schema.sagas)
    .where(
        schema.sagas.c.id
        == select(schema.sagas.c.id)
        .where(schema.sagas.c.id == bindparam("_id"), schema.sagas.c.revision == bindparam("_revision"))
        .with_for_update(skip_locked=True, key_share=True)
        .cte("free")
        .c.id
    )
    .values({name: bindparam(name, type_=schema.sagas.c[name].type) for name in MUTABLE_FIELDS})
)


@functools.cache
def save_at_once(steps: int, *, if_free: bool = False) -> Any:
    """Return PostgreSQL's statement that compares and sets, and writes this number of steps if it won.

    `if_free`: pass by a saga that another transaction has locked.
    """
    compare_and_set = _COMPARE_AND_SET_IF_FREE if if_free else COMPARE_AND_SET
    if not steps:
        return compare_and_set
    won = compare_and_set.returning(schema.sagas.c.id).cte("won")
    columns = list(schema.steps.c)
    rows = [
        select(*(cast(bindparam(f"{c.name}_{n}", type_=c.type), c.type) for c in columns)).select_from(won)
        for n in range(steps)
    ]
    source = rows[0] if steps == 1 else union_all(*rows)
    insertion = postgresql.insert(schema.steps).from_select(columns, source)
    return _upsert(insertion).add_cte(won).execution_options(**_COUNTED)


def parameters_of(saga: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the parameters of `save_at_once`: those of `COMPARE_AND_SET`, and the rows of the steps."""
    return {**saga, **{f"{name}_{number}": value for number, row in enumerate(steps) for name, value in row.items()}}


def save_together() -> Any:
    """Return PostgreSQL's statement that does the same for many sagas, and returns the ids of those that won.

    It passes by those that another transaction has locked. `sagas`, `steps`, `outbox`: lists of objects, as JSON. No
    two of the first are of one saga. A row of the outbox has its saga in `_saga`, and is put there in the order of
    `_number`: for the messages of one key, that is the order in which they are sent.
    """
    sagas, steps = schema.sagas.c, schema.steps.c
    given = _rows_of("sagas", [column("_id", sagas.id.type), column("_revision", Integer), *map(_typed, _MUTABLE)])
    free = (
        select(*given.c)
        .join_from(given, schema.sagas, (sagas.id == given.c["_id"]) & (sagas.revision == given.c["_revision"]))
        .with_for_update(skip_locked=True, key_share=True, of=schema.sagas)
        .cte("free")
    )
    won = (
        update(schema.sagas)
        .where(sagas.id == free.c["_id"])
        .values({each.name: free.c[each.name] for each in _MUTABLE})
        .returning(sagas.id)
        .cte("won")
    )
    given = _rows_of("steps", map(_typed, steps))
    new = select(*given.c).join_from(given, won, given.c.saga_id == won.c.id)
    written = _upsert(postgresql.insert(schema.steps).from_select(list(steps), new)).cte("written")
    given = _rows_of("outbox", [column("_saga", sagas.id.type), column("_number", Integer), *map(_typed, _PUBLISHED)])
    new = select(*(given.c[each.name] for each in _PUBLISHED)).join_from(given, won, given.c["_saga"] == won.c.id)
    published = insert(schema.outbox).from_select(_PUBLISHED, new.order_by(given.c["_number"])).cte("published")
    return select(won.c.id).add_cte(written).add_cte(published)


def insert_if_free() -> Any:
    """Return PostgreSQL's statement that stores a new saga, and counts it if it was not there.

    It fails if it has to wait for longer than a moment for a transaction that is storing its key: nobody may have to
    wait behind it.
    """
    values = (cast(bindparam(each.name, type_=each.type), each.type) for each in _STARTED)
    return _insert_from(select(*values).select_from(_PATIENCE)).execution_options(**_COUNTED)


def insert_together() -> Any:
    """Return PostgreSQL's statement that does the same for many, and returns the ids of those that were not there.

    `sagas`: a list of objects, as JSON.
    """
    given = _rows_of("sagas", map(_typed, _STARTED))
    new = select(*(given.c[each.name] for each in _STARTED)).select_from(given.join(_PATIENCE, true()))
    return _insert_from(new).returning(schema.sagas.c.id)


def _insert_from(rows: Any) -> Any:
    return _keep(postgresql.insert(schema.sagas).from_select(_STARTED, rows), "name", "key")


#: Set for one statement, before it writes its first row.
_PATIENCE = select(literal_column("set_config('lock_timeout', '100ms', true)")).cte("patience")

#: What a saga has when it is stored.
_STARTED = [schema.sagas.c[name] for name in SAGA_FIELDS]
_MUTABLE = [schema.sagas.c[name] for name in MUTABLE_FIELDS]
#: What a message has before the relay has sent it.
_PUBLISHED = [column for column in schema.outbox.c if column.name not in ("id", "sent_at", "heard")]


def _rows_of(parameter: str, columns: Iterable[Any]) -> Any:
    """Return the rows in a parameter that holds JSON."""
    rows = func.json_to_recordset(bindparam(parameter, type_=JSON))
    return rows.table_valued(*columns, name=f"given_{parameter}").render_derived(with_types=True)


def _typed(of: Column[Any]) -> Any:
    return column(of.name, of.type)


def file_letter(letter: DeadLetter) -> Any:
    """Return the statement that opens a dead letter, or resolves the open ones of its step."""
    if letter.resolved_at is None:
        return insert(schema.dead_letters).values(row_of(letter, LETTER_FIELDS))
    table = schema.dead_letters.c
    return (
        update(schema.dead_letters)
        .where(table.saga_id == letter.saga_id, table.step == letter.step, table.resolved_at.is_(None))
        .values(row_of(letter, ("resolved_at", "resolution", "reason", "actor")))
    )
