"""`celery -A yourapp sagas events outbox`: inspect and purge the outbox."""

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
    """Show how many messages await sending, the age of the oldest in seconds, and how many reached nobody.

    `dead_letters`: how many messages could not be sent; `dlq list --queue ""` shows them.
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
@click.option("--type", "types", multiple=True, help="Messages of this type: orders.order.placed. By default all.")
@click.pass_obj
def resend(obj: Any, types: Sequence[str]) -> None:
    """Send messages again that reached nobody, after their subscribers' topology is applied.

    They arrive after messages published since: the order within their keys is lost.
    """
    events = obj.app.sagas.events
    count = events.resend(types or events.outbox_unheard())
    click.echo(f"{count} messages will be sent again")


@outbox.command()
@click.option("--older-than", type=DURATION, required=True, help="Keep what is newer: 30d, 12h.")
@click.pass_obj
def purge(obj: Any, older_than: timedelta) -> None:
    """Delete sent messages, inbox entries and resolved dead letters that are older than this.

    A message that returns after its inbox entry was deleted is handled again. Keep entries longer than a message may
    be in transit or wait in a queue.
    """
    count = obj.app.sagas.events.purge(older_than)
    click.echo(f"{count} rows deleted")
