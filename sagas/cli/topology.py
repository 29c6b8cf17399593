"""`celery -A yourapp sagas events topology ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from sagas.cli.tables import AS_JSON, show

__all__ = ["topology"]


@click.group()
def topology() -> None:
    """Manage the queues at the broker and their bindings."""


@topology.command("show")
@AS_JSON
@click.pass_obj
def show_topology(obj: Any, as_json: bool) -> None:
    """Show what the services need. This does not contact the broker; `diff` does."""
    queues = obj.app.sagas.events.topology().queues
    rows = [
        {"queue": queue.name, "topics": list(queue.topics) if as_json else " ".join(queue.topics)} for queue in queues
    ]
    show(rows, as_json=as_json)


@topology.command()
@AS_JSON
@click.pass_obj
def diff(obj: Any, as_json: bool) -> None:
    """Show what is missing at the broker, and what was declared there once and no longer is.

    "service" shows whether this code declares the queue's service. If not, other code may read the queue.
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
        click.echo("the broker has exactly what is declared", err=True)


@topology.command()
@click.option("--delete", is_flag=True, help="Also remove bindings and queues that are no longer declared.")
@click.option("--queue", "others", multiple=True, help="With --delete: also this queue of a service that is elsewhere.")
@click.option("--discard", is_flag=True, help="With --delete: also queues that hold messages, with the messages.")
@click.pass_obj
def apply(obj: Any, delete: bool, others: Sequence[str], discard: bool) -> None:
    """Create what is missing at the broker. Existing queues stay, unless you pass --delete; `diff` shows them.

    Run it before the first event is published: a subscriber does not receive events sent before its queue exists.
    Consumers also do this when they start, but never with --delete.
    """
    if (others or discard) and not delete:
        raise click.UsageError("--queue and --discard need --delete")
    made = obj.app.sagas.events.apply_topology(delete=delete, others=others, discard=discard)
    for what in made:
        click.echo(what)
    if not made:
        click.echo("nothing was missing")
