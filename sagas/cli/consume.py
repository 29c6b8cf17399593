"""`celery -A yourapp sagas events consume` and `relay`: processes of their own, beside or instead of workers."""

from __future__ import annotations

import logging
from typing import Any

import click

from sagas.events.process import run

__all__ = ["consume", "relay"]

_GRACE = click.option(
    "--grace", type=click.FloatRange(min=0), default=30.0, show_default=True,
    help="Seconds that handlers have to end once the process is told to.",
)  # fmt: skip


@click.command()
@click.option("--queues", help="Those to consume, with commas between them. Left out: all of the services'.")
@click.option("--threads", type=click.IntRange(min=1), default=8, show_default=True, help="Handlers that run at once.")
@click.option("--relay/--no-relay", default=True, show_default=True, help="Also send what is in the outbox.")
@_GRACE
@click.pass_obj
def consume(obj: Any, queues: str | None, threads: int, relay: bool, grace: float) -> None:
    """Consume events and commands in this process, until it is told to stop."""
    names = None if queues is None else [name.strip() for name in queues.split(",") if name.strip()]
    _run(obj, queues=names, threads=threads, relay=relay, grace=grace)


@click.command()
@click.pass_obj
def relay(obj: Any) -> None:
    """Send what is in the outbox, until this process is told to stop. Any number may run."""
    _run(obj, queues=[], threads=1, relay=True, grace=0.0)


def _run(obj: Any, **options: Any) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run(obj.app.sagas.events, **options)
