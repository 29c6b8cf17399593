"""`celery -A yourapp sagas events ...`. Each group of commands has a module of its own."""

from __future__ import annotations

from typing import Any

import click

from sagas.cli.asyncapi import asyncapi
from sagas.cli.command import Refusal
from sagas.cli.consume import consume, relay
from sagas.cli.dlq import dlq
from sagas.cli.graph import draw
from sagas.cli.outbox import outbox
from sagas.cli.projection import projection
from sagas.cli.schema import schema
from sagas.cli.topology import topology
from sagas.cli.trace import show_trace

__all__ = ["events"]


@click.group()
@click.pass_obj
def events(obj: Any) -> None:
    """Manage events, commands and the queues that carry them."""
    if obj.app.sagas.events is None:
        raise Refusal("this app has no events. Pass them: Sagas(app, store, [...], events=Events(...))")


for command in (topology, outbox, relay, consume, dlq, projection, schema, asyncapi, draw, show_trace):
    events.add_command(command)
