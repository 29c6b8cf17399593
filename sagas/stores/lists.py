"""The statements behind lists and counts. `SqlStore` runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select

from sagas.checkpoints import TERMINAL, SagaStatus, StepStatus
from sagas.stores import schema
from sagas.stores.filters import Filter

__all__ = ["MANY_STALLS", "counted", "filtered", "in_flight", "listed", "steps_of", "tallied", "with_prefix"]

_sagas, _steps, _letters = schema.sagas.c, schema.steps.c, schema.dead_letters.c

_UNFINISHED = tuple(status for status in SagaStatus if status not in TERMINAL)
_SETTLED = (StepStatus.DONE, StepStatus.UNDONE, StepStatus.SKIPPED)

#: A saga that was launched so often without anybody beginning a step stands still: a person should know.
MANY_STALLS = 3


def filtered(where: Filter) -> list[ColumnElement[bool]]:
    """Return what a filter asks for, as conditions on the table of sagas."""
    at_it = select(_steps.saga_id).where(_steps.name == where.step, _steps.status.not_in(_SETTLED))
    each: tuple[tuple[object, Callable[[Any], ColumnElement[bool]]], ...] = (
        (where.ids, _sagas.id.in_),
        (where.name, _sagas.name.__eq__),
        (where.version, _sagas.version.__eq__),
        (sorted(where.statuses), _sagas.status.in_),
        (where.key, _sagas.key.__eq__),
        (where.correlation_id, _sagas.correlation_id.__eq__),
        (where.step, lambda _: _sagas.id.in_(at_it)),
        (where.error, lambda text: _sagas.error.icontains(text, autoescape=True)),
        (where.created_after, _sagas.created_at.__ge__),
        (where.created_before, _sagas.created_at.__lt__),
        (where.updated_before, _sagas.updated_at.__lt__),
    )
    conditions = [fits(value) for value, fits in each if value not in (None, (), [])]
    if where.attention:
        open_letters = select(_letters.saga_id).where(_letters.resolved_at.is_(None))
        still = _sagas.wake_at.is_not(None) & (_sagas.stalls >= MANY_STALLS)
        conditions.append(or_(_sagas.status == SagaStatus.STUCK, _sagas.id.in_(open_letters), still))
    return conditions


def listed(where: Filter, *, limit: int, before: str | None, after: str | None) -> Select[Any]:
    """Newest first; with `after`, oldest first."""
    query = select(schema.sagas).where(*filtered(where)).limit(limit)
    if after is not None:
        return query.where(_sagas.id > after).order_by(_sagas.id)
    if before is not None:
        query = query.where(_sagas.id < before)
    return query.order_by(_sagas.id.desc())


def steps_of(ids: list[str]) -> Select[Any]:
    """Return the query for the steps of some sagas."""
    return select(schema.steps).where(_steps.saga_id.in_(ids))


def counted(where: Filter) -> Select[Any]:
    """Return the query for how many sagas fit a filter."""
    return select(func.count()).select_from(schema.sagas).where(*filtered(where))


def tallied() -> Select[Any]:
    """Return the query for how many sagas of each name have each status."""
    return select(_sagas.name, _sagas.status, func.count().label("count")).group_by(_sagas.name, _sagas.status)


def in_flight() -> Select[Any]:
    """Return the query for the unfinished sagas, by name, version, shape and status."""
    by = _sagas.name, _sagas.version, _sagas.shape, _sagas.status
    return (
        select(
            *by,
            func.count().label("count"),
            func.min(_sagas.created_at).label("oldest"),
            func.min(_sagas.id).label("example"),  # ids go up with time
        )
        .where(_sagas.status.in_(_UNFINISHED))
        .group_by(*by)
        .order_by(*by)
    )


def with_prefix(prefix: str, limit: int) -> Select[Any]:
    """Return the query for the sagas whose id begins like this."""
    return select(schema.sagas).where(_sagas.id.startswith(prefix, autoescape=True)).order_by(_sagas.id).limit(limit)
