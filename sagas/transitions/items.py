"""What the items of an `Each` and its step do to each other.

Every item is a child saga. All of them are stored in the write that makes the step wait, and so many begin at once as
may be in progress; the end of one begins the next. The step counts them, and reads none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from sagas.checkpoints import Direction, Items, StepRecord, StepStatus, replace
from sagas.each import Each
from sagas.transitions.case import Case, Change, Failure, Outcome, Verdict
from sagas.transitions.children import again_at
from sagas.transitions.ends import after_step, end_failed, move_on, released
from sagas.transitions.messages import fail, succeed
from sagas.transitions.waits import ended

__all__ = ["Counts", "await_items", "begin_items", "due_items", "items_ended", "look_at_items"]

_FIRST_LOOK = timedelta(minutes=1)


#: By the name of the step.
Counts = Mapping[str, Items]


def begin_items(case: Case, name: str, owner: str, total: int) -> Change:
    """The node of a step has made its items, which are stored together with this, or not at all."""
    step = case.record.step(name)
    if step.owner != owner or not case.forward:
        refusal = Failure(Outcome.TERMINAL, "its items were not started: the saga has moved on")
        return fail(case, name, owner, Direction.FORWARD, refusal)
    if total == 0:
        return succeed(case, name, owner, Direction.FORWARD, None)
    opened_at = step.opened_at or case.now
    step = released(step, StepStatus.WAITING, None, opened_at=opened_at, due_at=case.now + _FIRST_LOOK, error=None)
    return case.set(step).done(Verdict.PARTED)


def due_items(case: Case) -> list[str]:
    """Return the steps whose items a look at the saga has to count."""
    return [
        step.name
        for step in case.record.steps.values()
        if step.kind == "each" and step.status is StepStatus.WAITING and step.due_at is not None
        and step.due_at <= case.now
    ]  # fmt: skip


def look_at_items(case: Case, name: str, items: Items) -> Change:
    """A step waits for its items. See whether they are at their ends."""
    step = case.record.step(name)
    if step.status is not StepStatus.WAITING:
        return case.refuse(f"the step is {step.status}")
    node = case.node(step).step
    assert isinstance(node, Each)
    if case.forward and items.failed > node.allowed(items.total):
        said = f"{items.failed} of {items.total} items failed"
        return end_failed(case, step, Failure(Outcome.TERMINAL, f"{said}: {items.trouble}"))
    if items.working or items.waiting:
        return _go_on_waiting(case, step, items)
    if case.forward:
        return ended(case, step, result=None)
    if items.completed:  # some were not told to compensate: who was to tell them is gone
        step = released(step, StepStatus.COMPENSATING, None, due_at=None, error=None)
        return case.set(step).done(Verdict.DISPATCH)
    step = released(step, StepStatus.COMPENSATED, case.now, due_at=None, error=None)
    return after_step(case.set(step), step, Verdict.CONTINUE)


def items_ended(case: Case, name: str, items: Items) -> Change:
    """Items of a step came to rest: see whether that was the last, or one too many that failed."""
    return move_on(case, look_at_items(case, name, items))


def _go_on_waiting(case: Case, step: StepRecord, items: Items) -> Change:
    return case.set(replace(step, due_at=again_at(case, step), error=items.trouble)).done(Verdict.GO_AWAY)


def await_items(case: Case, name: str, owner: str, items: Items) -> Change:
    """The holder of a step's compensation has told items to compensate. The step is done when all of them are."""
    step = case.record.step(name)
    if step.owner != owner or case.forward:
        return case.refuse(f"its claim was taken over; the step is {step.status}")
    step = released(step, StepStatus.WAITING, None, opened_at=case.now, due_at=case.now)
    change = look_at_items(case.set(step), name, items)
    return replace(change, verdict=Verdict.PARTED) if change.verdict is Verdict.GO_AWAY else change
