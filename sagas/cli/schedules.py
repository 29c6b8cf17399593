"""`celery -A yourapp sagas schedules ...`: what starts sagas by the clock."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import click

from sagas.cli.command import Command
from sagas.cli.options import TEXT, signed
from sagas.cli.tables import AS_JSON, show
from sagas.operations import Operations
from sagas.schedule_operations import ScheduleAction, ScheduleOperations, ScheduleView
from sagas.ticks import Tick, TickOutcome

__all__ = ["schedules"]

_NAME = click.argument("name", type=TEXT)


@click.group()
def schedules() -> None:
    """Look after the schedules that start sagas."""


@schedules.command(name="list", cls=Command)
@AS_JSON
@click.pass_obj
def list_(obj: Any, as_json: bool) -> None:
    """List the schedules: when each runs next, and what became of its latest tick."""
    found = _operations(obj).list()
    show([_row(view) for view in found], as_json=as_json)
    if not found:
        click.echo("this app has no schedules: Sagas(app, store, sagas, schedules=[...])", err=True)


@schedules.command(cls=Command)
@_NAME
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
@AS_JSON
@click.pass_obj
def ticks(obj: Any, name: str, limit: int, as_json: bool) -> None:
    """List the ticks of NAME, newest first: what became of each, and why."""
    found = _operations(obj).ticks(name, limit=limit)
    show([_tick(tick) for tick in found], as_json=as_json)
    if not found:
        click.echo(f"schedule {name!r} has had no tick", err=True)


@schedules.command(name="next", cls=Command)
@_NAME
@click.option("--count", type=click.IntRange(1, 1_000), default=5, show_default=True, help="So many.")
@AS_JSON
@click.pass_obj
def next_(obj: Any, name: str, count: int, as_json: bool) -> None:
    """Show the next times of NAME, as local times of its time zone and in UTC."""
    times = _operations(obj).next_times(name, count)
    show([{"local": time, "utc": time.astimezone(UTC)} for time in times], as_json=as_json)


@schedules.command(
    cls=Command, epilog='celery -A yourapp sagas schedules pause nightly_billing --reason "the bank is closed"'
)
@_NAME
@signed
@click.pass_obj
def pause(obj: Any, name: str, reason: str, actor: str) -> None:
    """Pause NAME. Its ticks are skipped until it is resumed, and are not caught up."""
    _operations(obj).act(ScheduleAction.PAUSE, name, actor=actor, reason=reason)
    click.echo(f"{name} is paused")


@schedules.command(cls=Command)
@_NAME
@signed
@click.pass_obj
def resume(obj: Any, name: str, reason: str, actor: str) -> None:
    """Resume NAME with its next tick."""
    operations = _operations(obj)
    operations.act(ScheduleAction.RESUME, name, actor=actor, reason=reason)
    click.echo(f"{name} goes on at {operations.next_times(name, 1)[0].isoformat()}")


@schedules.command(cls=Command)
@_NAME
@signed
@click.pass_obj
def run(obj: Any, name: str, reason: str, actor: str) -> None:
    """Start the saga of NAME now, also if it is paused.

    While the saga of an earlier tick runs, this does what `overlap` of the schedule says: "skip" refuses it.
    """
    tick = _operations(obj).act(ScheduleAction.RUN, name, actor=actor, reason=reason)
    assert tick is not None
    click.echo(f"{name}: {tick.outcome} {tick.saga_id or tick.why}")
    if tick.outcome is TickOutcome.FAILED:
        raise click.exceptions.Exit(1)


def _operations(obj: Any) -> ScheduleOperations:
    return ScheduleOperations(Operations(obj.app.sagas))


def _row(view: ScheduleView) -> dict[str, Any]:
    schedule, state, last = view.schedule, view.state, view.last
    return {
        "name": view.name,
        "saga": view.saga,
        "cron": view.cron,
        "timezone": view.timezone,
        "next_at": state and state.next_at,
        "waiting": state and state.waiting,
        "paused_by": state and state.paused_by,
        "paused_why": state and state.paused_why,
        "in_this_code": schedule is not None,
        "has_worker": not view.abandoned,
        "last_tick": last and last.at,
        "last_outcome": last and last.outcome.value,
        "last_saga_id": last and last.saga_id,
    }


def _tick(tick: Tick) -> dict[str, Any]:
    return {
        "tick": tick.at,
        "outcome": tick.outcome.value,
        "saga_id": tick.saga_id,
        "actor": tick.actor,
        "decided_at": tick.decided_at,
        "why": tick.why,
    }
