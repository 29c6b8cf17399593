"""`celery -A yourapp sagas events consume` and `relay`: separate processes, besides or instead of workers."""

from __future__ import annotations

import logging
from typing import Any

import click

from sagas.events.process import run

__all__ = ["consume", "relay"]

_GRACE = click.option(
    "--grace", type=click.FloatRange(min=0), default=30.0, show_default=True,
    help="Seconds that handlers have to end at shutdown.",
)  # fmt: skip


@click.command()
@click.option("--queues", help="The queues to consume, separated by commas. By default all queues of the services.")
@click.option("--threads", type=click.IntRange(min=1), default=8, show_default=True, help="Concurrent handlers.")
@click.option("--relay/--no-relay", default=True, show_default=True, help="Also send the messages in the outbox.")
@_GRACE
@click.pass_obj
def consume(obj: Any, queues: str | None, threads: int, relay: bool, grace: float) -> None:
    """Consume events and commands in this process until it is stopped."""
    names = None if queues is None else [name.strip() for name in queues.split(",") if name.strip()]
    _run(obj, queues=names, threads=threads, relay=relay, grace=grace)


@click.command()
@click.pass_obj
def relay(obj: Any) -> None:
    """Send the messages in the outbox until this process is stopped. Any number of relays may run."""
    _run(obj, queues=[], threads=1, relay=True, grace=0.0)


def _run(obj: Any, **options: Any) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run(obj.app.sagas.events, **options)
