"""What messages, and those who hold claims, bring to a saga."""

from __future__ import annotations

from datetime import datetime, timedelta

from sagas.checkpoints import Direction, HistoryEntry, HistoryKind, SagaStatus, StepRecord, StepStatus, replace
from sagas.heartbeats import Report
from sagas.tokens import with_hash
from sagas.transitions.case import Case, Change, Failure, Verdict
from sagas.transitions.ends import after_step, expire, failed, late_failure, late_success, lose, move_on, released
from sagas.transitions.waits import ended

__all__ = ["claim", "decided", "fail", "join", "renew", "report", "reported", "skip", "succeed", "wait"]


def claim(case: Case, name: str, epoch: int, owner: str, digest: str | None = None) -> Change:
    """A message asks to act on a step. Grant it to one owner at a time, in turn, and only in the current epoch.

    `digest`: the hash of the token that this attempt may give out.
    """
    if (refusal := _stale(case, epoch) or _no_turn(case, name)) is not None:
        return refusal
    step = case.record.step(name)
    history: tuple[HistoryEntry, ...] = ()
    if step.owner == owner:  # the claim was stored, and only the answer was lost
        return case.refuse("", Verdict.ACT)
    if case.dead(step):
        expired = expire(case, step)
        case, history = case.on(expired.record), expired.history
        step = case.record.step(name)
        if not case.ready(step):
            return expired
    if not case.ready(step):
        held = f"held by {step.owner} until {step.lease_until}"
        return case.refuse(held if step.held else f"{step.status}, due at {step.due_at}")
    if case.doomed(case.siblings(step)):
        return Change(case.record, Verdict.GO_AWAY, "a sibling failed; it is not begun only to be undone", history)
    if digest is not None and case.forward:
        step = replace(step, input=with_hash(step.input, digest))
    return _granted(case, step, owner, history)


def _no_turn(case: Case, name: str) -> Change | None:
    """Refuse a step that is settled, or whose turn it is not."""
    step = case.record.step(name)
    if name not in case.record.steps:
        return case.refuse("an earlier stage is not settled")
    if case.settled(step):
        return case.refuse(f"already {step.status}", Verdict.SETTLED)
    if not case.is_turn_of(step):
        return case.refuse("an earlier stage is not settled")
    if not case.forward and step.status is StepStatus.RUNNING:
        return case.refuse("its action is still at work; it is undone when that has ended")
    return None


def _granted(case: Case, step: StepRecord, owner: str, history: tuple[HistoryEntry, ...]) -> Change:
    node = case.node(step).step
    first_undo = not case.forward and step.status is not StepStatus.COMPENSATING
    step = step.move(
        StepStatus.RUNNING if case.forward else StepStatus.COMPENSATING,
        owner=owner,
        deadline=case.now + timedelta(seconds=node.timeout),
        heartbeat_at=case.now if case.forward and node.heartbeat_timeout is not None else None,
        progress_done=None if first_undo else step.progress_done,
        progress_total=None if first_undo else step.progress_total,
        due_at=None,
        started_seq=step.started_seq or 1 + max(each.started_seq for each in case.record.steps.values()),
        started_at=step.started_at or case.now,
    )
    case = case.set(case.leased(step), idle_checks=0, error=None if case.forward else case.record.error)
    if case.record.status is SagaStatus.PENDING:
        case = case.status(SagaStatus.RUNNING)
    return case.done(Verdict.ACT, history=history)


def succeed(case: Case, name: str, owner: str, direction: Direction, result: str | None) -> Change:
    """The holder of a claim reports success. Only the living claim of the present direction counts as done."""
    step, forward = case.record.step(name), direction is Direction.FORWARD
    if forward and not case.forward:
        return late_success(case, step, owner, result)
    if step.owner != owner:
        if step.status is StepStatus.STUCK:  # whoever has to decide what becomes of it will want to know
            # The result is kept where results are, for its history is neither encrypted nor redacted.
            history = (case.entry(HistoryKind.LATE_OUTCOME, step, "an earlier attempt succeeded; its result is kept"),)
            case = case.set(replace(step, result=result), updated_at=case.now)
            return Change(case.record, Verdict.GO_AWAY, "it came late", history)
        # Settled, perhaps by this very report, whose answer was lost: then the chain may go on. In a chord whoever
        # closed the stage has gone on.
        settled = direction is case.record.direction and case.settled(step) and len(case.siblings(step)) == 1
        verdict = Verdict.CONTINUE if settled else Verdict.GO_AWAY
        return case.refuse(f"its claim was taken over; the step is {step.status}", verdict)
    step = released(step, StepStatus.DONE if forward else StepStatus.COMPENSATED, case.now, error=None)
    if forward:
        step = replace(step, result=result)
    return after_step(case.set(step), step, Verdict.CONTINUE)


def decided(case: Case, name: str, owner: str) -> Change:
    """The condition of a step said yes. That is kept, so that it is asked once."""
    step = case.record.step(name)
    if step.owner != owner or not case.forward:
        return case.refuse("its claim was taken over")
    return case.set(replace(step, opened_at=case.now)).done(Verdict.ACT)


def skip(case: Case, name: str, owner: str) -> Change:
    """The condition of a step said no: later steps get None in the place of its result."""
    step = case.record.step(name)
    if step.owner != owner or not case.forward:
        return case.refuse("its claim was taken over")
    step = released(step, StepStatus.SKIPPED, case.now, result="null", error=None)
    return after_step(case.set(step), step, Verdict.CONTINUE)


def wait(case: Case, name: str, owner: str, until: datetime) -> Change:
    """The function of a step has returned, and somebody else ends the step, or has done so already; or time does."""
    step = case.record.step(name)
    if not case.forward:  # it has asked meanwhile, and that may have an effect
        return late_success(case, step, owner, None, "it had asked, and was still to be answered")
    if step.owner != owner:
        return case.refuse(f"its claim was taken over, or it has ended; the step is {step.status}")
    if step.result is not None:  # it has been answered already
        return ended(case, step)
    step = released(step, StepStatus.WAITING, None, opened_at=step.opened_at or case.now, due_at=until, error=None)
    return case.set(step).done(Verdict.PARTED)


def fail(case: Case, name: str, owner: str, direction: Direction, failure: Failure) -> Change:
    """The holder of a claim, or whoever watches over it, reports that the attempt failed."""
    step = case.record.step(name)
    if step.owner != owner:
        return late_failure(case, step, owner, direction, failure)
    return failed(case, step, failure)


def renew(case: Case, name: str, owner: str, report: Report | None = None) -> Change:
    """The holder of a claim is alive and still at work. It may not outlive its deadline.

    `report`: what its function has reported since. Without that, a function that has to is not known to go on.
    """
    step = case.record.step(name)
    if step.owner != owner:
        return case.refuse("its claim was taken over")
    if report is not None:
        case = reported(case, name, owner, report)
        step = replace(case.record.step(name), heartbeat_at=case.now)
    return case.set(case.leased(step)).done(Verdict.ACT)


def reported(case: Case, name: str, owner: str, report: Report | None) -> Case:
    """Return the case with what an attempt that holds its claim has reported."""
    step = case.record.step(name)
    if report is None or step.owner != owner:
        return case
    if report.details is not None:
        step = replace(step, heartbeat_details=report.details)
    if report.done is not None:
        step = replace(step, progress_done=report.done, progress_total=report.total)
    return case.set(step)


def join(case: Case, name: str, epoch: int) -> Change:
    """The body of a chord asks whether the stage that `name` belongs to is done. It writes nothing."""
    if (refusal := _stale(case, epoch)) is not None:
        return refusal
    stage = case.siblings(case.record.step(name)) if name in case.record.steps else ()
    if stage and all(case.settled(step) for step in stage):
        return case.refuse("", Verdict.CONTINUE if case.goes_on(stage) else Verdict.GO_AWAY)
    return case.refuse("steps of the stage are still at work")


def report(case: Case, name: str, epoch: int) -> Change:
    """link_error fired for a step's task: look at the saga now instead of when recovery would.

    Where the step recorded its own failure, the saga compensates, and what is left is dispatched here. Where it did
    not, Celery lost it: a hard time limit, wrong arguments, a worker that died without redelivery. It is only a hint,
    and may be late, doubled or forged: it never ends a claim that is alive. Whoever died holding one loses it when its
    lease is over.
    """
    if case.record.epoch == epoch + 1 and _is_untouched(case):
        return case.refuse("", Verdict.DISPATCH)
    if (refusal := _stale(case, epoch)) is not None:
        return refusal
    step = case.record.step(name)
    change = case.refuse("")
    if name in case.record.steps:
        if step.held and not case.dead(step):
            return case.refuse(f"held by {step.owner} until {step.lease_until}")
        if step.held:
            change = expire(case, step)
        elif case.ready(step) and case.is_turn_of(step):
            change = lose(case, step)
        elif case.settled(step) and case.waiting:
            # It is done, and its task failed all the same: it could not send what comes next.
            return case.done(Verdict.DISPATCH)
    return move_on(case, change)


def _is_untouched(case: Case) -> bool:
    """Tell whether a saga has started to compensate, and no compensation has been tried."""
    ready = case.waiting if case.record.status is SagaStatus.COMPENSATING else []
    return bool(ready) and not any(
        step.status is StepStatus.COMPENSATING or step.held for step in case.record.steps.values()
    )


def _stale(case: Case, epoch: int) -> Change | None:
    if case.record.epoch != epoch:
        return case.refuse(f"the message is of epoch {epoch}, the saga of {case.record.epoch}")
    if case.record.status is SagaStatus.STUCK:
        return case.refuse(f"the saga is {case.record.status}")
    return None
