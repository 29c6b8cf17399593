"""`celery -A yourapp sagas events topology ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from sagas.cli.tables import AS_JSON, show

__all__ = ["topology"]


@click.group()
def topology() -> None:
    """The queues at the broker, and what comes in each."""


@topology.command("show")
@AS_JSON
@click.pass_obj
def show_topology(obj: Any, as_json: bool) -> None:
    """Say what the services need. Asks nobody: `diff` does."""
    queues = obj.app.sagas.events.topology().queues
    rows = [
        {"queue": queue.name, "topics": list(queue.topics) if as_json else " ".join(queue.topics)} for queue in queues
    ]
    show(rows, as_json=as_json)


@topology.command()
@AS_JSON
@click.pass_obj
def diff(obj: Any, as_json: bool) -> None:
    """Say what is missing at the broker, and what was declared there once and no longer is.

    "service" says whether the service of a queue is declared by this code: of others, it may be other code that reads
    the queue.
    """
    found = obj.app.sagas.events.topology_difference()
    rows = [
        {
            "queue": stale.queue,
            "what": stale.what,
            "topics": list(stale.topics) if as_json else " ".join(stale.topics),
            "messages": stale.messages,
            "service": "ours" if stale.ours else "elsewhere",
            "read_as": stale.read_as,
        }
        for stale in found
    ]
    show(rows, as_json=as_json)
    if not rows and not as_json:
        click.echo("the broker has what is declared, and no more", err=True)


@topology.command()
@click.option("--delete", is_flag=True, help="Also unbind, and delete, what is declared no longer.")
@click.option("--queue", "others", multiple=True, help="With --delete: also this queue of a service that is elsewhere.")
@click.option("--discard", is_flag=True, help="With --delete: also queues that hold messages, with those.")
@click.pass_obj
def apply(obj: Any, delete: bool, others: Sequence[str], discard: bool) -> None:
    """Make what is missing at the broker. What is there stays, unless --delete says otherwise; `diff` shows it.

    Do it before the first event is published: one that is sent before a subscriber's queue is there is not kept
    for it. Consumers do it too when they start, but never with --delete.
    """
    if (others or discard) and not delete:
        raise click.UsageError("--queue and --discard say what --delete may delete: give it too")
    made = obj.app.sagas.events.apply_topology(delete=delete, others=others, discard=discard)
    for what in made:
        click.echo(what)
    if not made:
        click.echo("nothing was missing")
