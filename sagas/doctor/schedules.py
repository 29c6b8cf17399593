"""Schedules: whether a worker runs them, and whether their sagas can be started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sagas.app import Sagas
from sagas.commands import command
from sagas.doctor.findings import Finding, ok, problem, warning
from sagas.operations import Operations
from sagas.schedule_operations import ScheduleOperations, ScheduleView
from sagas.ticks import TickOutcome

__all__ = ["check_schedules", "examine"]


def examine(sagas: Sagas) -> Iterator[Finding]:
    """Look at the schedules of this code, and at those in the database."""
    registered = {name for name, _ in sagas.orchestrator.sagas}
    yield from check_schedules(ScheduleOperations(Operations(sagas)).list(), registered)


def check_schedules(views: Sequence[ScheduleView], registered: set[str]) -> Iterator[Finding]:
    """Look at schedules. `registered`: the names of the sagas that this code has."""
    for view in views:
        named = f"schedule {view.name!r}"
        if view.saga not in registered:
            yield problem(
                "schedule-saga",
                f"{named} starts saga {view.saga!r}, which is not registered in this code",
                "deploy code that has both the schedule and the saga, or none of them",
            )
        elif view.schedule is None:
            yield warning(
                "schedule-unknown",
                f"{named} is in the database and not in this code",
                "if it was removed, its row goes with its ticks when you purge those; until then it does nothing",
            )
        elif view.abandoned:
            yield problem(
                "schedule-without-worker",
                f"no worker runs {named} ({view.cron!r} in {view.timezone}): its ticks wait, and are then caught up as "
                f"catch_up={view.schedule.catch_up.value!r} says",
                "start a worker that has this schedule: Sagas(app, store, sagas, schedules=[...])",
            )
        elif view.state is not None and view.state.paused_at is not None:
            yield warning(
                "schedule-paused",
                f"{named} is paused by {view.state.paused_by}: {view.state.paused_why}",
                command("schedules", "resume", view.name, "--reason", "..."),
            )
        if view.last is not None and view.last.outcome is TickOutcome.FAILED:
            yield problem(
                "schedule-failed",
                f"{named} could not start the saga of its latest tick, {view.last.at.isoformat()}: {view.last.why}",
                f"mend its input, then: {command('schedules', 'run', view.name, '--reason', '...')}",
            )
    if views:
        yield ok("schedules", f"{len(views)} schedules: {', '.join(view.name for view in views)}")
