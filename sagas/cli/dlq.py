"""`celery -A yourapp sagas events dlq ...`: dead letters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import click

from sagas.cli.command import agree
from sagas.cli.options import signed
from sagas.cli.tables import AS_JSON, show
from sagas.errors import SagaError
from sagas.events.deadletters import EventDeadLetter

__all__ = ["dlq"]

_MOST = 10_000


@click.group()
def dlq() -> None:
    """Messages that could not be handled, and wait for a decision."""


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--limit", type=click.IntRange(min=1, max=_MOST), default=100, show_default=True),
        click.option("--correlation-id", help="Of this story."),
        click.option("--key", help="Of this key."),
        click.option("--type", help="Of this type: orders.order.placed."),
        click.option("--queue", help="Of this queue: inventory.reserve_stock."),
    ):
        command = option(command)
    return command


def _decides(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Only say which."),
        signed,
        click.argument("ids", nargs=-1, type=int),
    ):
        command = option(command)
    return _filters(command)


@dlq.command("list")
@_filters
@click.option("--resolved", is_flag=True, help="Also those that are resolved.")
@AS_JSON
@click.pass_obj
def list_(obj: Any, /, resolved: bool, as_json: bool, **filters: Any) -> None:
    """List dead letters, oldest first. What the broker gave up by itself is taken in first."""
    _collect(obj.app.sagas.events)
    letters = obj.app.sagas.events.dead_letters(resolved=resolved, **filters)
    show([_row(letter, whole=as_json) for letter in letters], as_json=as_json)
    if not letters and not as_json:
        click.echo("no dead letters", err=True)


@dlq.command("show")
@click.argument("ids", nargs=-1, required=True, type=int)
@AS_JSON
@click.pass_obj
def show_letters(obj: Any, ids: Sequence[int], as_json: bool) -> None:
    """Show everything of some dead letters."""
    letters = obj.app.sagas.events.dead_letters(ids)
    rows = [_row(letter, whole=True) for letter in letters]
    if as_json:
        show(rows, as_json=True)
        return
    for row in rows:
        show([{"field": name, "value": value} for name, value in row.items()])


@dlq.command()
@_decides
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="At most so many a second.")
@click.pass_obj
def replay(
    obj: Any,
    /,
    ids: Sequence[int],
    reason: str,
    actor: str,
    dry_run: bool,
    yes: bool,
    rate: float | None,
    **filters: Any,
) -> None:
    """Have messages handled once more: those of these IDS, or all that the options choose."""
    events = obj.app.sagas.events
    letters = _chosen(events, ids, filters)
    would = events.replay(letters, reason=reason, actor=actor)
    left_out = len(letters) - len(would)
    if left_out:
        click.echo(f"{left_out} left out: resolved, no envelope, or parked behind another of the same key", err=True)
    if _agreed("replay", would, dry_run, yes):
        sent = events.replay(would, reason=reason, actor=actor, rate=rate, dry_run=False)
        click.echo(f"{len(sent)} replayed")


@dlq.command()
@_decides
@click.pass_obj
def discard(obj: Any, /, ids: Sequence[int], reason: str, actor: str, dry_run: bool, yes: bool, **filters: Any) -> None:
    """Decide that messages will not be handled: those of these IDS, or all that the options choose."""
    events = obj.app.sagas.events
    letters = [letter for letter in _chosen(events, ids, filters) if letter.resolved_at is None]
    if _agreed("discard", letters, dry_run, yes):
        gone = events.discard(letters, reason=reason, actor=actor)
        click.echo(f"{len(gone)} discarded")


def _collect(events: Any) -> None:
    """Take in what the broker gave up. It may be away: what is in the database can be dealt with all the same."""
    try:
        count = events.collect_given_up()
    except SagaError as error:
        click.echo(f"what the broker itself may have given up is not shown: {error}", err=True)
        return
    if count:
        click.echo(
            f"took in {count} messages that the broker had given up, or sent them to their queues again", err=True
        )


def _chosen(events: Any, ids: Sequence[int], filters: dict[str, Any]) -> Sequence[EventDeadLetter]:
    chosen = [name for name, value in filters.items() if value is not None and name != "limit"]
    if ids and chosen:
        raise click.UsageError("give IDS or options that choose, not both")
    if not ids and not chosen:
        raise click.UsageError("say which: IDS, --queue, --type, --key or --correlation-id")
    if not ids:
        _collect(events)
    found: Sequence[EventDeadLetter] = events.dead_letters(ids) if ids else events.dead_letters(**filters)
    return found


def _agreed(what: str, letters: Sequence[EventDeadLetter], dry_run: bool, yes: bool) -> bool:
    show([_row(letter, whole=False) for letter in letters])
    if dry_run or not letters:
        click.echo(f"would {what} {len(letters)}" if letters else f"nothing to {what}")
        return False
    if not yes:
        agree(f"{what} these {len(letters)}?")
    return True


def _row(letter: EventDeadLetter, *, whole: bool) -> dict[str, Any]:
    if not whole:
        row = {
            name: getattr(letter, name) for name in ("id", "queue", "type", "key", "attempts", "behind", "created_at")
        }
        row["queue"] = letter.queue or "(outbox)"
        return {**row, "resolution": letter.resolution, "error": letter.error[:200]}
    fields = {field.name: getattr(letter, field.name) for field in dataclasses.fields(letter)}
    return {**fields, "headers": dict(letter.headers), "body": letter.body.decode(errors="backslashreplace")}
