"""`celery -A yourapp sagas show` and `history`: inspect one saga."""

from __future__ import annotations

import json
from typing import Any

import click

from sagas.cli.command import Command
from sagas.cli.rows import described
from sagas.cli.tables import AS_JSON, document, lines, terminal
from sagas.operations import Operations

__all__ = ["history", "show"]

#: Fields that are shown as a table.
_TABLES = ("allowed_actions", "steps", "children", "dead_letters")


@click.command(
    cls=Command,
    short_help="Show one saga and the allowed actions.",
    epilog="""
        celery -A yourapp sagas show 0193ab
        celery -A yourapp sagas show order-123
        celery -A yourapp sagas show order-123 --json | jq .allowed_actions
    """,
)
@click.argument("saga", metavar="ID")
@AS_JSON
@click.pass_obj
def show(obj: Any, saga: str, as_json: bool) -> None:
    """Show a saga's status, the reason for it, the allowed actions, its steps and its input.

    ID is an id, a prefix of an id, or a key that belongs to one saga only. You can copy the commands that are shown:
    fill in your reason.
    """
    operations = Operations(obj.app.sagas)
    details = described(operations, operations.queries.resolve(saga))
    if as_json:
        document(details)
    elif (tty := terminal()) is not None:
        tty.show(details, operations.store.now())
    else:
        _in_lines(details)


def _in_lines(details: dict[str, Any]) -> None:
    plain = [name for name in details if name not in (*_TABLES, "input", "parent")]
    lines([{"field": name, "value": details[name]} for name in plain])
    if (parent := details["parent"]) is not None:
        lines([{"field": "parent", "value": f"{parent['saga']} {parent['id']}, step {parent['step']}"}])
    click.echo(f"input\t{json.dumps(details['input'])}")
    for name in _TABLES:
        if details[name]:
            click.echo()
            lines(
                [
                    {name: value if name != "result" else _text(value) for name, value in row.items()}
                    for row in details[name]
                ]
            )


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


@click.command(
    cls=Command,
    short_help="Show what happened to one saga.",
    epilog="""
        celery -A yourapp sagas history order-123
    """,
)
@click.argument("saga", metavar="ID")
@AS_JSON
@click.pass_obj
def history(obj: Any, saga: str, as_json: bool) -> None:
    """Show a saga's history, oldest first: failures, compensation and what operators did, but not plain progress.

    ID is an id, a prefix of an id, or a key.
    """
    operations = Operations(obj.app.sagas)
    record = operations.queries.resolve(saga)
    rows = [
        {
            "at": entry.at,
            "what": entry.what,
            "step": entry.step,
            "actor": entry.actor,
            "epoch": entry.epoch,
            "detail": entry.detail,
        }
        for entry in operations.queries.history(record.id)
    ]
    if as_json:
        document(rows)
    elif rows and (tty := terminal()) is not None:
        tty.console().print(tty.history(rows))
    else:
        lines(rows)
    if not rows and not as_json:
        click.echo(f"saga {record.name!r} ({record.id}) is {record.status}; its history has no entries", err=True)
