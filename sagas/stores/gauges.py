"""The statements behind the numbers that are watched. `SqlQueries` runs them; each finds what it counts by an index."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select

from sagas.stores import schema
from sagas.stores.lists import NOT_PROGRESSING

__all__ = ["first_due", "not_progressing", "open_letters"]

_sagas, _letters = schema.sagas.c, schema.dead_letters.c


def not_progressing() -> Select[Any]:
    """Count the sagas of each name whose next step nobody begins."""
    query = select(_sagas.name, func.count().label("count")).group_by(_sagas.name)
    return query.where(NOT_PROGRESSING)


def open_letters() -> Select[Any]:
    """Count the open dead letters of the sagas of each name."""
    query = select(_sagas.name, func.count().label("count")).join_from(schema.dead_letters, schema.sagas)
    return query.where(_letters.resolved_at.is_(None)).group_by(_sagas.name)


def first_due() -> Select[Any]:
    """Say when the saga is due, or was, that recovery has to look at first."""
    return select(func.min(_sagas.next_check_at)).where(_sagas.next_check_at.is_not(None))
