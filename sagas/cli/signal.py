"""`celery -A yourapp sagas signal`: send a signal to a saga that waits."""

from __future__ import annotations

import sys
from typing import Any

import click

from sagas.cli.command import Command, Refusal
from sagas.cli.options import TEXT, who
from sagas.forms import FieldKind, FormField, InvalidForm, form_of
from sagas.nodes import Wait
from sagas.operations import Operations
from sagas.values import parse

__all__ = ["signal"]


@click.command(
    cls=Command,
    short_help="Send a signal to a saga.",
    epilog="""
        celery -A yourapp sagas signal expense-7 approval
        celery -A yourapp sagas signal expense-7 approval --payload '{"approved": true}' --id form-7
    """,
)
@click.argument("saga")
@click.argument("name")
@click.option("--payload", metavar="JSON", help="Of the type that the Wait declares. Left out: you are asked.")
@click.option("--id", "id_", type=TEXT, help="The same id twice counts once. Left out: a signal of its own.")
@click.option("--sender", type=TEXT, callback=who, metavar="NAME", help="Who sends it; by default you.")
@click.pass_obj
def signal(obj: Any, saga: str, name: str, payload: str | None, id_: str | None, sender: str) -> None:
    """Send the signal NAME to SAGA, which is an id, the beginning of one, or a key.

    Without --payload, a terminal asks for each field of the payload. The history keeps the sender and the time.
    """
    sagas = obj.app.sagas
    found = Operations(sagas).queries.resolve(saga)
    if payload is not None:
        try:
            value = parse(payload)
        except ValueError as error:
            raise click.UsageError(f"--payload {payload[:200]!r} is not JSON: {error}") from error
    else:
        bound = sagas.orchestrator.definition(found).steps.get(name)
        value = _asked(bound.step) if bound is not None and isinstance(bound.step, Wait) else None
    sagas.send_signal(found.id, name, value, id=id_, sender=sender)
    click.echo(f"saga {found.name} {found.key} has the signal {name}")


def _asked(wait: Wait) -> Any:
    """Ask for the payload of a wait. Raises `Refusal` for answers that make none."""
    form = form_of(wait.type, wait.name)
    if form.fields and not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for the payload: add --payload")
    try:
        return form.read({field.name: _answer(field) for field in form.fields})
    except InvalidForm as error:
        raise Refusal(str(error)) from error


def _answer(field: FormField) -> str:
    label = field.label + (f" ({field.help})" if field.help else "")
    if field.kind is FieldKind.CHOICE:
        label += f" [{', '.join(choice.text for choice in field.choices)}]"
    elif field.kind is not FieldKind.TEXT:
        label += f" [{field.kind}]"

    def read(text: str) -> str:
        try:
            field.read(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
        return text

    default = field.initial if field.initial or not field.required else None
    answer: str = click.prompt(label, default=default, show_default=bool(default), value_proc=read, err=True)
    return answer
