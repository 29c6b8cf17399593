"""`celery -A yourapp sagas signal`: send a signal to a saga that waits."""

from __future__ import annotations

from typing import Any

import click

from sagas.cli.command import Command
from sagas.cli.options import TEXT
from sagas.operations import Operations
from sagas.values import parse

__all__ = ["signal"]


@click.command(cls=Command, short_help="Send a signal to a saga.")
@click.argument("saga")
@click.argument("name")
@click.option("--payload", metavar="JSON", default="null", help="Of the type that the Wait declares.")
@click.option("--id", "id_", type=TEXT, help="The same id twice counts once. Left out: a signal of its own.")
@click.option("--sender", type=TEXT, metavar="NAME", help="Who sends it.")
@click.pass_obj
def signal(obj: Any, saga: str, name: str, payload: str, id_: str | None, sender: str | None) -> None:
    """Send the signal NAME to SAGA, which is an id, the beginning of one, or a key.

    celery -A yourapp sagas signal expense-7 approval --payload '{"approved": true}' --id form-7
    """
    try:
        value = parse(payload)
    except ValueError as error:
        raise click.UsageError(f"--payload {payload[:200]!r} is not JSON: {error}") from error
    found = Operations(obj.app.sagas).queries.resolve(saga)
    obj.app.sagas.send_signal(found.id, name, value, id=id_, sender=sender)
    click.echo(f"saga {found.name} {found.key} has the signal {name}")
