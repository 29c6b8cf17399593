"""`celery -A yourapp sagas list`: list or count sagas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from sagas.cli.command import Command
from sagas.cli.options import TEXT, Where, filters
from sagas.cli.rows import row
from sagas.cli.tables import AS_JSON, document, lines, terminal
from sagas.operations import Operations
from sagas.stores import Filter

__all__ = ["counted", "list_", "show_sagas"]


@click.command(
    "list",
    cls=Command,
    short_help="List sagas, or count them.",
    epilog="""
        celery -A yourapp sagas list --attention
        celery -A yourapp sagas list --saga place_order --status running --idle-for 10m
        celery -A yourapp sagas list --error "connection refused" --newer-than 1d --json
        celery -A yourapp sagas list --counts
    """,
)
@filters
@click.option("--limit", type=click.IntRange(min=1, max=10_000), default=50, show_default=True, help="The most sagas.")
@click.option("--before", type=TEXT, metavar="ID", help="Sagas that were started before this one: the next page.")
@click.option("--counts", is_flag=True, help="Only count them, by saga and status.")
@AS_JSON
@click.pass_obj
def list_(obj: Any, /, where: Where, limit: int, before: str | None, counts: bool, as_json: bool) -> None:
    """List the sagas that match all options, newest first.

    A terminal gets a table. A pipe gets lines with tabs between the fields, and a first line with their names.
    """
    operations = Operations(obj.app.sagas)
    chosen = where.at(operations.store.now())
    if counts:
        if before is not None:
            raise click.UsageError("--counts has no pages: remove --before")
        _show_counts(counted(operations, chosen), as_json=as_json)
        return
    records = operations.queries.select(chosen, limit=limit, before=before, with_steps=True)
    show_sagas(operations, [row(operations, record) for record in records], as_json=as_json)
    if not records:
        known = sorted({name for name, _ in operations.sagas.orchestrator.sagas})
        hint = f"; this app has {', '.join(known)}" if where.saga and where.saga not in known else ""
        click.echo(f"no saga matches{hint}", err=True)
    elif len(records) == limit:
        click.echo(f"there may be more: repeat the command with --before {records[-1].id}", err=True)


def show_sagas(operations: Operations, rows: Sequence[dict[str, Any]], *, as_json: bool = False) -> None:
    """Print a list of sagas."""
    if as_json:
        document(rows)
    elif rows and (tty := terminal()) is not None:
        tty.console().print(tty.sagas(rows, operations.store.now()))
    else:
        lines(rows)


def counted(operations: Operations, chosen: Filter) -> list[dict[str, Any]]:
    """Return how many sagas match, by name and status."""
    return [
        {"saga": each.name, "status": each.status.value, "count": each.count}
        for each in operations.queries.tally(chosen)
    ]


def _show_counts(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        document(rows)
    elif rows and (tty := terminal()) is not None:
        tty.console().print(tty.counts(rows))
    else:
        lines(rows)
    if not rows and not as_json:
        click.echo("no saga matches", err=True)
