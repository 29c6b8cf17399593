"""`celery -A yourapp sagas events outbox`, and the relay that empties it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import click

from sagas.cli.options import DURATION
from sagas.cli.tables import AS_JSON, show

__all__ = ["outbox"]


@click.group(invoke_without_command=True)
@AS_JSON
@click.pass_context
def outbox(context: click.Context, as_json: bool) -> None:
    """Say how many messages wait to be sent, for how many seconds the oldest has, and how many reached nobody.

    `dead_letters`: how many events could not be sent; `dlq list --queue ""` shows them.
    """
    if context.invoked_subcommand is not None:
        return
    events = context.obj.app.sagas.events
    row = {
        "unsent": events.outbox_unsent(),
        "oldest_seconds": round(events.outbox_age(), 1),
        "unheard": sum(events.outbox_unheard().values()),
        "dead_letters": events.open_dead_letters().get("", 0),
    }
    show([row], as_json=as_json)


@outbox.command()
@click.option("--type", "types", multiple=True, help="Of this type: orders.order.placed. Left out: all.")
@click.pass_obj
def resend(obj: Any, types: Sequence[str]) -> None:
    """Send once more what reached nobody, once its subscribers' topology is applied.

    It comes after what was published since: the order of its keys is lost.
    """
    events = obj.app.sagas.events
    count = events.resend(types or events.outbox_unheard())
    click.echo(f"{count} messages will be sent once more")


@outbox.command()
@click.option("--older-than", type=DURATION, required=True, help="Keep what is younger than that: 30d, 12h.")
@click.pass_obj
def purge(obj: Any, older_than: timedelta) -> None:
    """Forget what was sent, what was handled, and dead letters that were resolved, longer ago than that.

    A message that comes back after its handling was forgotten is handled again: keep them for longer than one may
    be on its way, or wait in a queue.
    """
    count = obj.app.sagas.events.purge(older_than)
    click.echo(f"{count} rows deleted")
