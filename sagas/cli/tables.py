"""What commands print: a table for people, tabs for programs that read lines, JSON for those that ask."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click

__all__ = ["show"]

#: The option that every command which lists things has.
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def show(rows: Sequence[Mapping[str, Any]], *, as_json: bool = False) -> None:
    """Print rows that have the same fields. Nothing is printed for none, other than as JSON."""
    if as_json:
        click.echo(json.dumps([{name: _plain(value) for name, value in row.items()} for row in rows], indent=2))
        return
    if not rows:
        return
    cells = [["" if value is None else str(_plain(value)) for value in row.values()] for row in rows]
    table = _rich_table() if sys.stdout.isatty() else None
    if table is None:
        for line in ([str(name) for name in rows[0]], *cells):
            click.echo("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in line))
        return
    for name in rows[0]:
        table.add_column(str(name))
    for line in cells:
        table.add_row(*line)
    _print(table)


def _plain(value: Any) -> Any:
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value


def _rich_table() -> Any:
    try:
        from rich.table import Table  # noqa: PLC0415 - slow to import, and not required
    except ImportError:
        return None
    return Table(box=None)


def _print(table: Any) -> None:
    from rich.console import Console  # noqa: PLC0415 - as above

    Console().print(table)
