"""How steps that wait come to their ends: by a signal, by an external completion, or by time."""

from __future__ import annotations

from dataclasses import dataclass

from sagas.checkpoints import AT_REST, HistoryEntry, HistoryKind, SagaStatus, StepRecord, StepStatus, replace
from sagas.errors import SignalRefused
from sagas.nodes import COMPENSATE, Wait
from sagas.transitions.case import Case, Change, Failure, Outcome, Verdict
from sagas.transitions.ends import after_step, end_failed, late_success, move_on, released

__all__ = ["Signal", "complete", "elapse", "ended", "fail_deferred", "signal"]

#: A step in one of these has not come to an end, going forward.
_OPEN = (StepStatus.PENDING, StepStatus.RUNNING, StepStatus.WAITING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """What a sender has to say to a wait."""

    id: str  #: the same id twice counts once
    payload: str  #: JSON
    by: str  #: JSON of the id, the sender and the time, as it is kept
    sender: str | None = None  #: who sent it, for the history


def signal(case: Case, name: str, sent: Signal) -> Change:
    """Give a wait its signal. One that comes before the wait has begun is kept.

    From the first call of `begin` on, it is kept until that has returned. The wait ends when what `begin` wrote is
    committed, and if its worker dies before that, `begin` is called again.

    Raises `SignalRefused` where the saga no longer wants it, saying why.
    """
    record, step = case.record, case.record.step(name)
    if step.status is StepStatus.DONE or (step.status in _OPEN and step.result is not None):
        return case.refuse("", Verdict.SETTLED)  # whoever asks compares the ids
    if not case.forward or record.status in AT_REST:
        raise SignalRefused(
            f"{case.about} no longer wants the signal {name!r}: it is {record.status}"
            + (f", since {record.error}" if record.error else "")
        )
    if name not in record.steps:
        node = case.saga.steps[name]
        seq = 1 + max((each.seq for each in record.steps.values()), default=0)
        early = StepRecord(node=name, seq=seq, stage=node.stage, kind="wait")
        early = early.move(StepStatus.DONE, finished_at=case.now, input=sent.by, result=sent.payload)
        return case.set(early).done(Verdict.GO_AWAY, history=_told(case, early, sent))
    if step.status not in _OPEN:
        raise SignalRefused(
            f"{case.about} no longer wants the signal {name!r}: its wait is {step.status}: {step.error}"
        )
    if step.started_seq and step.status is not StepStatus.WAITING:
        case = case.set(replace(step, result=sent.payload, input=sent.by))
        return case.done(Verdict.GO_AWAY, "it is kept until begin has returned", _told(case, step, sent))
    change = ended(case, step, result=sent.payload, input=sent.by)
    return replace(change, history=_told(case, step, sent) + change.history)


def complete(case: Case, name: str, result: str) -> Change:
    """An external system says that a deferred step is done. SETTLED where the step had ended, or been answered, before.

    An answer that comes before the action has returned is kept. The step ends when what its action wrote is committed,
    and if its worker dies before that, the action is called again.

    Of a step that was given up, this is a late success: it is compensated.
    """
    step = case.record.step(name)
    if not case.forward:
        return late_success(case, step, "", result)
    if step.status is StepStatus.WAITING:
        return ended(case, step, result=result)
    if step.status in _OPEN and step.result is None:
        return case.set(replace(step, result=result)).done(Verdict.GO_AWAY, "it is kept until the action has returned")
    return case.refuse(f"the step is {step.status}", Verdict.SETTLED)


def fail_deferred(case: Case, name: str, error: str) -> Change:
    """An external system says that a deferred step failed, and had no effect. SETTLED as in `complete`."""
    step = case.record.step(name)
    if not case.forward or step.status not in _OPEN or step.result is not None:
        return case.refuse(f"the step is {step.status}", Verdict.SETTLED)
    return move_on(case, end_failed(case, step, Failure(Outcome.TERMINAL, error)))


def elapse(case: Case, step: StepRecord) -> Change:
    """The time of a step that waits is over."""
    node = case.node(step).step
    if step.kind == "timer":
        return ended(case, step, result="null")
    assert node.patience is not None
    if not isinstance(node, Wait):
        return end_failed(case, step, Failure(Outcome.IN_DOUBT, f"nobody completed it within {node.patience:g} s"))
    if node.on_timeout is COMPENSATE:
        outcome = Outcome.IN_DOUBT if node.begins else Outcome.TERMINAL
        return end_failed(case, step, Failure(outcome, f"no signal within {node.patience:g} s"))
    return ended(case, step, result=case.node(step).on_timeout)


def _told(case: Case, step: StepRecord, sent: Signal) -> tuple[HistoryEntry, ...]:
    """A signal with a sender is somebody's decision, so the history keeps who decided and when."""
    if sent.sender is None:
        return ()
    return (case.entry(HistoryKind.SIGNAL, step, f"signal {sent.id!r}", sent.sender),)


def ended(case: Case, step: StepRecord, **changes: object) -> Change:
    """What a step waited for has come."""
    if case.record.status is SagaStatus.PENDING:  # it begins with a wait, so that no worker has begun it
        case = case.status(SagaStatus.RUNNING)
    step = released(step, StepStatus.DONE, case.now, error=None, due_at=None, **changes)
    return after_step(case.set(step), step, Verdict.CONTINUE)
