"""`celery -A yourapp sagas events trace`: show one flow of messages and sagas."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from sagas.cli.cells import readable
from sagas.cli.command import Refusal
from sagas.cli.tables import AS_JSON
from sagas.events.trace import Entry, trace, walk

__all__ = ["show_trace"]

_LONGEST = 200
#: The deepest level that is indented further.
_INDENTED = 40


@click.command("trace")
@click.argument("name", metavar="NAME")
@AS_JSON
@click.pass_obj
def show_trace(obj: Any, name: str, as_json: bool) -> None:
    """Trace NAME: what was published, who handled it and what that led to, including sagas.

    NAME is a correlation id, a business key, or the id of a saga or of a message.
    """
    entries = trace(obj.app.sagas.events.engine, name)
    if as_json:
        click.echo(json.dumps([entry.as_json() for entry in entries], indent=2))
    elif entries:
        _print(entries)
    if not entries:
        raise Refusal(f"there is no correlation id, business key, saga or message {name!r}")


def _print(entries: Sequence[Entry]) -> None:
    for depth, entry in walk(entries):
        at = "--:--:--.---" if entry.at is None else entry.at.strftime("%H:%M:%S.%f")[:-3]
        if depth == 0 and entry.at is not None:
            at = f"{entry.at:%Y-%m-%d} {at}"
        click.echo(f"{'  ' * min(depth, _INDENTED)}{at}  {_line(entry)}")


def _line(entry: Entry) -> str:
    detail = " ".join(entry.detail.split())[:_LONGEST]
    text = {
        "message": f"{entry.what} from {entry.who}",
        "handled": f"handled by {entry.who}",
        "dead letter": f"DEAD LETTER of {entry.who}: {' '.join(entry.what.split())[:_LONGEST]}",
        "saga": f"saga {entry.who} {entry.what} ({entry.id})",
        "step": f"step {entry.who} {entry.what}",
        "history": f"{entry.who}: {entry.what}",
    }[entry.kind]
    return readable(f"{text}  [{detail}]" if detail else text)
