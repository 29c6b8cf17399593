"""Schedules and their ticks in SQL.

One tick starts one saga: the worker that decides about a tick advances the schedule by compare-and-set, and inserts the
tick and the saga in the same transaction. A worker that loses this race changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, delete, exists, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from sagas.checkpoints import FINISHED, SagaStatus
from sagas.stores import audit, schema
from sagas.stores.engines import reading
from sagas.text import clean
from sagas.ticks import Decision, Running, ScheduleState, Tick, TickOutcome

if TYPE_CHECKING:
    from sagas.stores.protocols import OperatorStore

__all__ = ["change", "confirm", "count_old", "declare", "purge", "running", "settle", "states", "ticks"]

_schedules, _ticks, _sagas = schema.schedules.c, schema.ticks.c, schema.sagas.c
_STATE_FIELDS = tuple(field.name for field in fields(ScheduleState))
_TICK_FIELDS = tuple(field.name for field in fields(Tick))
#: What is decided about a tick that waited. Who asked for it stays.
_SETTLED_FIELDS = ("outcome", "why", "saga_id", "decided_at")

#: Started ticks among which a saga that runs is looked for, newest first. Only `overlap="allow"` leaves more than one.
_LOOKED_BACK = 100

#: Ticks that are deleted in one transaction.
_PURGED_AT_ONCE = 1_000

#: Starts the saga of a tick in the transaction that it is given. Returns the saga's id.
Start = Callable[[Connection, datetime], str]


def states(store: OperatorStore, names: Collection[str] | None = None) -> Sequence[ScheduleState]:
    """Return what is stored of schedules; of all of them if no names are given."""
    query = select(*(_schedules[name] for name in _STATE_FIELDS)).order_by(_schedules.name)
    if names is not None:
        query = query.where(_schedules.name.in_(sorted(names)))
    with reading(store.engine) as connection:
        return [ScheduleState(**row) for row in connection.execute(query).mappings()]


def running(store: OperatorStore, name: str) -> Running | None:
    """Return the newest saga of a schedule that has not ended, if there is one."""
    started = (
        select(_ticks.saga_id)
        .where(_ticks.schedule == name, _ticks.outcome == TickOutcome.STARTED.value)
        .order_by(_ticks.at.desc())
        .limit(_LOOKED_BACK)
        .subquery()
    )
    query = (
        select(_sagas.id, _sagas.status)
        .join(started, started.c.saga_id == _sagas.id)
        .where(_sagas.status.not_in(sorted(FINISHED)))
        .order_by(_sagas.id.desc())
        .limit(1)
    )
    with reading(store.engine) as connection:
        found = connection.execute(query).first()
    return None if found is None else Running(found.id, SagaStatus(found.status))


def declare(store: OperatorStore, state: ScheduleState) -> bool:
    """Store a schedule that was not there. Tell whether that is still so."""
    with store.connections.writing() as connection:
        try:
            with connection.begin_nested():
                connection.execute(insert(schema.schedules).values(_row(state, _STATE_FIELDS)))
        except IntegrityError:  # another worker, started at the same time, was quicker
            return False
        return True


def confirm(store: OperatorStore, state: ScheduleState, now: datetime) -> None:
    """Note that a worker has this definition. That is no change: who decides at the same time is not disturbed."""
    as_read = _schedules.name == state.name, _schedules.seen_at == state.seen_at
    with store.connections.writing() as connection:
        connection.execute(update(schema.schedules).where(*as_read).values(seen_at=now))


def settle(
    store: OperatorStore,
    before: ScheduleState,
    decision: Decision,
    start: Start,
    entry: audit.MaintenanceEntry | None = None,
) -> ScheduleState | None:
    """Store a decision and start the saga that it asks for, in one transaction. None when somebody else was quicker.

    `entry`: what is kept of the operator who asked for it.
    """
    after = replace(decision.state, revision=before.revision + 1)
    with store.connections.writing() as connection:
        if not _compare_and_set(connection, before, after):
            return None
        new = _write(connection, decision.ticks)
        if decision.start is not None and decision.start in new:
            saga_id = start(connection, decision.start)
            mine = _ticks.schedule == before.name, _ticks.at == decision.start
            connection.execute(update(schema.ticks).where(*mine).values(saga_id=saga_id))
        if entry is not None:
            audit.note(connection, entry)
    return after


def change(store: OperatorStore, name: str, values: Mapping[str, Any], entry: audit.MaintenanceEntry) -> bool:
    """Change a schedule for an operator, and keep who did it and why. Tell whether there is such a schedule."""
    with store.connections.writing() as connection:
        mine = update(schema.schedules).where(_schedules.name == name)
        if not connection.execute(mine.values(revision=_schedules.revision + 1, **values)).rowcount:
            return False
        audit.note(connection, entry)
        return True


def ticks(
    store: OperatorStore, name: str, *, limit: int = 20, before: datetime | None = None, at: datetime | None = None
) -> Sequence[Tick]:
    """Return the ticks of a schedule, newest first. `before`: a nominal time, for the next page. `at`: this one."""
    query = select(*(_ticks[field] for field in _TICK_FIELDS)).where(_ticks.schedule == name)
    if before is not None:
        query = query.where(_ticks.at < before)
    if at is not None:
        query = query.where(_ticks.at == at)
    with reading(store.engine) as connection:
        rows = connection.execute(query.order_by(_ticks.at.desc()).limit(limit)).mappings().all()
    return [Tick(**{**row, "outcome": TickOutcome(row["outcome"])}) for row in rows]


# -- how long ticks are kept ------------------------------------------------------------------------------------------


def count_old(store: OperatorStore, older_than: timedelta, saga: str | None = None) -> int:
    """Return how many ticks `purge` would delete now."""
    query = select(func.count()).select_from(schema.ticks).where(*_old(store.now() - older_than, saga))
    with reading(store.engine) as connection:
        return int(connection.execute(query).scalar_one())


def purge(
    store: OperatorStore, older_than: timedelta, saga: str | None = None, *, reason: str, actor: str | None = None
) -> Iterator[int]:
    """Delete ticks that were decided about before that, some at a time; yield how many after each transaction.

    `saga`: only those of schedules of this saga. A tick that waits, and one whose saga has not ended, is kept. A
    schedule of which no worker has known anything since then is deleted with its last tick, unless it is paused.
    """
    before, entry = store.now() - older_than, None
    detail = f"ticks that were decided about more than {older_than} ago" + ("" if saga is None else f", of {saga!r}")
    page = select(_ticks.schedule, _ticks.at).where(*_old(before, saga)).order_by(_ticks.schedule, _ticks.at)
    while True:
        with store.connections.writing() as connection:
            found = connection.execute(page.limit(_PURGED_AT_ONCE)).all()
            for name in {row.schedule for row in found}:
                ats = [row.at for row in found if row.schedule == name]
                connection.execute(delete(schema.ticks).where(_ticks.schedule == name, _ticks.at.in_(ats)))
            gone = _schedules.seen_at < before, _schedules.paused_at.is_(None), *_of(_schedules.saga, saga)
            left = exists().where(_ticks.schedule == _schedules.name)
            connection.execute(delete(schema.schedules).where(*gone, ~left))
            if found:
                new = audit.MaintenanceEntry(
                    at=store.now(), actor=actor, what="purge", detail=detail, reason=reason, count=0
                )
                entry = entry or audit.note(connection, new)
                audit.count_up(connection, entry, len(found))
        if not found:
            return
        yield len(found)


def _old(before: datetime, saga: str | None) -> list[Any]:
    runs = exists().where(_sagas.id == _ticks.saga_id, _sagas.status.not_in(sorted(FINISHED)))
    conditions = [_ticks.decided_at < before, _ticks.outcome != TickOutcome.QUEUED.value, ~runs]
    if saga is not None:
        conditions.append(_ticks.schedule.in_(select(_schedules.name).where(_schedules.saga == saga)))
    return conditions


def _of(column: Any, value: str | None) -> list[Any]:
    return [] if value is None else [column == value]


# -- within a transaction ---------------------------------------------------------------------------------------------


def _compare_and_set(connection: Connection, before: ScheduleState, after: ScheduleState) -> bool:
    as_read = _schedules.name == before.name, _schedules.revision == before.revision
    statement = update(schema.schedules).where(*as_read).values(_row(after, _STATE_FIELDS))
    return connection.execute(statement).rowcount == 1


def _write(connection: Connection, ticks: Sequence[Tick]) -> set[datetime]:
    """Write ticks, and return those that nothing final was decided about before.

    After a clock was set back, a schedule comes to times that it has been at.
    """
    if not ticks:
        return set()
    mine = _ticks.schedule == ticks[0].schedule, _ticks.at.in_([tick.at for tick in ticks])
    known = {row.at: row.outcome for row in connection.execute(select(_ticks.at, _ticks.outcome).where(*mine))}
    new = [tick for tick in ticks if tick.at not in known]
    waited = [tick for tick in ticks if known.get(tick.at) == TickOutcome.QUEUED]
    if new:
        connection.execute(insert(schema.ticks), [_row(tick, _TICK_FIELDS) for tick in new])
    for tick in waited:
        statement = update(schema.ticks).where(_ticks.schedule == tick.schedule, _ticks.at == tick.at)
        connection.execute(statement.values(_row(tick, _SETTLED_FIELDS)))
    return {tick.at for tick in (*new, *waited)}


def _row(record: Any, names: Sequence[str]) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in names}
    return {name: clean(value) if isinstance(value, str) else value for name, value in row.items()}
