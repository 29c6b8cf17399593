"""`celery -A yourapp sagas waiting`: list what sagas ask people."""

from __future__ import annotations

from typing import Any

import click

from sagas.approvals import Approvals
from sagas.cli.command import Command
from sagas.cli.options import TEXT
from sagas.cli.tables import AS_JSON, show
from sagas.operations import Operations

__all__ = ["waiting"]


@click.command(
    cls=Command,
    short_help="List what sagas ask people.",
    epilog="""
        celery -A yourapp sagas waiting
        celery -A yourapp sagas waiting --group finance --json
    """,
)
@click.option("--group", "groups", type=TEXT, multiple=True, metavar="NAME", help="Only what its members may answer.")
@click.option("--limit", type=click.IntRange(min=1, max=10_000), default=100, show_default=True, help="Of each wait.")
@AS_JSON
@click.pass_obj
def waiting(obj: Any, groups: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List the sagas that wait for an approval now, oldest first. Answer with `sagas signal`."""
    found = Approvals(Operations(obj.app.sagas)).waiting(groups=groups or None, limit=limit)
    rows = [
        {
            "id": pending.record.id,
            "saga": pending.record.name,
            "key": pending.record.key,
            "wait": pending.wait,
            "approvers": sorted(pending.approvers),
            "since": pending.since,
            "until": pending.until,
        }
        for pending in found
    ]
    show(rows, as_json=as_json)
    if not rows and not as_json:
        click.echo("no saga waits for an approval", err=True)
