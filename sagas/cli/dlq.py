"""`celery -A yourapp sagas events dlq ...`: manage dead letters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import click

from sagas.cli.command import agree
from sagas.cli.options import signed
from sagas.cli.tables import AS_JSON, show
from sagas.errors import SagaError
from sagas.events.letters import EventDeadLetter

__all__ = ["dlq"]

_MOST = 10_000


@click.group()
def dlq() -> None:
    """Manage messages that could not be handled and need a decision."""


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--limit", type=click.IntRange(min=1, max=_MOST), default=100, show_default=True),
        click.option("--correlation-id", help="With this correlation id."),
        click.option("--key", help="With this key."),
        click.option("--type", help="With this type: orders.order.placed."),
        click.option("--queue", help="In this queue: inventory.reserve_stock."),
    ):
        command = option(command)
    return command


def _decides(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask for confirmation."),
        click.option("--dry-run", is_flag=True, help="Only show which."),
        signed,
        click.argument("ids", nargs=-1, type=int),
    ):
        command = option(command)
    return _filters(command)


@dlq.command("list")
@_filters
@click.option("--resolved", is_flag=True, help="Include resolved ones.")
@AS_JSON
@click.pass_obj
def list_(obj: Any, /, resolved: bool, as_json: bool, **filters: Any) -> None:
    """List dead letters, oldest first. Messages that the broker itself gave up on are collected first."""
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
    """Show all fields of the given dead letters."""
    letters = obj.app.sagas.events.dead_letters(ids)
    rows = [_row(letter, whole=True) for letter in letters]
    if as_json:
        show(rows, as_json=True)
        return
    for row in rows:
        show([{"field": name, "value": value} for name, value in row.items()])


@dlq.command()
@_decides
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="The most messages per second.")
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
    """Send dead-lettered messages again: those with these IDS, or all that the options select."""
    events = obj.app.sagas.events
    letters = _chosen(events, ids, filters)
    would = events.replay(letters, reason=reason, actor=actor)
    left_out = len(letters) - len(would)
    if left_out:
        click.echo(f"{left_out} skipped: resolved, unreadable, or parked behind another with the same key", err=True)
    if _agreed("replay", would, dry_run, yes):
        sent = events.replay(would, reason=reason, actor=actor, rate=rate, dry_run=False)
        click.echo(f"{len(sent)} replayed")


@dlq.command()
@_decides
@click.pass_obj
def discard(obj: Any, /, ids: Sequence[int], reason: str, actor: str, dry_run: bool, yes: bool, **filters: Any) -> None:
    """Resolve dead letters without handling them: those with these IDS, or all that the options select."""
    events = obj.app.sagas.events
    letters = [letter for letter in _chosen(events, ids, filters) if letter.resolved_at is None]
    if _agreed("discard", letters, dry_run, yes):
        gone = events.discard(letters, reason=reason, actor=actor)
        click.echo(f"{len(gone)} discarded")


def _collect(events: Any) -> None:
    """Collect what the broker gave up on, if it is available. Dead letters in the database are shown in any case."""
    try:
        count = events.collect_given_up()
    except SagaError as error:
        click.echo(f"messages that the broker itself gave up on are not shown: {error}", err=True)
        return
    if count:
        click.echo(
            f"collected {count} messages that the broker gave up on, as dead letters or into their queues", err=True
        )


def _chosen(events: Any, ids: Sequence[int], filters: dict[str, Any]) -> Sequence[EventDeadLetter]:
    chosen = [name for name, value in filters.items() if value is not None and name != "limit"]
    if ids and chosen:
        raise click.UsageError("pass IDS or options that select dead letters, not both")
    if not ids and not chosen:
        raise click.UsageError("pass IDS, --queue, --type, --key or --correlation-id")
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
