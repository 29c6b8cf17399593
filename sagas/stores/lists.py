"""The statements behind lists and counts. `SqlQueries` runs them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, case, false, func, null, select, union, union_all

from sagas.checkpoints import FINISHED, SagaStatus, StepStatus, node_of
from sagas.opening import ENDED_EARLY
from sagas.stores import schema
from sagas.stores.codecs import STEP_PAYLOADS
from sagas.stores.filters import Filter
from sagas.text import is_clean

__all__ = [
    "MANY_IDLE_CHECKS",
    "SETTLED",
    "NOT_PROGRESSING",
    "SUMMARY",
    "audited",
    "counted",
    "ended",
    "filtered",
    "in_flight",
    "listed",
    "may_be_undone",
    "standing",
    "steps_of",
    "tallied",
    "with_prefix",
]

_sagas, _steps, _letters, _history = schema.sagas.c, schema.steps.c, schema.dead_letters.c, schema.history.c

_root = schema.sagas.alias("root")

#: What lists read of a saga. Its input may be large, and may be encrypted with a key that is gone.
SUMMARY = [column for column in _sagas if column is not _sagas.input]

_UNFINISHED = tuple(status for status in SagaStatus if status not in FINISHED)

#: It is a completed child in a tree that is not finished.
_MAY_BE_UNDONE = (_sagas.status == SagaStatus.COMPLETED) & _sagas.root_id.in_(
    select(_root.c.id).where(_root.c.status.in_(_UNFINISHED))
)

#: A saga does not stand at a step of one of these, whichever way it goes.
SETTLED = (StepStatus.DONE, StepStatus.COMPENSATED, StepStatus.SKIPPED)

#: A saga whose next step nobody had begun at so many looks stands still: a person should know.
MANY_IDLE_CHECKS = 3
NOT_PROGRESSING = _sagas.next_check_at.is_not(None) & (_sagas.idle_checks >= MANY_IDLE_CHECKS)


def _stands_at(step: str) -> ColumnElement[bool]:
    begun = select(_steps.saga_id).where(
        _steps.node == node_of(step), _steps.started_seq > 0, _steps.status.not_in(SETTLED)
    )
    return _sagas.id.in_(begun)


def filtered(where: Filter) -> list[ColumnElement[bool]]:
    """Return what a filter asks for, as conditions on the table of sagas."""
    stuck = select(_steps.saga_id).where(
        _steps.status == StepStatus.STUCK, _steps.error.icontains(where.error or "", autoescape=True)
    )
    each: tuple[tuple[object, Callable[[Any], ColumnElement[bool]]], ...] = (
        (where.ids, _sagas.id.in_),
        (where.name, _sagas.name.__eq__),
        (where.version, _sagas.version.__eq__),
        (sorted(where.statuses), _sagas.status.in_),
        (where.key, _sagas.key.__eq__),
        (where.correlation_id, _sagas.correlation_id.__eq__),
        (where.family, lambda root: (_sagas.id == root) | (_sagas.root_id == root)),
        (where.parent, _sagas.parent_id.__eq__),
        (where.step, _stands_at),
        (where.error, lambda text: _sagas.error.icontains(text, autoescape=True) | _sagas.id.in_(stuck)),
        (where.created_after, _sagas.created_at.__ge__),
        (where.created_before, _sagas.created_at.__lt__),
        (where.updated_before, _sagas.updated_at.__lt__),
    )
    conditions = [fits(value) for value, fits in each if value not in (None, [])]
    texts = where.name, where.key, where.correlation_id, where.family, where.parent, where.step, where.error
    if not _are_clean(*texts, *(where.ids or ())):
        return [false()]
    if where.attention:
        # As a union, each part is found by its own index; as an "or", every saga would be looked at.
        needing = union(
            select(_sagas.id).where(_sagas.status == SagaStatus.STUCK),
            select(_sagas.id).where(NOT_PROGRESSING),
            select(_letters.saga_id).where(_letters.resolved_at.is_(None)),
        )
        conditions.append(_sagas.id.in_(needing))
    return conditions


def _are_clean(*texts: str | None) -> bool:
    """Tell whether these can be looked for: no database holds any other text, and some refuse to look for it."""
    return all(is_clean(text) for text in texts if text is not None)


def listed(where: Filter, *, limit: int, before: str | None, after: str | None) -> Select[Any]:
    """Newest first; with `after`, oldest first."""
    query = select(*SUMMARY).where(*filtered(where)).limit(limit)
    if not _are_clean(before, after):
        return query.where(false())
    if after is not None:
        return query.where(_sagas.id > after).order_by(_sagas.id)
    if before is not None:
        query = query.where(_sagas.id < before)
    return query.order_by(_sagas.id.desc())


def steps_of(ids: list[str]) -> Select[Any]:
    """The steps of these sagas, without their payloads."""
    columns = [column for column in _steps if column.name not in STEP_PAYLOADS]
    return select(*columns).where(_steps.saga_id.in_(ids)).order_by(_steps.saga_id, _steps.seq)


def counted(where: Filter) -> Select[Any]:
    """How many fit."""
    return select(func.count()).select_from(schema.sagas).where(*filtered(where))


def tallied(where: Filter) -> Select[Any]:
    """How many of those that fit have each name and status."""
    actor = _sagas.name, _sagas.status
    return select(*actor, func.count().label("count")).where(*filtered(where)).group_by(*actor).order_by(*actor)


def audited(
    *, actor: str | None, name: str | None, since: datetime | None, limit: int, before: int | None
) -> Select[Any]:
    """What operators did, newest first."""
    each: tuple[tuple[object, Callable[[Any], ColumnElement[bool]]], ...] = (
        (actor, _history.actor.__eq__),
        (name, _sagas.name.__eq__),
        (since, _history.at.__ge__),
        (before, _history.id.__lt__),
    )
    asked = [fits(value) for value, fits in each if value is not None] if _are_clean(actor, name) else [false()]
    return (
        select(schema.history, _sagas.name, _sagas.key, _sagas.parent_id)
        .join(schema.sagas, _sagas.id == _history.saga_id)
        .where(_history.actor.is_not(None), *asked)
        .order_by(_history.id.desc())
        .limit(limit)
    )


def ended(status: SagaStatus, since: datetime, among: int) -> Select[Any]:
    """Of those started last: times of change have no index, and need none for this."""
    newest = select(_sagas.updated_at).where(_sagas.status == status).order_by(_sagas.id.desc()).limit(among).subquery()
    return select(func.count()).select_from(newest).where(newest.c.updated_at >= since)


def in_flight() -> Select[Any]:
    """The unfinished, by what they were started with and their status."""
    return _by_definition().where(_sagas.status.in_(_UNFINISHED))


def may_be_undone() -> Select[Any]:
    """The completed children that their parents may still have to compensate, in the same way."""
    return _by_definition().where(_MAY_BE_UNDONE)


def standing(name: str, version: int, outline: str) -> Select[Any]:
    """Where those of one outline stand, and which waits ahead have their signals."""
    early = (_steps.kind == "wait") & (_steps.started_seq == 0) & _steps.status.in_(ENDED_EARLY)
    mine = (
        _sagas.name == name,
        _sagas.version == version,
        _sagas.outline == outline,
        _sagas.status.in_(_UNFINISHED) | _MAY_BE_UNDONE,
    )
    begun = case((_sagas.dispatches > 0, 0), else_=-1)
    at = (
        select(_sagas.id, func.coalesce(func.max(case((early, None), else_=_steps.stage)), begun).label("stage"))
        .outerjoin(schema.steps, _steps.saga_id == _sagas.id)
        .where(*mine)
        .group_by(_sagas.id, _sagas.dispatches)
        .cte("at")
    )
    kept = select(at.c.stage, _steps.node.label("early"), at.c.id).join(schema.steps, _steps.saga_id == at.c.id)
    each = union_all(
        select(at.c.stage, null().label("early"), at.c.id), kept.where(early, _steps.stage > at.c.stage)
    ).subquery()
    groups = each.c.stage, each.c.early
    return (
        select(*groups, func.count().label("count"), func.min(each.c.id).label("example"))
        .group_by(*groups)
        .order_by(*groups)
    )


def _by_definition() -> Select[Any]:
    actor = _sagas.name, _sagas.version, _sagas.outline, _sagas.status
    return (
        select(
            *actor,
            func.count().label("count"),
            func.min(_sagas.created_at).label("oldest"),
            func.min(_sagas.id).label("example"),  # ids go up with time
        )
        .group_by(*actor)
        .order_by(*actor)
    )


def with_prefix(prefix: str, limit: int) -> Select[Any]:
    """The sagas whose ids begin so."""
    return select(*SUMMARY).where(_sagas.id.startswith(prefix, autoescape=True)).order_by(_sagas.id).limit(limit)
