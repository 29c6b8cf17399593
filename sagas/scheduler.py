"""Runs schedules: what recovery does for them at each pass, in every worker, and what an operator asks for.

No worker is elected, and none waits for another. Each decides by the rules in `ticks`, and the database stores one of
their decisions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sagas import starts
from sagas.canvas import Canvas
from sagas.checkpoints import Direction
from sagas.engine import Next
from sagas.errors import (
    ConfigurationError,
    DefinitionMissing,
    DuplicateName,
    NotAllowed,
    PayloadUnreadable,
    SagaNotFound,
    StartError,
    StoreRefused,
    StoreUnavailable,
)
from sagas.orchestrator import Orchestrator
from sagas.schedules import Schedule
from sagas.stores import SqlStore
from sagas.stores import schedules as stored
from sagas.stores.audit import MaintenanceEntry
from sagas.text import clean, describe
from sagas.ticks import Decision, ScheduleState, Tick, TickOutcome, decide, redefined

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["ABANDONED", "Scheduler"]

logger = logging.getLogger(__name__)

#: A worker that has a definition says so this often.
_CONFIRM = timedelta(seconds=60)

#: A definition that no worker has confirmed for so long belongs to none: the next worker stores its own.
ABANDONED = timedelta(seconds=180)

#: Decisions about one schedule at one pass. The rest waits for the next one, so that others get their turn.
_MOST = 50

#: Characters of an error that are kept with a tick.
_LONGEST_WHY = 2_000


class Scheduler:
    """Starts the sagas of schedules. One per app; recovery runs it, and operators ask it."""

    def __init__(self, orchestrator: Orchestrator, canvas: Canvas, schedules: Iterable[Schedule]) -> None:
        self._orchestrator = orchestrator
        self._canvas = canvas
        self.schedules: dict[str, Schedule] = {}
        self._stored: set[str] = set()  # those of which this process has stored its definition
        for schedule in schedules:
            self._add(schedule)

    def _add(self, schedule: Schedule) -> None:
        if not isinstance(schedule, Schedule):
            raise ConfigurationError(f"Sagas: schedules has {schedule!r}, which is not a Schedule")
        if not isinstance(self._orchestrator.store, SqlStore):
            raise ConfigurationError(f"{schedule!r} needs a SqlStore, not {self._orchestrator.store!r}")
        saga = schedule.saga
        if self._orchestrator.sagas.get((saga.name, saga.version)) is not saga:
            raise ConfigurationError(
                f"schedule {schedule.name!r} starts {saga!r}, which is not registered with this app: "
                "Sagas(app, store, [...], schedules=[...])"
            )
        if self.schedules.setdefault(schedule.name, schedule) is not schedule:
            raise DuplicateName(f"there is already a schedule {schedule.name!r}")

    @property
    def store(self) -> SqlStore:
        store = self._orchestrator.store
        assert isinstance(store, SqlStore)
        return store

    # -- at each pass of recovery -----------------------------------------------------------------------------------

    def run_once(self) -> None:
        """Decide about the ticks that are due. What goes wrong with one schedule keeps no other from its ticks.

        Raises `StoreUnavailable` or `StoreRefused`.
        """
        if not self.schedules:
            return
        known = {state.name: state for state in stored.states(self.store, self.schedules)}
        for schedule in self.schedules.values():
            try:
                state = self._agreed(schedule, known.get(schedule.name))
                for _ in range(_MOST):
                    if state is not None:
                        state = self._decide(schedule, state)
            except (StoreUnavailable, StoreRefused):
                raise
            except Exception:
                logger.exception("schedule %s could not be looked at", schedule.name)

    def _agreed(self, schedule: Schedule, state: ScheduleState | None) -> ScheduleState | None:
        """Return the state of a schedule that is stored as this code defines it. None: leave it alone at this pass."""
        now = self.store.now()
        if state is None:
            self.declare(schedule)
            return None
        defined = schedule.saga.name, schedule.cron, schedule.timezone
        if defined == (state.saga, state.cron, state.timezone):
            self._stored.add(schedule.name)
            if abs(now - state.seen_at) > _CONFIRM:
                if state.next_at > (following := schedule.next_after(now)):  # the clock was ahead, and was set back
                    return self._settle(schedule, state, Decision(state=replace(state, next_at=following), ticks=()))
                stored.confirm(self.store, state, now)
            return state
        # Workers of the version before may still run. The one that started last is right, as long as it is there.
        if schedule.name in self._stored and abs(now - state.seen_at) < ABANDONED:
            return None
        self._stored.add(schedule.name)
        logger.info("schedule %s was %r in %s and is now %r", state.name, state.cron, state.timezone, schedule)
        after, lost = redefined(schedule, state, now)
        return self._settle(schedule, state, Decision(state=after, ticks=lost))

    def declare(self, schedule: Schedule) -> None:
        """Store a schedule for the first time, unless another worker was quicker. Its first tick is the next one."""
        now = self.store.now()
        state = ScheduleState(
            name=schedule.name,
            saga=schedule.saga.name,
            cron=schedule.cron,
            timezone=schedule.timezone,
            next_at=schedule.next_after(now),
            seen_at=now,
        )
        self._stored.add(schedule.name)
        stored.declare(self.store, state)

    # -- one decision -----------------------------------------------------------------------------------------------

    def _decide(self, schedule: Schedule, state: ScheduleState) -> ScheduleState | None:
        """Decide about what is due first. None where nothing is, or another worker was quicker."""
        now = self.store.now()
        if state.waiting is None and state.next_at > now:
            return None
        decision = decide(schedule, state, now, stored.running(self.store, schedule.name))
        return None if decision is None else self.carry_out(schedule, state, decision)

    def carry_out(
        self, schedule: Schedule, state: ScheduleState, decision: Decision, entry: MaintenanceEntry | None = None
    ) -> ScheduleState | None:
        """Store a decision with the start of its saga. None where another worker was quicker."""
        if decision.cancel is not None:
            self._cancel(schedule, decision.cancel, decision.ticks[-1])
        try:
            after = self._settle(schedule, state, decision, entry)
        except _Unstartable as error:
            why = clean(f"{type(error.cause).__name__}: {describe(error.cause)}", _LONGEST_WHY)
            failed = replace(decision.ticks[-1], outcome=TickOutcome.FAILED, why=why)
            decision = replace(decision, ticks=[*decision.ticks[:-1], failed], start=None)
            after = self._settle(schedule, state, decision, entry)
        if after is not None:
            last = decision.ticks[-1]
            level = logging.ERROR if last.outcome is TickOutcome.FAILED else logging.INFO
            more = f" ({len(decision.ticks)} ticks)" if len(decision.ticks) > 1 else ""
            logger.log(level, "schedule %s, tick %s is %s%s: %s", last.schedule, last.at, last.outcome, more, last.why)
        return after

    def _settle(
        self, schedule: Schedule, state: ScheduleState, decision: Decision, entry: MaintenanceEntry | None = None
    ) -> ScheduleState | None:
        began: list[Next] = []
        given = None if decision.start is None else _input_of(schedule, decision.start)

        def start(connection: Connection, tick: datetime) -> str:
            key = schedule.key_of(tick)
            try:
                next_ = starts.start(
                    self._orchestrator, schedule.saga, given, key=key, correlation_id=None, session=connection
                )
            except StartError as error:
                raise _Unstartable(error) from error
            began.append(next_)
            return next_.record.id

        after = stored.settle(self.store, state, decision, start, entry)
        if after is not None:
            for next_ in began:
                self._dispatch(next_)
        return after

    def _cancel(self, schedule: Schedule, saga_id: str, tick: Tick) -> None:
        """Cancel the saga of an earlier tick, if that can be done. Else the tick waits for it."""
        who, why = f"schedule {schedule.name}", f"the tick {tick.at.isoformat()} is to start; overlap is 'cancel'"
        try:
            if self.store.queries.summary(saga_id).direction is Direction.FORWARD:
                self._dispatch(self._orchestrator.cancel(saga_id, why, who))
        except (NotAllowed, DefinitionMissing, PayloadUnreadable, SagaNotFound) as error:
            logger.info("schedule %s: %s", schedule.name, error)

    def _dispatch(self, next_: Next) -> None:
        if next_.plan is not None:
            self.store.after_commit(None, lambda: self._canvas.dispatch_or_leave(next_.plan))


class _Unstartable(Exception):
    """The saga of a tick cannot be started: its input is wrong."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(describe(cause))
        self.cause = cause


def _input_of(schedule: Schedule, tick: datetime) -> Any:
    try:
        return schedule.input_of(tick)
    except Exception as error:
        raise _Unstartable(error) from error
