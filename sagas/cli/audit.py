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
@click.option("--actor", type=TEXT, metavar="NAME", help="Actions of this operator.")
@click.option("--saga", type=TEXT, metavar="NAME", help="Actions on sagas of this definition.")
@click.option("--since", type=DURATION, help="Actions in the last 90s, 10m, 2h, 3d, 1w.")
@click.option("--limit", type=click.IntRange(min=1, max=10_000), default=50, show_default=True, help="At most so many.")
@click.option("--before", type=int, metavar="NUMBER", help="Entries before this one: the next page.")
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

    Entries about purged sagas are deleted with them; `db audit` shows who purged them.
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
            "parent": entry.parent_id,
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
        click.echo("no entry matches", err=True)
    elif len(rows) == limit:
        click.echo(f"there may be more: repeat the command with --before {rows[-1]['number']}", err=True)
