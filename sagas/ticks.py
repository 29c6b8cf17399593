"""The rules of schedules: what becomes of the ticks that are due. Pure, like `transitions`.

A tick is one time of a schedule. Each leaves a record that says what became of it, and why.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from sagas.checkpoints import SagaStatus
from sagas.schedules import CatchUp, Overlap, Schedule, next_tick

__all__ = ["Decision", "Running", "ScheduleState", "Tick", "TickOutcome", "decide", "decide_now", "redefined"]

#: A tick that starts within so long is on time: recovery looks every second, and pauses after errors.
_ON_TIME = timedelta(seconds=60)

#: Ticks that one decision is about. A schedule that slept for a year has many.
_MOST = 500


class TickOutcome(enum.StrEnum):
    """What became of a tick."""

    STARTED = "STARTED"  #: its saga was started
    QUEUED = "QUEUED"  #: it waits for the saga of an earlier tick
    SKIPPED = "SKIPPED"  #: it was decided not to start it
    MISSED = "MISSED"  #: nobody looked at it in time
    FAILED = "FAILED"  #: its saga could not be started


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One time of a schedule, and what became of it."""

    schedule: str
    at: datetime  #: its nominal time; of a start by hand, the time of that
    outcome: TickOutcome
    why: str = ""
    saga_id: str | None = None
    decided_at: datetime
    actor: str | None = None  #: who started it by hand


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleState:
    """What is remembered of a schedule."""

    name: str
    saga: str
    cron: str
    timezone: str
    next_at: datetime  #: the nominal time of the first tick that nothing was decided about
    waiting: datetime | None = None  #: the tick that is QUEUED
    paused_at: datetime | None = None
    paused_by: str | None = None
    paused_why: str | None = None
    seen_at: datetime  #: when a worker last had this definition, give or take a minute
    revision: int = 1


@dataclass(frozen=True, slots=True)
class Running:
    """The saga of an earlier tick that has not ended."""

    saga_id: str
    status: SagaStatus

    def __str__(self) -> str:
        return f"saga {self.saga_id} of an earlier tick is {self.status}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be stored, in one transaction with the start of a saga."""

    state: ScheduleState
    ticks: Sequence[Tick]
    start: datetime | None = None  #: the tick whose saga is started; it is the last one of `ticks`
    cancel: str | None = None  #: the saga that is cancelled before


def decide(schedule: Schedule, state: ScheduleState, now: datetime, running: Running | None) -> Decision | None:
    """Decide about what is due first; None where nothing is to be done now. Asked again, it goes on from there."""
    free = running is None or schedule.overlap is Overlap.ALLOW
    due, following = _due(schedule, state, now)
    # A later tick would at once cancel what is started here. It takes its place, unless all ticks are to start.
    replaced = due and schedule.overlap is Overlap.CANCEL and schedule.catch_up is not CatchUp.ALL
    if state.waiting is not None and free and state.paused_at is None and not replaced:
        return _start(replace(state, waiting=None), state.waiting, now, "the saga that it waited for has ended")
    if not due:
        return None
    if state.paused_at is not None:
        why = f"the schedule is paused by {state.paused_by}: {state.paused_why}"
        return Decision(
            state=replace(state, next_at=following),
            ticks=[_tick(state, at, now, TickOutcome.SKIPPED, why) for at in due],
        )
    if missed := _missed(schedule, due, following, now):
        at = due[len(missed)] if len(missed) < len(due) else following
        return Decision(
            state=replace(state, next_at=at),
            ticks=[_tick(state, at, now, TickOutcome.MISSED, why) for at, why in missed],
        )
    return _decide_one(schedule, state, due, now, None if free else running)


def decide_now(
    schedule: Schedule, state: ScheduleState, now: datetime, running: Running | None, *, actor: str, reason: str
) -> Decision:
    """Decide about a tick that an operator asks for. It overlaps with the sagas of earlier ones as any other does."""
    if running is None or schedule.overlap is Overlap.ALLOW:
        decision = _start(state, now, now, "")
    else:
        decision = _overlap(schedule, state, now, now, running)
    by_hand = decision.ticks[-1]
    why = f"by hand: {reason}" + (f"; {by_hand.why}" if by_hand.why else "")
    return replace(decision, ticks=[*decision.ticks[:-1], replace(by_hand, actor=actor, why=why)])


def redefined(schedule: Schedule, state: ScheduleState, now: datetime) -> tuple[ScheduleState, Sequence[Tick]]:
    """Return the state of a schedule that was defined otherwise before, and the ticks that are lost by that.

    What was due by the old expression cannot be told in terms of the new one: those ticks are MISSED.
    """
    after = replace(state, saga=schedule.saga.name, cron=schedule.cron, timezone=schedule.timezone, seen_at=now)
    if (state.cron, state.timezone) == (schedule.cron, schedule.timezone):
        return after, ()
    why = f"the schedule was changed from {state.cron!r} in {state.timezone} before a worker looked at this tick"
    lost: list[Tick] = []
    at = state.next_at
    while at <= now and len(lost) < _MOST:
        lost.append(_tick(state, at, now, TickOutcome.MISSED, why))
        at = next_tick(state.cron, ZoneInfo(state.timezone), at)
    if at <= now:
        lost[-1] = replace(lost[-1], why=f"{why}, nor at the later ones")
    return replace(after, next_at=schedule.next_after(now)), lost


def _decide_one(
    schedule: Schedule, state: ScheduleState, due: Sequence[datetime], now: datetime, running: Running | None
) -> Decision | None:
    at, late = due[0], now - schedule.due_at(due[0])
    caught_up = len(due) > 1 or late > _ON_TIME
    if running is not None and caught_up and schedule.catch_up is CatchUp.ALL:
        return None  # skipping or cancelling here would lose what is to be caught up
    state = replace(state, next_at=schedule.next_after(at))
    if running is not None:
        return _overlap(schedule, state, at, now, running)
    why = f"{_told(late)} late: no worker looked at it in time" if caught_up else ""
    decision = _start(replace(state, waiting=None), at, now, why)
    return decision if state.waiting is None else replace(decision, ticks=[_replaced(state, at, now), *decision.ticks])


def _overlap(schedule: Schedule, state: ScheduleState, at: datetime, now: datetime, running: Running) -> Decision:
    waiting = state.waiting
    if schedule.overlap is Overlap.CANCEL:
        why = f"{running}; it is cancelled, and this one waits for its end"
        ticks = [] if waiting is None else [_replaced(state, at, now)]
        ticks.append(_tick(state, at, now, TickOutcome.QUEUED, why))
        return Decision(state=replace(state, waiting=at), ticks=ticks, cancel=running.saga_id)
    if schedule.overlap is Overlap.QUEUE and waiting is None:
        return Decision(
            state=replace(state, waiting=at), ticks=[_tick(state, at, now, TickOutcome.QUEUED, str(running))]
        )
    why = str(running) if waiting is None else f"{running}, and the tick {waiting.isoformat()} waits already"
    return Decision(state=state, ticks=[_tick(state, at, now, TickOutcome.SKIPPED, why)])


def _missed(
    schedule: Schedule, due: Sequence[datetime], following: datetime, now: datetime
) -> list[tuple[datetime, str]]:
    """Return the ticks that are not caught up, the oldest of those that are due, with why."""
    window = None if schedule.catch_up_window is None else timedelta(seconds=schedule.catch_up_window)
    last = None if schedule.due_at(following) <= now else due[-1]  # None: there are later ones, in the next decision
    missed = []
    for at in due:
        late = now - schedule.due_at(at)
        if window is not None and late > window:
            why = f"{_told(late)} late, more than catch_up_window={_told(window)}"
        elif schedule.catch_up is CatchUp.NONE and late > _ON_TIME:
            why = f"{_told(late)} late: no worker looked at it in time, and catch_up='none'"
        elif schedule.catch_up is CatchUp.LATEST and at != last:
            why = f"{_told(late)} late: no worker looked at it in time, and catch_up='latest' starts a later one"
        else:
            break
        missed.append((at, why))
    return missed


def _due(schedule: Schedule, state: ScheduleState, now: datetime) -> tuple[list[datetime], datetime]:
    """Return the ticks that are due, oldest first, and the tick after them."""
    found: list[datetime] = []
    at = state.next_at
    while at <= now and schedule.due_at(at) <= now and len(found) < _MOST:
        found.append(at)
        at = schedule.next_after(at)
    return found, at


def _start(state: ScheduleState, at: datetime, now: datetime, why: str) -> Decision:
    return Decision(state=state, ticks=[_tick(state, at, now, TickOutcome.STARTED, why)], start=at)


def _tick(state: ScheduleState, at: datetime, now: datetime, outcome: TickOutcome, why: str) -> Tick:
    return Tick(schedule=state.name, at=at, outcome=outcome, why=why, decided_at=now)


def _replaced(state: ScheduleState, at: datetime, now: datetime) -> Tick:
    """Return the tick that waits, whose place another one takes."""
    assert state.waiting is not None
    return _tick(state, state.waiting, now, TickOutcome.SKIPPED, f"the tick {at.isoformat()} took its place")


def _told(duration: timedelta) -> str:
    return str(duration).partition(".")[0]
