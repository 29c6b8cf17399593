"""`celery -A yourapp sagas events topology ...`."""

from __future__ import annotations

from typing import Any

import click

from sagas.cli.tables import AS_JSON, show
from sagas.errors import SagaError

__all__ = ["topology"]


@click.group()
def topology() -> None:
    """The queues at the broker, and what comes in each."""


@topology.command("show")
@AS_JSON
@click.pass_obj
def show_topology(obj: Any, as_json: bool) -> None:
    """Say what the services need. Asks nobody."""
    queues = obj.app.sagas.events.topology().queues
    rows = [
        {"queue": queue.name, "topics": list(queue.topics) if as_json else " ".join(queue.topics)} for queue in queues
    ]
    show(rows, as_json=as_json)


@topology.command()
@click.pass_obj
def apply(obj: Any) -> None:
    """Make what is missing at the broker. What is there stays.

    Do it before the first event is published: one that is sent before a subscriber's queue is there is not kept
    for it. Consumers do it too when they start.
    """
    try:
        made = obj.app.sagas.events.apply_topology()
    except SagaError as error:
        raise click.ClickException(str(error)) from error
    for what in made:
        click.echo(f"made {what}")
    if not made:
        click.echo("nothing was missing")
