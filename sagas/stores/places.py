"""The statements by which an item of an `Each` that has ended passes its place on to the next one.

They are built once, as those of `statements` are: every item but the last passes its place on.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Select, bindparam, case, exists, literal_column, select, update

from sagas.checkpoints import AT_REST, Direction, StepStatus
from sagas.stores import schema

__all__ = ["AT_REST_NOW", "BEGIN", "ITEM", "LOCK", "MOVE", "PASS", "TURN", "pass_at_once"]

_sagas, _steps, _fan_outs = schema.sagas.c, schema.steps.c, schema.fan_outs.c
_parent: BindParameter[Any] = bindparam("_parent")
_step: BindParameter[Any] = bindparam("_step")
_ended: BindParameter[Any] = bindparam("_ended")


def _constant(value: str | int) -> ColumnElement[Any]:
    """Return a value that stands in the statement itself: a prepared one has parameters for what changes only."""
    return literal_column(repr(value))


AT_REST_NOW = _sagas.status.in_([_constant(status.value) for status in AT_REST])

#: Lock the parent, so that it cannot turn meanwhile. No row where it compensates, or is gone.
LOCK = (
    select(_sagas.id)
    .where(_sagas.id == _parent, _sagas.direction == _constant(Direction.FORWARD.value))
    .with_for_update()
)

# No EXISTS: for its first row, PostgreSQL would rather scan a table that it has not analysed yet.
_status = select(_steps.status).where(_steps.saga_id == _parent, _steps.node == _step).scalar_subquery()
_OF_STEP = _fan_outs.saga_id == _parent, _fan_outs.step == _step
_WAITS = _status == _constant(StepStatus.WAITING.value)

#: The number of the next item, if the step waits for its items. The parent is locked.
TURN = select(_fan_outs.next_item).where(*_OF_STEP, _WAITS).with_for_update()

_IS_NEXT = _sagas.parent_id == _parent, _sagas.parent_step == _step, _sagas.parent_item == bindparam("_number")
ITEM = select(schema.sagas).where(*_IS_NEXT)

#: With that, the parent knows of the item that has ended. One that is at rest is not looked at any more then.
PASS = (
    update(schema.sagas)
    .where(_sagas.id == _ended, _sagas.place_passed.is_(None))
    .values(place_passed=_constant(1), next_check_at=case((AT_REST_NOW, None), else_=_sagas.next_check_at))
)

_BEGUN = {
    "next_check_at": bindparam("_check_at", type_=_sagas.next_check_at.type),
    "stage_ready_at": bindparam("_now", type_=_sagas.stage_ready_at.type),
    "updated_at": bindparam("_now", type_=_sagas.updated_at.type),
    "dispatches": _constant(1),
    "revision": _sagas.revision + _constant(1),
}
BEGIN = update(schema.sagas).where(_sagas.id == bindparam("_id")).values(_BEGUN)

MOVE = update(schema.fan_outs).where(*_OF_STEP).values(next_item=_fan_outs.next_item + _constant(1))


def pass_at_once() -> Select[Any]:
    """Return PostgreSQL's statement that does all of this. It returns the row of the item that was begun, if any.

    The order of its locks is the same: the parent, then the row of the fan-out.
    """
    parent = LOCK.cte("parent")
    turn = (
        select(_fan_outs.next_item)
        .join_from(schema.fan_outs, parent, _fan_outs.saga_id == parent.c.id)
        .where(*_OF_STEP, _WAITS)
        .with_for_update(of=schema.fan_outs)
        .cte("turn")
    )
    # Subqueries in place of joins: a join could read all the items to find one of them.
    number = select(turn.c.next_item).scalar_subquery()
    item = (
        select(_sagas.id)
        .where(_sagas.parent_id == _parent, _sagas.parent_step == _step, _sagas.parent_item == number)
        .cte("item")
    )
    passed = PASS.where(exists(select(item.c.id))).returning(_sagas.id).cte("passed")
    begun = (
        update(schema.sagas)
        .where(_sagas.id == select(item.c.id).scalar_subquery(), exists(select(passed.c.id)))
        .values(_BEGUN)
        .returning(*schema.sagas.c)
        .cte("begun")
    )
    moved = MOVE.where(exists(select(begun.c.id))).cte("moved")
    return select(*begun.c).add_cte(moved)
