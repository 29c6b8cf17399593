"""`celery -A yourapp sagas events projection ...`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from sagas.cli.command import Refusal
from sagas.events.process import until_signalled

if TYPE_CHECKING:
    from sagas.events import Projection, Projections

__all__ = ["projection"]


@click.group()
def projection() -> None:
    """Look after projections: the tables that are made of the events in the event store."""


@projection.command(name="list")
@click.pass_obj
def list_(obj: Any) -> None:
    """Show where every version of every projection stands."""
    projections = _projections(obj)
    states = projections.states()
    known = set(projections.known)
    for state in states:
        words = [
            f"{state.name} {state.version}",
            "live" if state.live else "not live",
            f"at position {state.position}",
            f"since {state.updated_at:%Y-%m-%d %H:%M:%S} UTC",
        ]
        if (state.name, state.version) not in known:
            words.append("not in this code")
        click.echo(", ".join(words))
        if state.error is not None:
            click.echo(f"    STOPPED at position {state.failed_position}: {state.error}")
    for name, version in sorted(known - {(state.name, state.version) for state in states}):
        click.echo(f"{name} {version}, has never run")


@projection.command()
@click.option("--poll", default=0.2, show_default=True, help="Seconds between two looks for new events.")
@click.pass_obj
def run(obj: Any, poll: float) -> None:
    """Keep all projections of this code up to date, until it is interrupted.

    Run as many as you like: one at a time is at work on a projection. New versions are built beside the live ones.
    """
    projections = _projections(obj)
    with until_signalled() as stop:
        click.echo(f"Running {', '.join(map(str, projections.known.values()))}")
        projections.run(stop, poll=poll)


def _on_one(name: str, help_: str) -> Callable[[Callable[[Projections, Projection], str]], click.Command]:
    """Make a command of what is done to one version of a projection."""

    def declare(function: Callable[[Projections, Projection], str]) -> click.Command:
        @projection.command(name=name, help=help_)
        @click.argument("name")
        @click.option("--version", type=int, help="Left out, the newest that this code has.")
        @click.pass_obj
        def command(obj: Any, name: str, version: int | None) -> None:
            projections = _projections(obj)
            click.echo(function(projections, projections.get(name, version)))

        return command

    return declare


@_on_one(
    "rebuild",
    "Build a version of NAME from the first event on, beside the live one, which stays as it is until `swap`.",
)
def rebuild(projections: Projections, which: Projection) -> str:
    seen = projections.rebuild(which)
    live = projections.live_version(which.name)
    return f"{which} has seen {seen} events. Readers still read version {live}; to change that: swap {which.name}"


@_on_one("swap", "Let a version of NAME be the one that is read, once it has caught up.")
def swap(projections: Projections, which: Projection) -> str:
    before = projections.swap(which)
    return f"{which} was live already" if before is None else f"{which} is live; before it version {before} was"


@_on_one("resume", "Let NAME go on with the event that it stopped at, once its code is mended.")
def resume(projections: Projections, which: Projection) -> str:
    projections.resume(which)
    return f"{which} goes on when it is run"


def _projections(obj: Any) -> Projections:
    projections: Projections | None = obj.app.sagas.events.projections
    if projections is None or not projections.known:
        raise Refusal("this app has no projections: Events(..., store=EventStore(...), projections=[...])")
    return projections
