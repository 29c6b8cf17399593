"""What time brings to a saga: recovery looks at it."""

from __future__ import annotations

from datetime import datetime

from sagas.checkpoints import (
    AT_REST,
    CLOCKS_DIFFER,
    NOT_SENT,
    HistoryEntry,
    HistoryKind,
    SagaRecord,
    StepRecord,
    StepStatus,
    replace,
)
from sagas.transitions.case import Case, Change, Verdict
from sagas.transitions.children import Children, look
from sagas.transitions.ends import expire, move_on
from sagas.transitions.items import Counts, look_at_items
from sagas.transitions.waits import elapse

__all__ = ["examine", "not_sent", "redispatch", "rewound"]

_NO_CHILDREN: Children = {}
_NO_COUNTS: Counts = {}


def examine(case: Case, children: Children = _NO_CHILDREN, counts: Counts = _NO_COUNTS) -> Change:
    """Bring a due saga to where it should be: settle dead claims, honour deadlines, dispatch what has no message.

    `children`: those that `due_children` names. `counts`: of the items of the steps that `due_items` names.

    OVERDUE where a step has a message and nobody has begun it: see `redispatch`.
    """
    if case.record.status in AT_REST and case.record.parent_item is not None:
        return case.refuse("it tells its parent")  # which ends that it is due
    if case.record.status in AT_REST:
        return Change(replace(case.record, next_check_at=None), Verdict.GO_AWAY)
    # `next_check_at` is the mark that keeps other recoveries away, and says nothing about the saga.
    case = case.on(replace(case.record, next_check_at=None))
    if case.record.dispatches == 0 and not case.is_ahead:  # its time to start has come
        return case.done(Verdict.DISPATCH)
    change = Change(case.record, Verdict.GO_AWAY)
    for name in case.record.steps:
        now = case.on(change.record)
        step = now.record.step(name)
        if step.held and now.dead(step):
            change = change.then(expire(now, step))
        elif step.status is StepStatus.WAITING and step.due_at is not None and step.due_at <= case.now:
            change = change.then(_due(now, step, children, counts))
    if change.verdict is not Verdict.DISPATCH:
        change = move_on(case, change)
    return change if change.record is not case.record else _wait(case)


def _due(case: Case, step: StepRecord, children: Children, counts: Counts) -> Change:
    if step.kind == "each":
        return look_at_items(case, step.name, counts[step.name])
    return elapse(case, step) if step.child_id is None else look(case, step, children)


def _wait(case: Case) -> Change:
    """Nothing is to be done to a saga but to wait. Say whether it has waited for too long, and when to look again."""
    verdict, patience = Verdict.GO_AWAY, case.patience
    if any(case.record.sent_at(step) + patience <= case.now for step in case.waiting):
        verdict, case = Verdict.OVERDUE, case.on(replace(case.record, idle_checks=case.record.idle_checks + 1))
    # `updated_at` stays: a look changes nothing.
    return Change(replace(case.record, next_check_at=case.next_check_at), verdict)


def redispatch(case: Case, name: str, sent_at: datetime) -> Change:
    """Send an overdue saga's messages once more: the first ones are lost, or it is not known that they are not.

    `name`, `sent_at`: the step that was overdue, and when its message was sent. If the saga has moved on since, there
    is nothing to send.

    The epoch stays: a message that still waits in a queue stays good, and of two the claim refuses the second.
    """
    at_rest = case.record.status in AT_REST
    if at_rest or not any(step.name == name and case.record.sent_at(step) == sent_at for step in case.waiting):
        return case.refuse("it has moved on")
    return case.on(replace(case.record, next_check_at=None)).done(Verdict.DISPATCH)


def not_sent(case: Case, why: str, *, broker_answers: bool) -> Change:
    """No broker took the messages of a saga. That is shown on the saga, which is looked at again before long.

    `broker_answers`: whether the saga itself is to blame, such as for a queue that nobody declared. It then waits
    longer each time.
    """
    waiting = [] if case.record.status in AT_REST else case.waiting
    if not waiting:
        return case.refuse("it has moved on")
    note = f"{NOT_SENT}: {why}"
    for step in waiting:
        case = case.set(replace(step, sent_at=None, error=note))
    record = case.record
    if case.forward:  # while it compensates, the error says why
        record = replace(record, error=note)
    history: tuple[HistoryEntry, ...] = ()
    if broker_answers:
        history = tuple(case.entry(HistoryKind.NOT_SENT, step, why) for step in waiting)
    else:
        record = replace(record, idle_checks=max(record.idle_checks - 1, 0))
    record = replace(record, next_check_at=case.now + case.on(record).patience)
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
            step,
            lease_until=back(step.lease_until),
            deadline=back(step.deadline),
            # A timer may be set to a time of day: rather late than early.
            due_at=step.due_at if step.kind == "timer" else back(step.due_at),
            sent_at=back(step.sent_at),
            heartbeat_at=back(step.heartbeat_at),
            started_at=None if step.started_at is None else min(step.started_at, now),
        )
        for name, step in record.steps.items()
    }
    return replace(
        record,
        updated_at=now,
        stage_ready_at=record.stage_ready_at - ahead,
        deadline=back(record.deadline),
        next_check_at=back(record.next_check_at),
        steps=steps,
    )
