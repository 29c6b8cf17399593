"""What an operator sees of schedules and does to them, on the command line, in Flower and in the admin."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sagas.errors import NotAllowed, StoreUnavailable
from sagas.operations import Operations, check_reason
from sagas.scheduler import ABANDONED
from sagas.schedules import Schedule
from sagas.stores import schedules as stored
from sagas.stores.audit import MaintenanceEntry
from sagas.ticks import ScheduleState, Tick, TickOutcome, decide_now

__all__ = ["ScheduleAction", "ScheduleOperations", "ScheduleView"]

#: Times that a start by hand is tried while workers decide about the same schedule.
_TRIES = 10


class ScheduleAction(enum.StrEnum):
    """What an operator can do to a schedule."""

    PAUSE = "pause"  #: skip its ticks until it is resumed
    RESUME = "resume"  #: go on with its next tick
    RUN = "run"  #: start its saga now


@dataclass(frozen=True, slots=True)
class ScheduleView:
    """What operators see of a schedule."""

    name: str
    schedule: Schedule | None  #: None where this code does not define it
    state: ScheduleState | None  #: None where no worker has seen it yet
    abandoned: bool  #: whether no worker that runs has this definition
    last: Tick | None  #: its latest tick

    @property
    def saga(self) -> str:
        """The name of the saga that it starts."""
        return self._defined("saga") if self.schedule is None else self.schedule.saga.name

    @property
    def cron(self) -> str:
        """Its cron expression."""
        return self._defined("cron") if self.schedule is None else self.schedule.cron

    @property
    def timezone(self) -> str:
        """The time zone of its local times."""
        return self._defined("timezone") if self.schedule is None else self.schedule.timezone

    def _defined(self, name: str) -> str:
        return str(getattr(self.state, name))

    @property
    def allowed(self) -> tuple[ScheduleAction, ...]:
        """What may be done to it."""
        if self.schedule is None:
            return ()
        paused = self.state is not None and self.state.paused_at is not None
        return (ScheduleAction.RESUME if paused else ScheduleAction.PAUSE, ScheduleAction.RUN)


class ScheduleOperations:
    """The operator's side of the schedules of an app."""

    def __init__(self, operations: Operations) -> None:
        self._scheduler = operations.sagas.scheduler
        self.store = operations.store

    def list(self) -> Sequence[ScheduleView]:
        """Return the schedules of this code and those in the database, by name."""
        known = {state.name: state for state in stored.states(self.store)}
        names = sorted(known.keys() | self._scheduler.schedules.keys())
        now = self.store.now()
        return [self._view(name, known.get(name), now) for name in names]

    def ticks(self, name: str, *, limit: int = 20, before: datetime | None = None) -> Sequence[Tick]:
        """Return the ticks of a schedule, newest first."""
        return stored.ticks(self.store, name, limit=limit, before=before)

    def next_times(self, name: str, count: int = 5) -> Sequence[datetime]:
        """Return the times of the next ticks of a schedule, in its time zone. Raises `NotAllowed`."""
        return self._schedule(name).next_times(self.store.now(), count)

    def act(self, action: ScheduleAction, name: str, *, actor: str, reason: str) -> Tick | None:
        """Do something to a schedule; return the tick that a start by hand leads to.

        Raises `NotAllowed` when there is no such schedule, its state forbids it, or no reason is given.
        """
        check_reason(f"schedule {name}, {action}", reason)
        match action:
            case ScheduleAction.PAUSE:
                self._pause(name, actor, reason)
            case ScheduleAction.RESUME:
                self._resume(name, actor, reason)
            case ScheduleAction.RUN:
                return self._run(name, actor, reason)
        return None

    def _pause(self, name: str, actor: str, reason: str) -> None:
        schedule = self._schedule(name)
        state = self._state(schedule)
        if state.paused_at is not None:
            raise NotAllowed(f"schedule {name!r} is paused already, by {state.paused_by}: {state.paused_why}")
        values = {"paused_at": self.store.now(), "paused_by": actor, "paused_why": reason}
        stored.change(self.store, name, values, self._entry("pause schedule", schedule, actor, reason, 0))

    def _resume(self, name: str, actor: str, reason: str) -> None:
        schedule = self._schedule(name)
        if self._state(schedule).paused_at is None:
            raise NotAllowed(f"schedule {name!r} is not paused")
        values = {"paused_at": None, "paused_by": None, "paused_why": None}
        stored.change(self.store, name, values, self._entry("resume schedule", schedule, actor, reason, 0))

    def _run(self, name: str, actor: str, reason: str) -> Tick:
        schedule = self._schedule(name)
        for _ in range(_TRIES):
            state, now = self._state(schedule), self.store.now()
            running = stored.running(self.store, name)
            decision = decide_now(schedule, state, now, running, actor=actor, reason=reason)
            if decision.ticks[-1].outcome is TickOutcome.SKIPPED:
                raise NotAllowed(
                    f"schedule {name!r} is not started: {running}, and its overlap is {schedule.overlap.value!r}. Wait "
                    "for that saga, or cancel it"
                )
            entry = self._entry("run schedule", schedule, actor, reason, 1)
            if self._scheduler.carry_out(schedule, state, decision, entry) is not None:
                return stored.ticks(self.store, name, at=now)[0]
        raise StoreUnavailable(f"schedule {name!r} is changed by others all the time; try again")

    def _schedule(self, name: str) -> Schedule:
        schedule = self._scheduler.schedules.get(name)
        if schedule is None:
            known = ", ".join(sorted(self._scheduler.schedules)) or "none"
            raise NotAllowed(f"this app has no schedule {name!r}; there is: {known}")
        return schedule

    def _state(self, schedule: Schedule) -> ScheduleState:
        for _ in range(2):
            if found := stored.states(self.store, [schedule.name]):
                return found[0]
            self._scheduler.declare(schedule)  # no worker has run since it was written
        raise StoreUnavailable(f"schedule {schedule.name!r} cannot be stored; try again")

    def _view(self, name: str, state: ScheduleState | None, now: datetime) -> ScheduleView:
        last = stored.ticks(self.store, name, limit=1)
        abandoned = state is None or abs(now - state.seen_at) > ABANDONED
        return ScheduleView(name, self._scheduler.schedules.get(name), state, abandoned, last[0] if last else None)

    def _entry(self, what: str, schedule: Schedule, actor: str, reason: str, count: int) -> MaintenanceEntry:
        detail = f"{schedule.name}, which starts {schedule.saga.name}"
        return MaintenanceEntry(at=self.store.now(), actor=actor, what=what, detail=detail, reason=reason, count=count)
