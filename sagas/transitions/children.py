"""What a child saga and its parent do to each other.

Each is a saga with a record of its own. A step of the parent starts the child, in the write that makes the step wait.
The write that brings the child to rest makes that step due, so whoever looks at the parent next finds what became of
the child.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sagas.checkpoints import Direction, SagaStatus, StepRecord, StepStatus, replace
from sagas.transitions.case import Case, Change, Failure, Outcome, Verdict
from sagas.transitions.ends import after_step, compensate, end_failed, released
from sagas.transitions.messages import fail
from sagas.transitions.waits import ended

__all__ = ["Child", "Children", "again_at", "await_child", "begin", "due_children", "undo"]

#: Seconds after which a parent looks at a child that has not reported. It never needs to, unless somebody deletes rows:
#: so it looks at the age of the wait next, and next at double that.
_FIRST_LOOK, _LAST_LOOK = timedelta(minutes=1), timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """What a parent sees of its child."""

    id: str
    name: str
    status: SagaStatus
    trouble: str | None = None  #: why it compensates, or is stuck
    result: str = "null"  #: JSON: what its steps returned, if it is COMPLETED

    def __str__(self) -> str:
        why = f": {self.trouble}" if self.trouble else ""
        return f"its child saga {self.name!r} ({self.id}) is {self.status}{why}"


#: By id. A child that is not there was deleted.
Children = Mapping[str, Child]


def begin(case: Case, name: str, owner: str, child_id: str) -> Change:
    """The node of a step has made its child saga, which is stored together with this, or not at all."""
    step = case.record.step(name)
    if step.owner != owner or not case.forward:
        refusal = Failure(Outcome.TERMINAL, "its child saga was not started: the saga has moved on")
        return fail(case, name, owner, Direction.FORWARD, refusal)
    step = released(
        step,
        StepStatus.WAITING,
        None,
        opened_at=step.opened_at or case.now,
        due_at=case.now + _FIRST_LOOK,
        child_id=child_id,
        error=None,
    )
    return case.set(step).done(Verdict.PARTED)


def due_children(case: Case) -> list[str]:
    """Return the children that a look at the saga, or a compensation in it, has to know of."""
    return [
        step.child_id
        for step in case.record.steps.values()
        if step.child_id is not None
        and (step.held or (step.status is StepStatus.WAITING and step.due_at is not None and step.due_at <= case.now))
    ]


def look(case: Case, step: StepRecord, children: Children) -> Change:
    """A step waits for its child saga, and it is time to look what became of that."""
    assert step.child_id is not None
    child = children.get(step.child_id)
    if child is None:
        return _gone(case, step)
    match child.status:
        case SagaStatus.COMPLETED if case.forward:
            return ended(case, step, result=child.result)
        case SagaStatus.COMPENSATED if case.forward:
            return end_failed(case, step, Failure(Outcome.TERMINAL, str(child)))
        case SagaStatus.COMPENSATED:
            step = released(step, StepStatus.COMPENSATED, case.now, due_at=None, error=None)
            return after_step(case.set(step), step, Verdict.CONTINUE)
        case SagaStatus.COMPLETED:  # it was not told, or completed all the same: tell it once more
            step = released(step, StepStatus.COMPENSATING, None, due_at=None, error=None)
            return case.set(step).done(Verdict.DISPATCH)
    error = str(child) if child.status is SagaStatus.STUCK else None
    return case.set(replace(step, due_at=again_at(case, step), error=error)).done(Verdict.GO_AWAY)


def again_at(case: Case, step: StepRecord) -> datetime:
    """Return when a step looks again that waits for children."""
    age = case.now - (step.opened_at or case.now)
    return case.now + min(max(age, _FIRST_LOOK), _LAST_LOOK)


def _gone(case: Case, step: StepRecord) -> Change:
    if not case.forward:
        step = step.move(StepStatus.COMPENSATING)
    error = f"its child saga {step.child_id} is gone: it was deleted, and nobody knows what it left"
    return end_failed(case, step, Failure(Outcome.IN_DOUBT, error))


def await_child(case: Case, name: str, owner: str, children: Children) -> Change:
    """The holder of a step's compensation has told the child saga to compensate. The step is done when that is."""
    step = case.record.step(name)
    if step.owner != owner or case.forward:
        return case.refuse(f"its claim was taken over; the step is {step.status}")
    if step.child_id is None:  # it never had one
        step = released(step, StepStatus.COMPENSATED, case.now, error=None)
        return after_step(case.set(step), step, Verdict.CONTINUE)
    child = children.get(step.child_id)
    if child is None:
        return end_failed(case, step, Failure(Outcome.IN_DOUBT, f"its child saga {step.child_id} is gone"))
    step = released(step, StepStatus.WAITING, None, opened_at=case.now, due_at=case.now)
    case = case.set(step)
    if child.status is SagaStatus.COMPLETED:
        raise AssertionError(f"{case.about}: {child}, though it was told to compensate")
    change = look(case, step, children)
    return replace(change, verdict=Verdict.PARTED) if change.verdict is Verdict.GO_AWAY else change


def undo(case: Case, why: str) -> Change:
    """The parent of a saga compensates: so does the saga, though it may be COMPLETED."""
    if not case.forward:
        return case.refuse(f"it is {case.record.status} already", Verdict.SETTLED)
    return compensate(case, why)
