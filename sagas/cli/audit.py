"""`celery -A yourapp sagas audit`: what operators did."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click

from sagas.cli.command import Command
from sagas.cli.options import DURATION, TEXT
from sagas.cli.tables import AS_JSON, document, lines, terminal
from sagas.operations import Operations

__all__ = ["audit"]


@click.command(
    cls=Command,
    short_help="List what operators did, to which sagas, and why.",
    epilog="""
        celery -A yourapp sagas audit --actor ann --since 7d
        celery -A yourapp sagas audit --saga place_order --json
    """,
)
@click.option("--actor", type=TEXT, metavar="NAME", help="By this operator.")
@click.option("--saga", type=TEXT, metavar="NAME", help="To sagas of this definition.")
@click.option("--since", type=DURATION, help="No longer ago than 90s, 10m, 2h, 3d, 1w.")
@click.option("--limit", type=click.IntRange(min=1, max=10_000), default=50, show_default=True, help="At most so many.")
@click.option("--before", type=int, metavar="NUMBER", help="Only those before this one: the next page.")
@AS_JSON
@click.pass_obj
def audit(
    obj: Any,
    actor: str | None,
    saga: str | None,
    since: timedelta | None,
    limit: int,
    before: int | None,
    as_json: bool,
) -> None:
    """List what operators did to sagas, newest first: who, what and why.

    What was done to sagas that have been deleted since is gone with them; who deleted them is kept: `db audit`.
    """
    operations = Operations(obj.app.sagas)
    earliest = None if since is None else operations.store.now() - since
    rows = [
        {
            "number": entry.number,
            "at": entry.entry.at,
            "actor": entry.entry.actor,
            "what": entry.entry.what,
            "id": entry.saga_id,
            "saga": entry.name,
            "key": entry.key,
            "step": entry.entry.step,
            "reason": entry.entry.detail,
        }
        for entry in operations.queries.audit(actor=actor, name=saga, since=earliest, limit=limit, before=before)
    ]
    if as_json:
        document(rows)
    elif rows and (tty := terminal()) is not None:
        tty.console().print(tty.audit_entries(rows))
    else:
        lines(rows)
    if not rows:
        click.echo("no operator did anything that fits", err=True)
    elif len(rows) == limit:
        click.echo(f"there may be more: repeat it with --before {rows[-1]['number']}", err=True)
