"""How steps, stages and sagas come to their ends, and what follows."""

from __future__ import annotations

from datetime import datetime, timedelta

from sagas.checkpoints import (
    AT_REST,
    DeadLetter,
    Direction,
    HistoryEntry,
    HistoryKind,
    Resolution,
    SagaStatus,
    StepRecord,
    StepStatus,
    replace,
)
from sagas.opening import is_early
from sagas.transitions.case import Case, Change, Failure, Outcome, Verdict

__all__ = [
    "after_step",
    "compensate",
    "end_failed",
    "expire",
    "failed",
    "late_failure",
    "late_success",
    "lose",
    "move_on",
    "released",
    "settle",
]


def released(step: StepRecord, status: StepStatus, finished_at: datetime | None, **changes: object) -> StepRecord:
    """Return a step that nobody holds any longer."""
    return step.move(
        status, owner=None, lease_until=None, deadline=None, sent_at=None, finished_at=finished_at, **changes
    )


def failed(case: Case, step: StepRecord, failure: Failure) -> Change:
    """An attempt at a step failed, and its claim is alive: try again, or give the step up."""
    undoing = step.status is StepStatus.COMPENSATING
    node = case.node(step)
    if failure.outcome is Outcome.NOT_YET and case.forward:
        if (waits := _not_yet(case, step, failure)) is not None:
            return waits
        said = f"not ready within {node.step.poll_timeout:g} s: {failure.error}"
        failure = Failure(Outcome.IN_DOUBT, said)
    history = (
        case.entry(HistoryKind.COMPENSATION_FAILED if undoing else HistoryKind.STEP_FAILED, step, failure.error),
    )
    retry = failure.retry or (node.compensation_retry if undoing else node.retry)
    failures = step.failures + 1
    again = failure.outcome is Outcome.FAILED and failures < retry.max_attempts
    unwanted = not case.forward and not undoing  # an action that the saga no longer wants
    if again and not unwanted:
        delay = failure.after
        if delay is None:
            delay = retry.delay_after(failures, f"{case.record.id}:{step.name}:{failures}")
        step = released(
            step,
            StepStatus.COMPENSATING if undoing else StepStatus.PENDING,
            None,
            failures=failures,
            error=failure.error,
            due_at=case.now + timedelta(seconds=delay),
        )
        return case.set(step).done(Verdict.RETRY, failure.error, history)
    return end_failed(case, step, failure)


def end_failed(case: Case, step: StepRecord, failure: Failure) -> Change:
    """A step has failed for good."""
    undoing = step.status is StepStatus.COMPENSATING
    history = (
        case.entry(HistoryKind.COMPENSATION_FAILED if undoing else HistoryKind.STEP_FAILED, step, failure.error),
    )
    status = _given_up(case, step, failure.outcome, undoing=undoing)
    step = released(step, status, case.now, failures=step.failures + 1, error=failure.error)
    return after_step(case.set(step), step, Verdict.FAILED, failure.error, history)


def _not_yet(case: Case, step: StepRecord, failure: Failure) -> Change | None:
    """A step polls for what is not there yet. Have it ask again, or return None when its time for that is over.

    It counts no failure, and those before it count no longer: it did get an answer.
    """
    limit = case.node(step).step.poll_timeout
    assert limit is not None
    assert failure.after is not None
    assert step.started_at is not None
    until = step.started_at + timedelta(seconds=limit)
    if case.now >= until:
        return None
    due_at = min(case.now + timedelta(seconds=failure.after), until)  # it looks once more at the very end
    step = released(step, StepStatus.PENDING, None, failures=0, error=failure.error, due_at=due_at)
    return case.set(step).done(Verdict.RETRY, failure.error)


def expire(case: Case, step: StepRecord) -> Change:
    """A claim has died: its time was up, its function fell silent, or its worker stopped renewing it."""
    assert step.deadline is not None
    node, silent_until = case.node(step), case.silent_until(step)
    if step.deadline <= case.now:
        said = f"no answer within {node.step.timeout:g} s"
    elif silent_until is not None and silent_until <= case.now:
        said = f"no heartbeat within {node.step.heartbeat_timeout:g} s"
    else:
        return lose(case, step)
    retry = node.compensation_retry if step.status is StepStatus.COMPENSATING else node.retry
    return failed(case, step, Failure(Outcome.FAILED, said, retry=retry.policy_for(TimeoutError())))


def lose(case: Case, step: StepRecord) -> Change:
    """A delivery of a step ended in silence. After too many it is given up: it may be what kills its workers."""
    ran, most = step.held, case.node(step).step.max_deliveries
    undoing = not case.forward and step.status is not StepStatus.RUNNING
    awaited = not case.forward and not undoing  # an action that the saga no longer wants
    lost = step.lost + 1
    error = f"lost {lost} of {most} times: " + ("its worker died" if ran else "Celery could not run it")
    history = (case.entry(HistoryKind.LOST, step, error),)
    if lost < most and not awaited:
        waiting = StepStatus.PENDING if step.status is StepStatus.RUNNING else step.status
        step = released(step, waiting, step.finished_at, lost=lost, error=error)
        return case.set(step).done(Verdict.GO_AWAY, error, history)
    never_ran = not ran and not step.started_seq
    status = _given_up(case, step, Outcome.TERMINAL if never_ran else Outcome.IN_DOUBT, undoing=undoing)
    step = released(step, status, case.now, lost=lost, error=error)
    return after_step(case.set(step), step, Verdict.FAILED, error, history)


def _expire_unstarted(case: Case, change: Change) -> Change:
    """Give up the steps of the current stage that no worker took in time."""
    for name in [step.name for step in case.stage]:
        case = case.on(change.record)
        step = case.record.step(name)
        limit = case.start_deadline(step)
        if limit is None or limit > case.now or step.status is not StepStatus.PENDING:
            continue
        error = f"no worker began it within {case.node(step).step.start_timeout:g} s"
        status = _given_up(case, step, Outcome.IN_DOUBT if step.started_seq else Outcome.TERMINAL, undoing=False)
        step = released(step, status, case.now, error=error)
        history = (case.entry(HistoryKind.NOT_STARTED, step, error),)
        change = change.then(after_step(case.set(step), step, Verdict.FAILED, error, history))
    return change


def after_step(
    case: Case, step: StepRecord, verdict: Verdict, note: str = "", history: tuple[HistoryEntry, ...] = ()
) -> Change:
    """A step has come to an end, good or bad: close its stage or its saga when it was the last.

    Where the stage failed, the same write starts the compensation. The message that says so only has it dispatched.
    """
    stage = case.siblings(step)
    letters = (case.letter(step),) if step.status is StepStatus.STUCK else ()
    over = case.over(stage)
    if over and any(each.status is StepStatus.STUCK for each in stage):
        change = _get_stuck(case, stage)
    elif over and case.doomed(stage):
        change = compensate(case, case.reason(stage))
        # Of one step, link_error has the rest dispatched; in a chord, who closes the stage does.
        verdict = verdict if len(stage) == 1 else change.verdict
        return replace(change, verdict=verdict, note=note, history=history + change.history)
    elif not case.forward and step.status in (StepStatus.FAILED, StepStatus.IN_DOUBT):
        change = settle(case)  # the action was waited for; now it can be undone
        return replace(change, note=note, history=history + change.history, dead_letters=letters)
    else:
        if over:
            case = case.on(replace(case.record, stage_ready_at=case.now))
        outline, case = case.record.outline, _finished(case)
        # The chain on its way leads to what was ahead before, and to each stage in turn.
        is_left = case.record.outline != outline or _is_skipped(case, stage)
        if over and verdict is Verdict.CONTINUE and (is_left or not case.goes_on(stage)):
            verdict = Verdict.DISPATCH
        change = case.done(verdict)
    if len(stage) > 1 and verdict is not Verdict.DISPATCH:  # in a chord a failure is data: the join raises it
        verdict = Verdict.CLOSED if over else Verdict.PARTED
    return replace(change, verdict=verdict, note=note, history=history + change.history, dead_letters=letters)


def _is_skipped(case: Case, stage: tuple[StepRecord, ...]) -> bool:
    """Tell whether nothing is to be done at the stage after this one: the signals that it waits for came early."""
    following = case.stage if case.forward else ()
    return bool(following) and following[0].stage > stage[0].stage + 1


def _finished(case: Case) -> Case:
    """End the saga when nothing is left in its direction. Going forward, there may be another stage to open."""
    case = case.reached()
    if case.stage:
        return case
    if case.forward:
        return case.status(SagaStatus.COMPLETED, outline=case.saga.outline)
    return case.status(SagaStatus.COMPENSATED)


def _get_stuck(case: Case, stage: tuple[StepRecord, ...]) -> Change:
    reason = case.reason(stage)
    # While it compensates, its error says why. That its compensation is stuck, the error of the step says.
    case = case.status(SagaStatus.STUCK, error=reason if case.forward else case.record.error)
    return case.done(Verdict.GO_AWAY, history=(case.entry(HistoryKind.STUCK, None, reason),))


def settle(case: Case) -> Change:
    """Finish the saga when nothing is left of it, else have the rest dispatched."""
    case = _finished(case)
    return case.done(Verdict.GO_AWAY if case.record.status in AT_REST else Verdict.DISPATCH)


def _has_no_child(step: StepRecord) -> bool:
    """Tell whether a node that starts child sagas has started none."""
    if step.kind == "each":  # they are stored in the write that makes it wait
        return step.status is not StepStatus.WAITING
    return step.kind == "child" and step.child_id is None


def _given_up(case: Case, step: StepRecord, outcome: Outcome, *, undoing: bool) -> StepStatus:
    """What becomes of a step that is not tried again."""
    node = case.node(step)
    if undoing or node.past_pivot:
        return StepStatus.STUCK
    not_begun = case.is_undecided(step) or _has_no_child(step)
    if outcome is Outcome.TERMINAL or not_begun:
        return StepStatus.FAILED
    # A pivot cannot be undone, so while its effect is unknown the saga can go neither way.
    return StepStatus.STUCK if node.step.is_pivot and case.forward else StepStatus.IN_DOUBT


# -- following up -----------------------------------------------------------------------------------------------------


def move_on(case: Case, change: Change) -> Change:
    """Follow up on a change that no message carries on: compensate, finish, dispatch what has no message, or wait."""
    epoch, case = case.record.epoch, case.on(change.record)
    if case.record.status not in AT_REST and case.forward:
        change = _expire_unstarted(case, change)
        case = case.on(change.record)
    if case.record.status in AT_REST:
        return replace(change, verdict=Verdict.GO_AWAY)
    if case.record.epoch != epoch:  # it has started to compensate
        return replace(change, verdict=Verdict.DISPATCH)
    if not case.stage:  # nothing is left: the write that says so is the only thing missing
        return change.then(settle(case))
    if case.forward and (end := _forward_end(case)) is not None:
        return change.then(end)
    if any(_has_no_message(case, step) for step in case.waiting):
        return change.then(case.done(Verdict.DISPATCH))
    return change


def _forward_end(case: Case) -> Change | None:
    """End the way forward where a step is given up, or the saga is out of time. None where it goes on."""
    stage, deadline = case.stage, case.record.deadline
    if case.doomed(stage) and case.over(stage):
        if any(step.status is StepStatus.STUCK for step in stage):
            return _get_stuck(case, stage)
        return compensate(case, case.reason(stage))
    if deadline is not None and deadline <= case.now and not case.committed:
        limit = case.saga.timeout
        return compensate(case, "the saga ran out of time" + (f" ({limit:g} s)" if limit else ""))
    return None


def _has_no_message(case: Case, step: StepRecord) -> bool:
    """Tell whether a waiting step is to be sent a message, since the one that it had is used up.

    The message of a step that has not begun comes with the chain, when its stage is reached.
    """
    begun = step.started_seq > 0 if case.forward else step.status is StepStatus.COMPENSATING
    return step.sent_at is None and (begun or step.lost > 0)


def compensate(case: Case, why: str, actor: str | None = None) -> Change:
    """Begin to undo. What is at work is waited for; what was between two attempts is in doubt."""
    history = (case.entry(HistoryKind.COMPENSATION_STARTED, None, why, actor),)
    for step in case.record.steps.values():
        if step.started_seq or is_early(step):
            case = case.set(_to_undo(case, step))
    case = case.status(
        SagaStatus.COMPENSATING,
        direction=Direction.BACKWARD,
        epoch=case.record.epoch + 1,
        idle_checks=0,
        stage_ready_at=case.now,
        error=why,
    )
    change = settle(case)
    return replace(change, note=why, history=history + change.history)


def _to_undo(case: Case, step: StepRecord) -> StepRecord:
    """Return a step that has begun, or whose signal came early, as it is when its saga begins to undo."""
    if step.status is StepStatus.PENDING:
        step = step.move(StepStatus.IN_DOUBT)
    nothing_to_undo = case.node(step).compensation is None or case.is_undecided(step) or is_early(step)
    began = (StepStatus.RUNNING, StepStatus.WAITING, StepStatus.DONE, StepStatus.IN_DOUBT)
    if nothing_to_undo and step.status in began:
        step = released(step, StepStatus.COMPENSATED, case.now)
    elif step.status is StepStatus.WAITING:  # it has asked, and nobody knows what comes of that
        step = released(step, StepStatus.IN_DOUBT, case.now)
    return replace(step, failures=0, lost=0, due_at=None)


# -- too late ---------------------------------------------------------------------------------------------------------


def late_failure(case: Case, step: StepRecord, owner: str, direction: Direction, failure: Failure) -> Change:
    """An attempt that had been given up came to a bad end. Only `TerminalError` says that it had no effect."""
    if direction is Direction.FORWARD and failure.outcome is not Outcome.TERMINAL:
        if not case.forward:
            return late_success(case, step, owner, None, failure.error)
        if step.status is StepStatus.STUCK:  # whoever has to decide what becomes of it will want to know
            history = (case.entry(HistoryKind.LATE_OUTCOME, step, f"an earlier attempt ended with: {failure.error}"),)
            return Change(replace(case.record, updated_at=case.now), Verdict.GO_AWAY, "it came late", history)
    return case.refuse(f"its claim was taken over; the step is {step.status}")


def late_success(case: Case, step: StepRecord, owner: str, result: str | None, error: str | None = None) -> Change:
    """An action ended after compensation had started, and has or may have had its effect. It is compensated once more.

    `result`: None where it is not known, since the action ended with `error`.
    """
    if case.node(step).compensation is None:
        return _late_for_good(case, step, error)
    if step.status is StepStatus.DONE or (step.status is StepStatus.RUNNING and step.owner != owner):
        return case.refuse("another delivery of it stands for it, and will be undone")
    how = "" if error is None else f", and ended with: {error}"
    history = (case.entry(HistoryKind.LATE_OUTCOME, step, f"it was {step.status}{how}"),)
    letters: tuple[DeadLetter, ...] = ()
    if step.status is StepStatus.STUCK:
        letters = (
            case.letter(step, resolution=Resolution.LATE_OUTCOME, reason="its outcome is known: undone once more"),
        )
    # Whoever is undoing it now may have looked before it landed: that claim is void, and it is undone once more.
    step = released(
        step,
        StepStatus.IN_DOUBT,
        case.now,
        result=step.result if result is None else result,
        error=step.error if error is None else error,
        failures=0,
        lost=0,
        due_at=None,
    )
    case = case.set(step)
    if case.record.status is SagaStatus.COMPENSATED or (case.record.status is SagaStatus.STUCK and not case.stuck):
        case = case.status(SagaStatus.COMPENSATING, stage_ready_at=case.now)
    return case.done(Verdict.DISPATCH, "it ended after compensation had started", history, letters)


def _late_for_good(case: Case, step: StepRecord, error: str | None) -> Change:
    """An action without a compensation ended after compensation had started. Of a pivot, a person must decide."""
    note = "it came late, and there is nothing that undoes it"
    if error is not None:
        note = f"it ended late, nobody knows whether it had an effect, and there is nothing that undoes it: {error}"
    if not case.node(step).step.is_pivot:
        return case.refuse(note)
    letter = replace(case.letter(step), direction=Direction.FORWARD, error=note)
    history = (case.entry(HistoryKind.LATE_OUTCOME, step, note),)
    return Change(replace(case.record, updated_at=case.now), Verdict.GO_AWAY, note, history, (letter,))
