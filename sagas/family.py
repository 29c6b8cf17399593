"""What the engine does between a parent and its child sagas, beside the rules: it looks, tells, and sends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sagas import transitions
from sagas.checkpoints import AT_REST, SagaRecord, SagaStatus, StepStatus, replace, tells_parent
from sagas.each import Each
from sagas.engine import Engine
from sagas.errors import DefinitionMissing, PayloadUnreadable, SagaNotFound, StoreRefused, StoreUnavailable
from sagas.execution import LONGEST_ERROR, Execution
from sagas.fan_out import tell_items, undo_items
from sagas.observers import Start
from sagas.plan import plan
from sagas.results import results_of
from sagas.text import clean
from sagas.transitions import Begun, Case, Child, Children, Verdict

if TYPE_CHECKING:
    from sagas.stores import CheckpointStore

__all__ = ["children", "tell", "traced", "undo", "waits_for"]

logger = logging.getLogger(__name__)


def waits_for(record: SagaRecord, child: SagaRecord) -> bool:
    """Tell whether a step of a saga waits for this child."""
    assert child.parent_step is not None
    step = record.step(child.parent_step)
    return step.child_id == child.id or (child.parent_item is not None and step.status is StepStatus.WAITING)


def traced(engine: Engine, begun: Begun) -> Begun:
    """Return children that are about to be stored with the trace that they belong to."""
    return Begun([_traced(engine, child) for child in begun.children])


def _traced(engine: Engine, child: SagaRecord) -> SagaRecord:
    with engine.observers.during(Start(child)) as start:
        return replace(child, traceparent=start.traceparent)


def tell(engine: Engine, before: SagaRecord, after: SagaRecord, begun: Sequence[SagaRecord]) -> None:
    """Send the messages of children that were stored, and look at the parent of a saga that came to rest.

    Whatever fails here is left to recovery: the child, or the step of the parent, is due.
    """
    try:
        for child in begun:
            engine.observers.changed(None, child)
        if plans := [plan(engine.definition(child), child) for child in begun if child.dispatches]:
            engine.send_many(plans)
        if after.parent_item is not None:
            if tells_parent(before, after) and after.status in AT_REST:
                tell_items(engine, after)
        elif after.parent_id is not None and tells_parent(before, after):
            parent = engine.examine(after.parent_id)
            if parent.verdict is Verdict.DISPATCH and parent.plan:
                engine.send(parent.plan)
    except (DefinitionMissing, PayloadUnreadable, SagaNotFound, StoreUnavailable, StoreRefused) as error:
        logger.warning("saga %s (%s): recovery will take up its family: %s", after.name, after.id, error)


def children(store: CheckpointStore, case: Case) -> Children:
    """Return the children of a saga that a rule has to know of."""
    due, found = set(transitions.due_children(case)), {}
    for step in case.record.steps.values():
        if step.child_id is None or step.child_id not in due:
            continue
        try:
            record = store.load(step.child_id)
        except SagaNotFound:
            continue
        nodes = case.node(step).child
        assert nodes is not None
        completed = record.status is SagaStatus.COMPLETED
        found[step.child_id] = Child(
            id=step.child_id,
            name=record.name,
            status=record.status,
            trouble=record.trouble,
            result=results_of(store, record, nodes.steps) if completed else "null",
        )
    return found


def undo(engine: Engine, attempt: Execution) -> None:
    """Have the child saga of a step compensate, whatever it has come to."""
    parent = attempt.record
    if isinstance(attempt.step.step, Each):
        undo_items(engine, parent, attempt.name)
        return
    child_id = parent.step(attempt.name).child_id
    if child_id is None:
        return
    why = clean(f"its parent {parent.name!r} ({parent.id}) compensates: {parent.error}", LONGEST_ERROR)
    try:
        undone = engine.change(child_id, lambda case: transitions.undo(case, why))
    except SagaNotFound:
        return  # the rule says what comes of that
    if undone.verdict is Verdict.DISPATCH and undone.plan:
        engine.send(undone.plan)
