"""The output of commands: tables for people, tabs for programs that read lines, and JSON on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import click

from sagas.cli.cells import plain, readable

__all__ = ["document", "line", "lines", "show", "terminal"]

#: The option of every command that lists something.
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def show(rows: Sequence[Mapping[str, Any]], *, as_json: bool = False) -> None:
    """Print rows that have the same fields. If there are none, only JSON is printed."""
    if as_json:
        document(rows)
    elif rows and (tty := terminal()) is not None:
        tty.console().print(tty.table(rows))
    elif rows:
        lines(rows)


def document(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(plain(value), indent=2))


def lines(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the names of the fields and then the rows, one per line, with tabs between the cells."""
    if rows:
        click.echo("\t".join(map(str, rows[0])))
        for row in rows:
            line(row)


def line(row: Mapping[str, Any]) -> None:
    """Print one row, with tabs between its cells."""
    click.echo("\t".join(readable(cell).replace("\t", " ").replace("\n", " ") for cell in row.values()))


def terminal() -> Any:
    """Return `sagas.cli.terminal` if stdout is a terminal and rich is installed; else None."""
    if not sys.stdout.isatty() or find_spec("rich") is None:
        return None
    from sagas.cli import terminal  # noqa: PLC0415 - rich is slow to import, and not required

    return terminal
