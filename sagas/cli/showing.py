"""`celery -A yourapp sagas show` and `history`: all about one saga."""

from __future__ import annotations

import json
from typing import Any

import click

from sagas.cli.command import Command
from sagas.cli.rows import described
from sagas.cli.tables import AS_JSON, document, lines, terminal
from sagas.operations import Operations

__all__ = ["history", "show"]

#: What has a table of its own.
_TABLES = ("allowed_actions", "steps", "dead_letters")


@click.command(
    cls=Command,
    short_help="Show one saga, and what may be done about it.",
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
    """Show how a saga is and why, what may be done about it, its steps and its input.

    ID is its id, the start of its id, or its key, where that is of one saga only. The commands that are shown can be
    copied: put your reason in.
    """
    operations = Operations(obj.app.sagas)
    told = described(operations, operations.queries.resolve(saga))
    if as_json:
        document(told)
    elif (tty := terminal()) is not None:
        tty.show(told, operations.store.now())
    else:
        _in_lines(told)


def _in_lines(told: dict[str, Any]) -> None:
    lines([{"field": name, "value": value} for name, value in told.items() if name not in (*_TABLES, "input")])
    click.echo(f"input\t{json.dumps(told['input'])}")
    for name in _TABLES:
        if told[name]:
            click.echo()
            lines(
                [
                    {name: value if name != "result" else _text(value) for name, value in row.items()}
                    for row in told[name]
                ]
            )


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


@click.command(
    cls=Command,
    short_help="Tell what happened to one saga.",
    epilog="""
        celery -A yourapp sagas history order-123
    """,
)
@click.argument("saga", metavar="ID")
@AS_JSON
@click.pass_obj
def history(obj: Any, saga: str, as_json: bool) -> None:
    """Tell what happened to a saga beside its plain way forward, oldest first: failures, turns, and operators.

    ID is its id, the start of its id, or its key.
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
        click.echo(
            f"saga {record.name!r} ({record.id}) is {record.status}; nothing beside its plain way forward", err=True
        )
