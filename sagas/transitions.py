"""The rules: what each thing that can happen does to a saga's record.

Every function here is pure. It takes the definition, the record as stored and the time, and returns a `Change`: the
record that should be stored instead, and what the messenger is to do. Nothing here knows of Celery or SQL, so all of
it can be driven through any order of events in a test.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sagas.checkpoints import (
    AT_REST,
    CLOCKS_DIFFER,
    NOT_SENT,
    DeadLetter,
    Direction,
    HistoryEntry,
    SagaRecord,
    SagaStatus,
    StepRecord,
    StepStatus,
)
from sagas.definition import BoundStep, Saga
from sagas.errors import NotAllowed
from sagas.plan import settled

__all__ = [
    "Change",
    "Failure",
    "Outcome",
    "Timing",
    "Verdict",
    "cancel",
    "claim",
    "examine",
    "fail",
    "join",
    "not_sent",
    "redispatch",
    "report",
    "renew",
    "repair",
    "rewound",
    "sent_at",
    "succeed",
]

#: While nobody begins the next step, each look at a saga doubles the wait for the next look, up to 2 ** this.
_MOST_DOUBLINGS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How patient the engine is, in seconds."""

    lease: float = 30.0  #: a claim that is not renewed for this long is dead
    stall: float = 30.0  #: a saga whose next step nobody claims for this long is overdue


class Verdict(enum.Enum):
    """What the messenger does after a change."""

    GO_AWAY = "go away"  #: nothing to do with this message; the chain it belongs to ends here
    ACT = "act"  #: the claim is yours
    CONTINUE = "continue"  #: the chain goes on
    SETTLED = "settled"  #: it was done before: the chain goes on if it was this message's own doing, else it ends here
    PARTED = "parted"  #: recorded; siblings of the stage are still at work
    CLOSED = "closed"  #: recorded, and it was the last of its stage: the join is yours to send
    RETRY = "retry"  #: the attempt failed; the step is tried again
    FAILED = "failed"  #: the step is out of attempts: raise, so that link_error fires
    LAUNCH = "launch"  #: launch what the plan says is left
    OVERDUE = "overdue"  #: its message waits in a queue, or is lost: recovery has to find out which


class Outcome(enum.Enum):
    """How an attempt failed."""

    TERMINAL = "terminal"  #: it had no effect; do not try again
    FAILED = "failed"  #: nobody knows what effect it had; try again as the policy says
    IN_DOUBT = "in doubt"  #: nobody knows, and trying again would not tell


@dataclass(frozen=True, slots=True)
class Failure:
    outcome: Outcome
    error: str
    after: float | None = None  #: seconds until the next attempt, where the step itself said so


@dataclass(frozen=True, slots=True)
class Change:
    """The record to store (the very same object when nothing changed), and what to do then."""

    record: SagaRecord
    verdict: Verdict
    note: str = ""  #: why, for the log
    history: tuple[HistoryEntry, ...] = ()
    dead_letters: tuple[DeadLetter, ...] = ()


# -- what messages bring --------------------------------------------------------------------------------------------


def claim(saga: Saga, record: SagaRecord, name: str, epoch: int, owner: str, now: datetime, timing: Timing) -> Change:
    """A message asks to act on a step. Grant it to one owner at a time, in turn, and only in the current epoch."""
    if (refusal := _stale(record, epoch)) is not None:
        return refusal
    step, state = saga.steps[name], record.step(name)
    if settled(step, state, record.direction):
        return Change(record, Verdict.SETTLED, f"already {state.status}")
    if not _is_turn_of(saga, record, step):
        return Change(record, Verdict.GO_AWAY, "an earlier stage is not settled")
    if record.direction is Direction.BACKWARD and state.status is StepStatus.RUNNING:
        return Change(record, Verdict.GO_AWAY, "its action is still at work; it is undone when that has ended")
    history: tuple[HistoryEntry, ...] = ()
    if state.owner == owner:  # the claim was stored, and only the answer was lost
        return Change(record, Verdict.ACT)
    if state.held:
        if not _is_dead(state, now):
            return Change(record, Verdict.GO_AWAY, f"held by {state.owner} until {state.lease_until}")
        expired = _expire(saga, record, step, now, timing)
        record, state, history = expired.record, expired.record.step(name), expired.history
        if not _is_ready(state, record.direction, now):
            return expired
    if not _is_ready(state, record.direction, now):
        return Change(record, Verdict.GO_AWAY, f"{state.status}, due at {state.due_at}")
    if _is_doomed(record, saga.stages[step.stage]):
        return Change(record, Verdict.GO_AWAY, "a sibling failed; it is not begun only to be undone", history)
    forward = record.direction is Direction.FORWARD
    deadline = now + timedelta(seconds=step.step.timeout)
    state = state.move(
        StepStatus.RUNNING if forward else StepStatus.UNDOING,
        owner=owner,
        lease_until=min(now + timedelta(seconds=timing.lease), deadline),
        deadline=deadline,
        due_at=None,
        position=state.position or 1 + max((s.position for s in record.steps.values()), default=0),
        started_at=state.started_at or now,
    )
    record = record.with_step(state)
    if record.status is SagaStatus.PENDING:
        record = record.move(SagaStatus.RUNNING)
    record = replace(record, stalls=0, error=None if forward else record.error)
    return _done(saga, record, Verdict.ACT, now, timing, history=history)


def succeed(
    saga: Saga,
    record: SagaRecord,
    name: str,
    owner: str,
    direction: Direction,
    result: str | None,
    now: datetime,
    timing: Timing,
) -> Change:
    """The holder of a claim reports success. Only the living claim of the present direction counts as done."""
    step, state = saga.steps[name], record.step(name)
    if direction is Direction.FORWARD and record.direction is Direction.BACKWARD:
        return _landed_late(saga, record, step, owner, result, now, timing)
    if state.owner != owner:
        if state.status is StepStatus.STUCK:  # whoever has to decide what becomes of it will want to know
            # The result is kept where results are, for its history is neither encrypted nor masked.
            history = (_entry(record, now, "landed late", step, "an earlier attempt succeeded; its result is kept"),)
            record = record.with_step(replace(state, result=result))
            return Change(replace(record, updated_at=now), Verdict.GO_AWAY, "it came late", history)
        # Settled, perhaps by this very report, whose answer was lost: then the chain may go on. In a chord whoever
        # closed the stage has gone on.
        stored = settled(step, state, direction) and len(saga.stages[step.stage]) == 1
        verdict = Verdict.CONTINUE if stored else Verdict.GO_AWAY
        return Change(record, verdict, f"its claim was taken over; the step is {state.status}")
    forward = direction is Direction.FORWARD
    state = _released(state, StepStatus.DONE if forward else StepStatus.UNDONE, now, error=None)
    record = record.with_step(replace(state, result=result) if forward else state)
    return _after_step(saga, record, step, Verdict.CONTINUE, now, timing)


def fail(
    saga: Saga,
    record: SagaRecord,
    name: str,
    owner: str,
    direction: Direction,
    failure: Failure,
    now: datetime,
    timing: Timing,
) -> Change:
    """The holder of a claim, or whoever watches over it, reports that the attempt failed."""
    step, state = saga.steps[name], record.step(name)
    if state.owner != owner:
        return _failed_late(saga, record, step, owner, direction, failure, now, timing)
    undoing = state.status is StepStatus.UNDOING
    history = (_entry(record, now, "undo failed" if undoing else "step failed", step, failure.error),)
    retry = step.compensation_retry if undoing else step.retry
    failures = state.failures + 1
    again = failure.outcome is Outcome.FAILED and failures < retry.max_attempts
    turned_back = record.direction is Direction.BACKWARD and not undoing
    if again and not turned_back:
        delay = (
            retry.delay_after(failures, f"{record.id}:{name}:{failures}") if failure.after is None else failure.after
        )
        state = _released(
            state,
            StepStatus.UNDOING if undoing else StepStatus.PENDING,
            None,
            failures=failures,
            error=failure.error,
            due_at=now + timedelta(seconds=delay),
        )
        return _done(saga, record.with_step(state), Verdict.RETRY, now, timing, failure.error, history)
    status = _given_up(step, failure.outcome, record, undoing=undoing)
    state = _released(state, status, now, failures=failures, error=failure.error)
    record = record.with_step(state)
    return _after_step(saga, record, step, Verdict.FAILED, now, timing, failure.error, history)


def renew(saga: Saga, record: SagaRecord, name: str, owner: str, now: datetime, timing: Timing) -> Change:
    """The holder of a claim is alive and still at work. It may not outlive its deadline."""
    state = record.step(name)
    if state.owner != owner:
        return Change(record, Verdict.GO_AWAY, "its claim was taken over")
    assert state.deadline is not None
    state = replace(state, lease_until=min(now + timedelta(seconds=timing.lease), state.deadline))
    return _done(saga, record.with_step(state), Verdict.ACT, now, timing)


def join(saga: Saga, record: SagaRecord, name: str, epoch: int) -> Change:
    """The body of a chord asks whether the stage that `name` belongs to is done. It writes nothing."""
    if (refusal := _stale(record, epoch)) is not None:
        return refusal
    stage = saga.stages[saga.steps[name].stage]
    if all(settled(step, record.step(step.name), record.direction) for step in stage):
        return Change(record, Verdict.CONTINUE)
    if _is_over(record, stage):
        return Change(record, Verdict.FAILED, _reason(record, stage))
    return Change(record, Verdict.GO_AWAY, "steps of the stage are still at work")


def report(saga: Saga, record: SagaRecord, name: str, epoch: int, now: datetime, timing: Timing) -> Change:
    """link_error fired for a step's task: look at the saga now instead of when recovery would.

    Where the step recorded its own failure, the saga turns back. Where it did not, Celery lost it: a hard time limit,
    wrong arguments, a worker that died without redelivery. It is only a hint, and may be late, doubled or forged: it
    never ends a claim that is alive. Whoever died holding one loses it when its lease is over.
    """
    if (refusal := _stale(record, epoch)) is not None:
        return refusal
    step, state = saga.steps[name], record.step(name)
    if state.held and not _is_dead(state, now):
        return Change(record, Verdict.GO_AWAY, f"held by {state.owner} until {state.lease_until}")
    if state.held:
        change = _expire(saga, record, step, now, timing)
    elif _is_ready(state, record.direction, now) and _is_turn_of(saga, record, step):
        change = _lose(saga, record, step, now, timing)
    elif settled(step, state, record.direction) and (stage := _current(saga, record)) and _waiting(record, stage, now):
        # It is done, and its task failed all the same: it could not send what comes next.
        return _done(saga, record, Verdict.LAUNCH, now, timing)
    else:
        change = Change(record, Verdict.GO_AWAY)
    return _then_examine(saga, change, now, timing)


# -- what time brings -----------------------------------------------------------------------------------------------


def examine(saga: Saga, record: SagaRecord, now: datetime, timing: Timing) -> Change:
    """Bring a due saga to where it should be: settle dead claims, honour deadlines, launch what has no message.

    OVERDUE where a step has a message and nobody has begun it: see `redispatch`.
    """
    if record.status in AT_REST:
        return Change(replace(record, wake_at=None), Verdict.GO_AWAY)
    # `wake_at` is the mark that keeps other recoveries away, and says nothing about the saga.
    record = replace(record, wake_at=None)
    change = Change(record, Verdict.GO_AWAY)
    for step in saga.steps.values():
        state = change.record.step(step.name)
        if state.held and _is_dead(state, now):
            change = _merge(change, _expire(saga, change.record, step, now, timing))
    change = _then_examine(saga, change, now, timing)
    return change if change.record is not record else _look(saga, record, now, timing)


def _look(saga: Saga, record: SagaRecord, now: datetime, timing: Timing) -> Change:
    """Nothing is to be done to a saga but to wait. Say whether it has waited for too long, and when to look again."""
    verdict, stage = Verdict.GO_AWAY, _current(saga, record)
    assert stage is not None
    patience = timedelta(seconds=_patience(record, timing))
    if any(sent_at(state, record) + patience <= now for state in _waiting(record, stage, now)):
        verdict, record = Verdict.OVERDUE, replace(record, stalls=record.stalls + 1)
    # `updated_at` stays: a look changes nothing.
    return Change(replace(record, wake_at=_wake_at(saga, record, now, timing)), verdict)


def _then_examine(saga: Saga, change: Change, now: datetime, timing: Timing) -> Change:
    """Follow up on a change that nobody carries on: turn back, finish, launch what has no message, or wait."""
    record = change.record
    if record.status in AT_REST:
        return replace(change, verdict=Verdict.GO_AWAY)
    stage = _current(saga, record)
    if stage is None:  # nothing is left: the write that says so is the only thing missing
        return _merge(change, _settle(saga, record, now, timing))
    if record.direction is Direction.FORWARD:
        change = _expire_unstarted(saga, change, stage, now, timing)
        record = change.record
        if record.status is SagaStatus.STUCK:
            return replace(change, verdict=Verdict.GO_AWAY)
        if _is_doomed(record, stage) and _is_over(record, stage):
            if _is_stuck(record, stage):
                return _merge(change, _get_stuck(saga, record, stage, now, timing))
            return _merge(change, _turn_back(saga, record, _reason(record, stage), now, timing))
        if record.deadline is not None and record.deadline <= now and not _committed(saga, record):
            why = "the saga ran out of time" + (f" ({saga.timeout:g} s)" if saga.timeout else "")
            return _merge(change, _turn_back(saga, record, why, now, timing))
    waiting = _waiting(record, stage, now)
    if any(_has_no_message(state, record.direction) for state in waiting):
        return _merge(change, _done(saga, record, Verdict.LAUNCH, now, timing))
    return change


def redispatch(saga: Saga, record: SagaRecord, name: str, sent: datetime, now: datetime, timing: Timing) -> Change:
    """Send an overdue saga's messages once more: the first ones are lost, or it is not known that they are not.

    `name`, `sent`: the step that was overdue, and when its message was sent. If the saga has moved on since, there is
    nothing to send.

    The epoch stays: a message that still waits in a queue stays good, and of two the claim refuses the second.
    """
    stage = None if record.status in AT_REST else _current(saga, record)
    waiting = [] if stage is None else _waiting(record, stage, now)
    if not any(state.name == name and sent_at(state, record) == sent for state in waiting):
        return Change(record, Verdict.GO_AWAY, "it has moved on")
    return _done(saga, replace(record, wake_at=None), Verdict.LAUNCH, now, timing)


def not_sent(
    saga: Saga, record: SagaRecord, why: str, now: datetime, timing: Timing, *, broker_answers: bool
) -> Change:
    """No broker took the messages of a saga. That is shown on the saga, which is looked at again before long.

    `broker_answers`: whether the saga itself is to blame, such as for a queue that nobody declared. It then waits
    longer each time.
    """
    stage = None if record.status in AT_REST else _current(saga, record)
    if stage is None or not (waiting := _waiting(record, stage, now)):
        return Change(record, Verdict.GO_AWAY, "it has moved on")
    note = f"{NOT_SENT}: {why}"
    for state in waiting:
        record = record.with_step(replace(state, sent_at=None, error=note))
    if record.direction is Direction.FORWARD:  # backward, the error says why it turned back
        record = replace(record, error=note)
    history: tuple[HistoryEntry, ...] = ()
    if broker_answers:
        history = tuple(_entry(record, now, NOT_SENT, saga.steps[state.name], why) for state in waiting)
    else:
        record = replace(record, stalls=max(record.stalls - 1, 0))
    record = replace(record, wake_at=now + timedelta(seconds=_patience(record, timing)))
    return Change(record, Verdict.GO_AWAY, note, history)


def rewound(record: SagaRecord, now: datetime) -> SagaRecord:
    """Return a record that was written in the future as if it had been written now; any other as it is.

    Where the database's clock was set back, what is kept of before would wait for the old time to come again: a dead
    claim would be held for hours. So what was left of each wait begins now.
    """
    ahead = record.updated_at - now
    if ahead <= CLOCKS_DIFFER:
        return record

    def back(at: datetime | None) -> datetime | None:
        return None if at is None else at - ahead

    steps = {
        name: replace(
            state,
            lease_until=back(state.lease_until),
            deadline=back(state.deadline),
            due_at=back(state.due_at),
            sent_at=back(state.sent_at),
        )
        for name, state in record.steps.items()
    }
    return replace(
        record,
        updated_at=now,
        ready_at=record.ready_at - ahead,
        deadline=back(record.deadline),
        wake_at=back(record.wake_at),
        steps=steps,
    )


# -- what people bring ----------------------------------------------------------------------------------------------


def cancel(saga: Saga, record: SagaRecord, reason: str, now: datetime, timing: Timing, by: str | None = None) -> Change:
    """Turn a saga back on request."""
    if record.direction is Direction.BACKWARD:
        return Change(record, Verdict.GO_AWAY, f"already {record.status}")
    if record.status is SagaStatus.COMPLETED or _committed(saga, record):
        at = (
            f"it is {record.status}"
            if saga.pivot is None or record.status is SagaStatus.COMPLETED
            else (f"its pivot {saga.pivot.name!r} is {record.step(saga.pivot.name).status}")
        )
        raise NotAllowed(f"saga {record.name!r} ({record.id}) can no longer be undone: {at}")
    return _turn_back(saga, record, reason, now, timing, by=by)


def resume(saga: Saga, record: SagaRecord, reason: str, now: datetime, timing: Timing, by: str | None = None) -> Change:
    """Launch what is left now, without waiting for a retry or for recovery."""
    about = f"saga {record.name!r} ({record.id})"
    stage = _current(saga, record)
    if record.status in AT_REST or stage is None:
        hint = "retry, skip or mark its stuck step" if record.status is SagaStatus.STUCK else "nothing is left of it"
        raise NotAllowed(f"{about} is {record.status} and cannot be resumed: {hint}")
    for step in stage:
        state = record.step(step.name)
        if not state.held and state.due_at is not None:
            record = record.with_step(replace(state, due_at=now))
    if not _waiting(record, stage, now):
        at_work = [state for step in stage if (state := record.step(step.name)).held]
        why = ", ".join(f"step {s.name!r} is held until {s.lease_until:%H:%M:%S} UTC" for s in at_work)
        raise NotAllowed(f"{about} cannot be resumed: {why or 'none of its steps is ready'}")
    history = (_entry(record, now, "operator: resume", None, reason, by),)
    return _done(saga, replace(record, stalls=0), Verdict.LAUNCH, now, timing, "resumed", history)


class Repair(enum.Enum):
    """What an operator can do about a step that is stuck."""

    RETRY = "retry"
    SKIP = "skip"
    DONE = "done"
    FAILED = "failed"  # of a pivot alone: it had no effect, so there is a way back


def repair(
    saga: Saga,
    record: SagaRecord,
    name: str,
    how: Repair,
    reason: str,
    now: datetime,
    timing: Timing,
    *,
    by: str | None = None,
    result: str | None = None,
) -> Change:
    """Bring a stuck saga on: try the step again, leave it out, or take it as done, or as failed, by hand."""
    step = saga.steps.get(name)
    state = record.step(name)
    if step is None or record.status is not SagaStatus.STUCK or state.status is not StepStatus.STUCK:
        stuck = [s.name for s in record.steps.values() if s.status is StepStatus.STUCK]
        raise NotAllowed(
            f"saga {record.name!r} ({record.id}) is {record.status}; "
            + (f"its stuck step is {stuck[0]!r}, not {name!r}" if stuck else "none of its steps is stuck")
        )
    forward = record.direction is Direction.FORWARD
    match how:
        case Repair.RETRY:
            back = StepStatus.PENDING if forward else StepStatus.UNDOING
            state = state.move(back, failures=0, lost=0, due_at=None, error=None)
        case Repair.SKIP:
            state = state.move(StepStatus.SKIPPED, finished_at=now, result="null" if forward else state.result)
        case Repair.DONE:
            state = state.move(
                StepStatus.DONE if forward else StepStatus.UNDONE,
                finished_at=now,
                error=None,
                result=(result or state.result or "null") if forward else state.result,
            )
        case Repair.FAILED if forward and step.step.is_pivot:
            state = state.move(StepStatus.FAILED, finished_at=now)
        case Repair.FAILED:
            raise NotAllowed(
                f"saga {record.name!r} ({record.id}): only a pivot can be said to have failed, not {name!r}"
            )
    history = (_entry(record, now, f"operator: {how.value}", step, reason, by),)
    letters = (_letter(record, state, now, resolution=how.value, reason=reason, by=by),)
    record = record.with_step(state)
    if any(s.status is StepStatus.STUCK for s in record.steps.values()):
        return Change(replace(record, updated_at=now), Verdict.GO_AWAY, "another step is still stuck", history, letters)
    if how is Repair.FAILED:
        change = _turn_back(saga, record, f"pivot {name!r} had no effect: {reason}", now, timing, by=by)
        return replace(change, history=history + change.history, dead_letters=letters)
    goes_on = SagaStatus.RUNNING if forward else SagaStatus.COMPENSATING
    record = record.move(goes_on, stalls=0, ready_at=now, error=None if forward else record.error)
    change = _settle(saga, record, now, timing)
    return replace(change, history=history + change.history, dead_letters=letters)


# -- the parts ------------------------------------------------------------------------------------------------------


def _turn_back(
    saga: Saga, record: SagaRecord, why: str, now: datetime, timing: Timing, by: str | None = None
) -> Change:
    """Begin to undo. What is at work is waited for; what was between two attempts is in doubt."""
    history = (_entry(record, now, "turned back", None, why, by),)
    for step in saga.steps.values():
        state = record.step(step.name)
        if state.status is StepStatus.PENDING and state.position:
            state = state.move(StepStatus.IN_DOUBT)
        if step.compensation is None and state.status in (StepStatus.RUNNING, StepStatus.DONE, StepStatus.IN_DOUBT):
            state = _released(state, StepStatus.UNDONE, now)
        if state.position:
            record = record.with_step(replace(state, failures=0, lost=0, due_at=None))
    record = record.move(
        SagaStatus.COMPENSATING,
        direction=Direction.BACKWARD,
        epoch=record.epoch + 1,
        stalls=0,
        ready_at=now,
        error=why,
    )
    change = _settle(saga, record, now, timing)
    return replace(change, note=why, history=history + change.history)


def _failed_late(
    saga: Saga,
    record: SagaRecord,
    step: BoundStep,
    owner: str,
    direction: Direction,
    failure: Failure,
    now: datetime,
    timing: Timing,
) -> Change:
    """An attempt that had been given up came to a bad end. Only `Terminal` says that it had no effect."""
    state = record.step(step.name)
    if direction is Direction.FORWARD and failure.outcome is not Outcome.TERMINAL:
        if record.direction is Direction.BACKWARD:
            return _landed_late(saga, record, step, owner, None, now, timing, failure.error)
        if state.status is StepStatus.STUCK:  # whoever has to decide what becomes of it will want to know
            history = (_entry(record, now, "landed late", step, f"an earlier attempt ended with: {failure.error}"),)
            return Change(replace(record, updated_at=now), Verdict.GO_AWAY, "it came late", history)
    return Change(record, Verdict.GO_AWAY, f"its claim was taken over; the step is {state.status}")


def _landed_late(
    saga: Saga,
    record: SagaRecord,
    step: BoundStep,
    owner: str,
    result: str | None,
    now: datetime,
    timing: Timing,
    error: str | None = None,
) -> Change:
    """An action ended after the saga had turned back, and has or may have had its effect. It is undone, once more.

    `result`: None where it is not known, since the action ended with `error`.
    """
    state = record.step(step.name)
    if step.compensation is None:
        return _landed_for_good(record, step, now, error)
    if state.status is StepStatus.DONE or (state.status is StepStatus.RUNNING and state.owner != owner):
        return Change(record, Verdict.GO_AWAY, "another delivery of it stands for it, and will be undone")
    how = "" if error is None else f", and ended with: {error}"
    history = (_entry(record, now, "landed late", step, f"it was {state.status}{how}"),)
    letters: tuple[DeadLetter, ...] = ()
    if state.status is StepStatus.STUCK:
        letters = (
            _letter(record, state, now, resolution="landed late", reason="its outcome is known: undone once more"),
        )
    # Whoever is undoing it now may have looked before it landed: that claim is void, and it is undone once more.
    result = state.result if result is None else result
    error = state.error if error is None else error
    state = _released(state, StepStatus.IN_DOUBT, now, result=result, error=error, failures=0, lost=0, due_at=None)
    record = record.with_step(state)
    stuck = any(s.status is StepStatus.STUCK for s in record.steps.values())
    if record.status is SagaStatus.COMPENSATED or (record.status is SagaStatus.STUCK and not stuck):
        record = record.move(SagaStatus.COMPENSATING, ready_at=now)
    return _done(saga, record, Verdict.LAUNCH, now, timing, "landed after the saga had turned back", history, letters)


def _landed_for_good(record: SagaRecord, step: BoundStep, now: datetime, error: str | None) -> Change:
    """An action without a compensation ended after the saga had turned back. For a pivot that takes a person."""
    note = "it came late, and there is nothing that undoes it"
    if error is not None:
        note = f"it ended late, nobody knows whether it had an effect, and there is nothing that undoes it: {error}"
    if not step.step.is_pivot:
        return Change(record, Verdict.GO_AWAY, note)
    letter = replace(_letter(record, record.step(step.name), now), direction=Direction.FORWARD, error=note)
    history = (_entry(record, now, "landed late", step, note),)
    return Change(replace(record, updated_at=now), Verdict.GO_AWAY, note, history, (letter,))


def _expire(saga: Saga, record: SagaRecord, step: BoundStep, now: datetime, timing: Timing) -> Change:
    """A claim has died: its time was up, or its worker stopped renewing it."""
    state = record.step(step.name)
    assert state.owner is not None
    assert state.deadline is not None
    if state.deadline <= now:
        late = Failure(Outcome.FAILED, f"no answer within {step.step.timeout:g} s")
        return fail(saga, record, step.name, state.owner, record.direction, late, now, timing)
    return _lose(saga, record, step, now, timing)


def _lose(saga: Saga, record: SagaRecord, step: BoundStep, now: datetime, timing: Timing) -> Change:
    """A delivery of a step ended in silence. After too many it is given up: it may be what kills its workers."""
    state = record.step(step.name)
    ran = state.held
    undoing = record.direction is Direction.BACKWARD and state.status is not StepStatus.RUNNING
    awaited = record.direction is Direction.BACKWARD and not undoing  # an action that the saga no longer wants
    lost = state.lost + 1
    error = f"lost {lost} of {step.step.max_deliveries} times: " + (
        "its worker died" if ran else "Celery could not run it"
    )
    history = (_entry(record, now, "lost", step, error),)
    if lost < step.step.max_deliveries and not awaited:
        waiting = StepStatus.PENDING if state.status is StepStatus.RUNNING else state.status
        state = _released(state, waiting, state.finished_at, lost=lost, error=error)
        return _done(saga, record.with_step(state), Verdict.GO_AWAY, now, timing, error, history)
    never_ran = not ran and not state.position
    status = _given_up(step, Outcome.TERMINAL if never_ran else Outcome.IN_DOUBT, record, undoing=undoing)
    state = _released(state, status, now, lost=lost, error=error)
    return _after_step(saga, record.with_step(state), step, Verdict.FAILED, now, timing, error, history)


def _expire_unstarted(
    saga: Saga, change: Change, stage: tuple[BoundStep, ...], now: datetime, timing: Timing
) -> Change:
    """Give up the steps of the current stage that no worker took in time."""
    for step in stage:
        record = change.record
        state = record.step(step.name)
        limit = _start_deadline(step, state, record)
        if limit is None or limit > now or state.status is not StepStatus.PENDING:
            continue
        error = f"no worker began it within {step.step.start_timeout:g} s"
        status = _given_up(step, Outcome.IN_DOUBT if state.position else Outcome.TERMINAL, record, undoing=False)
        after = record.with_step(_released(state, status, now, error=error))
        history = (_entry(record, now, "not started", step, error),)
        change = _merge(change, _after_step(saga, after, step, Verdict.FAILED, now, timing, error, history))
    return change


def _after_step(
    saga: Saga,
    record: SagaRecord,
    step: BoundStep,
    verdict: Verdict,
    now: datetime,
    timing: Timing,
    note: str = "",
    history: tuple[HistoryEntry, ...] = (),
) -> Change:
    """A step has come to an end, good or bad: close its stage or its saga when it was the last."""
    stage, state = saga.stages[step.stage], record.step(step.name)
    letters = (_letter(record, state, now),) if state.status is StepStatus.STUCK else ()
    over = _is_over(record, stage)
    if over and _is_stuck(record, stage):
        change = _get_stuck(saga, record, stage, now, timing)
    elif record.direction is Direction.BACKWARD and state.status in (StepStatus.FAILED, StepStatus.IN_DOUBT):
        change = _settle(saga, record, now, timing)  # the action was waited for; now it can be undone
        return replace(change, note=note, history=history + change.history, dead_letters=letters)
    else:
        if over and _current(saga, record) is None:
            forward = record.direction is Direction.FORWARD
            record = record.move(SagaStatus.COMPLETED if forward else SagaStatus.COMPENSATED)
        change = _done(saga, replace(record, ready_at=now) if over else record, verdict, now, timing)
    if len(stage) > 1:  # in a chord a failure is data: the join raises it
        verdict = Verdict.CLOSED if over else Verdict.PARTED
    return replace(change, verdict=verdict, note=note, history=history + change.history, dead_letters=letters)


def _get_stuck(saga: Saga, record: SagaRecord, stage: tuple[BoundStep, ...], now: datetime, timing: Timing) -> Change:
    reason = _reason(record, stage)
    # Backward, the error says why it turned back; that its compensation is stuck, the step says.
    record = record.move(SagaStatus.STUCK, error=reason if record.direction is Direction.FORWARD else record.error)
    history = (_entry(record, now, "stuck", None, reason),)
    return _done(saga, record, Verdict.GO_AWAY, now, timing, history=history)


def _settle(saga: Saga, record: SagaRecord, now: datetime, timing: Timing) -> Change:
    """Finish the saga when nothing is left of it, else have the rest launched."""
    if _current(saga, record) is None:
        forward = record.direction is Direction.FORWARD
        record = record.move(SagaStatus.COMPLETED if forward else SagaStatus.COMPENSATED)
        return _done(saga, record, Verdict.GO_AWAY, now, timing)
    return _done(saga, record, Verdict.LAUNCH, now, timing)


def _given_up(step: BoundStep, outcome: Outcome, record: SagaRecord, *, undoing: bool) -> StepStatus:
    """What becomes of a step that is not tried again."""
    if undoing or step.past_pivot:
        return StepStatus.STUCK
    if outcome is Outcome.TERMINAL:
        return StepStatus.FAILED
    # A pivot cannot be undone, so while its effect is unknown the saga can go neither way.
    if step.step.is_pivot and record.direction is Direction.FORWARD:
        return StepStatus.STUCK
    return StepStatus.IN_DOUBT


def _stale(record: SagaRecord, epoch: int) -> Change | None:
    if record.epoch != epoch:
        return Change(record, Verdict.GO_AWAY, f"the message is of epoch {epoch}, the saga of {record.epoch}")
    if record.status is SagaStatus.STUCK:
        return Change(record, Verdict.GO_AWAY, f"the saga is {record.status}")
    return None


def _current(saga: Saga, record: SagaRecord) -> tuple[BoundStep, ...] | None:
    """Return the stage that the saga is at, or None when nothing is left in its direction."""
    stages = saga.stages if record.direction is Direction.FORWARD else saga.stages[::-1]
    for stage in stages:
        if not all(settled(step, record.step(step.name), record.direction) for step in stage):
            return stage
    return None


def _is_turn_of(saga: Saga, record: SagaRecord, step: BoundStep) -> bool:
    current = _current(saga, record)
    return current is not None and current[0].stage == step.stage


def _is_doomed(record: SagaRecord, stage: tuple[BoundStep, ...]) -> bool:
    """Tell whether a step of the stage is given up, so that the saga cannot go forward from it."""
    bad = (StepStatus.FAILED, StepStatus.IN_DOUBT, StepStatus.STUCK)
    return record.direction is Direction.FORWARD and any(record.step(step.name).status in bad for step in stage)


def _is_stuck(record: SagaRecord, stage: tuple[BoundStep, ...]) -> bool:
    return any(record.step(step.name).status is StepStatus.STUCK for step in stage)


def _is_over(record: SagaRecord, stage: tuple[BoundStep, ...]) -> bool:
    """Tell whether a stage is at its end: nobody is at work, and all are settled or, going forward, one failed."""
    states = [record.step(step.name) for step in stage]
    if any(state.held for state in states):
        return False
    if _is_doomed(record, stage):
        return True
    return all(
        settled(step, state, record.direction) or state.status is StepStatus.STUCK
        for step, state in zip(stage, states, strict=True)
    )


def _committed(saga: Saga, record: SagaRecord) -> bool:
    """Tell whether the pivot has been reached: done, or begun with an effect that is not known."""
    if saga.pivot is None:
        return False
    state = record.step(saga.pivot.name)
    return state.status in (StepStatus.DONE, StepStatus.SKIPPED, StepStatus.RUNNING, StepStatus.STUCK) or (
        state.status is StepStatus.PENDING and state.position > 0
    )


def _is_ready(state: StepRecord, direction: Direction, now: datetime) -> bool:
    """Tell whether a step waits to be claimed, and is due."""
    if state.held or (state.due_at is not None and state.due_at > now):
        return False
    if direction is Direction.FORWARD:
        return state.status is StepStatus.PENDING
    return state.status in (StepStatus.DONE, StepStatus.FAILED, StepStatus.IN_DOUBT, StepStatus.UNDOING)


def _waiting(record: SagaRecord, stage: tuple[BoundStep, ...], now: datetime) -> list[StepRecord]:
    """Return the steps of the current stage that a worker could begin now."""
    if _is_doomed(record, stage):
        return []
    states = [state for step in stage if not settled(step, state := record.step(step.name), record.direction)]
    return [state for state in states if _is_ready(state, record.direction, now)]


def _has_no_message(state: StepRecord, direction: Direction) -> bool:
    """Tell whether a waiting step is to be sent a message, since the one that it had is used up.

    The message of a step that has not begun comes with the chain, when its stage is reached.
    """
    begun = state.position > 0 if direction is Direction.FORWARD else state.status is StepStatus.UNDOING
    return state.sent_at is None and (begun or state.lost > 0)


def sent_at(state: StepRecord, record: SagaRecord) -> datetime:
    """Say when the message of a waiting step was sent."""
    return record.ready_at if state.sent_at is None else max(state.sent_at, record.ready_at)


def _patience(record: SagaRecord, timing: Timing) -> float:
    """Return for how many seconds a message may go unanswered. Each look in vain doubles that."""
    return float(timing.stall * 2 ** min(record.stalls, _MOST_DOUBLINGS))


def _is_dead(state: StepRecord, now: datetime) -> bool:
    return state.lease_until is not None and state.lease_until <= now


def _reason(record: SagaRecord, stage: tuple[BoundStep, ...]) -> str:
    """Say which steps failed, and how, for people."""
    said = {StepStatus.FAILED: "failed", StepStatus.IN_DOUBT: "is in doubt", StepStatus.STUCK: "is stuck"}
    states = [record.step(step.name) for step in stage]
    return "; ".join(f"step {s.name!r} {said[s.status]}: {s.error}" for s in states if s.status in said)


def _released(state: StepRecord, status: StepStatus, finished_at: datetime | None, **changes: object) -> StepRecord:
    return state.move(
        status, owner=None, lease_until=None, deadline=None, sent_at=None, finished_at=finished_at, **changes
    )


def _start_deadline(step: BoundStep, state: StepRecord, record: SagaRecord) -> datetime | None:
    if step.step.start_timeout is None or record.direction is Direction.BACKWARD:
        return None
    if state.position and state.due_at is None:
        return None  # it had begun, and lost its worker
    since = max(filter(None, (record.ready_at, state.due_at)))
    return since + timedelta(seconds=step.step.start_timeout)


def _wake_at(saga: Saga, record: SagaRecord, now: datetime, timing: Timing) -> datetime | None:
    """When recovery should look at the saga again, if nothing else happens until then."""
    stage = _current(saga, record)
    if record.status in AT_REST or stage is None:
        return None
    patience = timedelta(seconds=_patience(record, timing))
    times: list[datetime | None] = []
    doomed = _is_doomed(record, stage)
    for step in stage:
        state = record.step(step.name)
        if state.held:
            times.append(state.lease_until)
        elif not doomed and not settled(step, state, record.direction):
            sent = sent_at(state, record)
            overdue = sent + patience if sent + timedelta(seconds=timing.stall) > now else now + patience
            times.append(state.due_at if state.due_at is not None and state.due_at >= now else overdue)
            limit = _start_deadline(step, state, record)
            times.append(limit if limit is not None and limit > now else None)
    if record.direction is Direction.FORWARD and not _committed(saga, record) and record.deadline:
        times.append(max(record.deadline, now))
    return min(filter(None, times), default=now + patience)


def _entry(
    record: SagaRecord, now: datetime, what: str, step: BoundStep | None, detail: str, by: str | None = None
) -> HistoryEntry:
    return HistoryEntry(
        at=now, what=what, epoch=record.epoch, step=step.name if step is not None else None, detail=detail, by=by
    )


def _letter(record: SagaRecord, state: StepRecord, now: datetime, **resolved: str | None) -> DeadLetter:
    """Open the dead letter of a step, or close it with how it was resolved."""
    return DeadLetter(
        saga_id=record.id,
        step=state.name,
        direction=record.direction,
        error=state.error or "",
        created_at=now,
        resolved_at=now if resolved else None,
        **resolved,
    )


def _done(
    saga: Saga,
    record: SagaRecord,
    verdict: Verdict,
    now: datetime,
    timing: Timing,
    note: str = "",
    history: tuple[HistoryEntry, ...] = (),
    dead_letters: tuple[DeadLetter, ...] = (),
) -> Change:
    if verdict is Verdict.LAUNCH and (stage := _current(saga, record)) is not None:
        for state in _waiting(record, stage, now):
            record = record.with_step(replace(state, sent_at=now))
        record = replace(record, dispatches=record.dispatches + 1)
    # It may be looked at too early, never too late. Where the time that is stored will do it stays: that spares the
    # database an index entry at every checkpoint.
    wake_at = _wake_at(saga, record, now, timing)
    if record.wake_at is None or wake_at is None or not now < record.wake_at <= wake_at:
        record = replace(record, wake_at=wake_at)
    return Change(replace(record, updated_at=now), verdict, note, history, dead_letters)


def _merge(first: Change, second: Change) -> Change:
    """Return `second`, which followed on `first`, with what both of them have to tell."""
    return replace(
        second,
        note=second.note or first.note,
        history=first.history + second.history,
        dead_letters=first.dead_letters + second.dead_letters,
    )
