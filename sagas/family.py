"""What the engine does between a parent and its child sagas, beside the rules: it looks, tells, and sends."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sagas import transitions
from sagas.checkpoints import SagaRecord, SagaStatus, StepRecord, StepStatus, tells_parent
from sagas.errors import DefinitionMissing, PayloadUnreadable, SagaNotFound, StoreRefused, StoreUnavailable
from sagas.execution import LONGEST_ERROR, Execution
from sagas.observers import Start
from sagas.plan import plan
from sagas.text import clean
from sagas.transitions import Begun, Case, Child, Children, Verdict

if TYPE_CHECKING:
    from sagas.orchestrator import Orchestrator
    from sagas.stores import CheckpointStore

__all__ = ["children", "has_result", "tell", "traced", "undo", "waits_for"]

logger = logging.getLogger(__name__)


def waits_for(record: SagaRecord, child: SagaRecord) -> bool:
    """Tell whether a step of a saga waits for this child."""
    assert child.parent_step is not None
    return record.step(child.parent_step).child_id == child.id


def traced(engine: Orchestrator, begun: Begun) -> Begun:
    """Return a child that is about to be stored with the trace that it belongs to."""
    with engine.observers.during(Start(begun.child)) as start:
        return replace(begun, child=replace(begun.child, traceparent=start.traceparent))


def tell(engine: Orchestrator, before: SagaRecord, after: SagaRecord, begun: Sequence[SagaRecord]) -> None:
    """Send the messages of children that were stored, and look at the parent of a saga that came to rest.

    Whatever fails here is left to recovery: the child, or the step of the parent, is due.
    """
    try:
        for child in begun:
            engine.observers.changed(None, child)
            if child.dispatches:
                engine.send(plan(engine.definition(child), child))
        if after.parent_id is not None and tells_parent(before, after):
            parent = engine.examine(after.parent_id)
            if parent.verdict is Verdict.DISPATCH and parent.plan:
                engine.send(parent.plan)
    except (DefinitionMissing, PayloadUnreadable, SagaNotFound, StoreUnavailable, StoreRefused) as error:
        logger.warning("saga %s (%s): recovery will take up its family: %s", after.name, after.id, error)


def children(store: CheckpointStore, case: Case) -> Children:
    """Return the children of a saga that a rule has to know of."""
    found = {}
    for child_id in transitions.due_children(case):
        try:
            record = store.load(child_id)
        except SagaNotFound:
            continue
        found[child_id] = Child(
            id=child_id,
            name=record.name,
            status=record.status,
            trouble=record.trouble,
            result=_results_of(record) if record.status is SagaStatus.COMPLETED else "null",
        )
    return found


def undo(engine: Orchestrator, attempt: Execution) -> None:
    """Have the child saga of a step compensate, whatever it has come to."""
    parent = attempt.record
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


def has_result(step: StepRecord) -> bool:
    """Tell whether a step has a result that others may ask for."""
    return step.status in (StepStatus.DONE, StepStatus.SKIPPED) and step.kind != "timer"


def _results_of(record: SagaRecord) -> str:
    """Return what the steps of a saga returned, as JSON by name."""
    texts = {step.name: step.result or "null" for step in record.steps.values() if has_result(step)}
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in texts.items()) + "}"
