"""What people bring to a saga."""

from __future__ import annotations

import enum

from sagas.checkpoints import AT_REST, HistoryKind, Resolution, SagaStatus, StepRecord, StepStatus, replace
from sagas.errors import NotAllowed
from sagas.transitions.case import Case, Change, Verdict
from sagas.transitions.ends import compensate, settle
from sagas.transitions.waits import elapse

__all__ = ["Repair", "cancel", "repair", "resume"]


def cancel(case: Case, reason: str, actor: str | None = None) -> Change:
    """Start compensating on request."""
    record, pivot = case.record, case.saga.pivot
    if record.parent_item is not None:
        raise NotAllowed(
            f"{case.about} is item {record.parent_item} of step {record.parent_step!r} of the saga {record.parent_id}, "
            "which would go on without it: cancel that saga"
        )
    if not case.forward:
        return case.refuse(f"already {record.status}")
    if record.status is SagaStatus.COMPLETED or case.committed:
        at = f"it is {record.status}"
        if pivot is not None and record.status is not SagaStatus.COMPLETED:
            at = f"its pivot {pivot.name!r} is {record.step(pivot.name).status}"
        raise NotAllowed(f"{case.about} can no longer be undone: {at}")
    return compensate(case, reason, actor=actor)


def resume(case: Case, reason: str, actor: str | None = None) -> Change:
    """Launch what is left now, without waiting for a retry or for recovery."""
    stage = case.stage
    if case.record.status in AT_REST or not stage:
        stuck = case.record.status is SagaStatus.STUCK
        hint = "retry, skip or mark its stuck step" if stuck else "nothing is left of it"
        raise NotAllowed(f"{case.about} is {case.record.status} and cannot be resumed: {hint}")
    history = (case.entry(HistoryKind.OPERATOR_RESUME, None, reason, actor),)
    for step in stage:
        if step.kind == "timer" and step.status is StepStatus.WAITING:
            change = elapse(case, step)
            return replace(change, history=history + change.history)
        if not step.held and step.due_at is not None and step.status is not StepStatus.WAITING:
            case = case.set(replace(step, due_at=case.now))
    if not case.waiting:
        why = ", ".join(
            f"step {s.name!r} is held until {s.lease_until:%H:%M:%S} UTC"
            if s.held
            else f"step {s.name!r} is {s.status}" + (f" for its child saga {s.child_id}" if s.child_id else "")
            for s in stage
        )
        raise NotAllowed(f"{case.about} cannot be resumed: {why or 'none of its steps is ready'}")
    return case.on(replace(case.record, idle_checks=0)).done(Verdict.DISPATCH, "resumed", history)


class Repair(enum.Enum):
    """What an operator can do about a step that is stuck."""

    RETRY = "retry"
    SKIP = "skip"
    DONE = "done"
    FAILED = "failed"  # of a pivot alone: it had no effect, so there is a way back


def repair(
    case: Case, name: str, how: Repair, reason: str, *, actor: str | None = None, result: str | None = None
) -> Change:
    """Bring a stuck saga on: try the step again, leave it out, or take it as done, or as failed, by hand."""
    step, stuck = case.record.step(name), case.stuck
    if case.record.status is not SagaStatus.STUCK or step not in stuck:
        raise NotAllowed(
            f"{case.about} is {case.record.status}; "
            + (f"its stuck step is {stuck[0].name!r}, not {name!r}" if stuck else "none of its steps is stuck")
        )
    step = _repaired(case, step, how, result)
    history = (case.entry(HistoryKind(f"operator: {how.value}"), step, reason, actor),)
    letters = (case.letter(step, resolution=Resolution(how.value), reason=reason, actor=actor),)
    case = case.set(step)
    if case.stuck:
        record = replace(case.record, updated_at=case.now)
        return Change(record, Verdict.GO_AWAY, "another step is still stuck", history, letters)
    if how is Repair.FAILED:
        change = compensate(case, f"pivot {name!r} had no effect: {reason}", actor=actor)
    else:
        goes_on = SagaStatus.RUNNING if case.forward else SagaStatus.COMPENSATING
        error = None if case.forward else case.record.error
        change = settle(case.status(goes_on, idle_checks=0, stage_ready_at=case.now, error=error))
    return replace(change, history=history + change.history, dead_letters=letters)


def _repaired(case: Case, step: StepRecord, how: Repair, result: str | None) -> StepRecord:
    match how:
        case Repair.RETRY:
            back = StepStatus.PENDING if case.forward else StepStatus.COMPENSATING
            polls = case.forward and case.node(step).step.poll_timeout is not None  # for as long once more
            started_at = None if polls else step.started_at
            return step.move(back, failures=0, lost=0, due_at=None, error=None, started_at=started_at)
        case Repair.SKIP:
            return step.move(StepStatus.SKIPPED, finished_at=case.now, result="null" if case.forward else step.result)
        case Repair.DONE:
            return step.move(
                StepStatus.DONE if case.forward else StepStatus.COMPENSATED,
                finished_at=case.now,
                error=None,
                result=(result or step.result or "null") if case.forward else step.result,
            )
        case Repair.FAILED if case.forward and case.node(step).step.is_pivot:
            return step.move(StepStatus.FAILED, finished_at=case.now)
        case _:
            raise NotAllowed(f"{case.about}: only a pivot can be said to have failed, not {step.name!r}")
