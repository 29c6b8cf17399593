"""The output of commands: tables for people, tabs for programs that read lines, and JSON on request."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from importlib.util import find_spec
from typing import Any

import click

__all__ = ["ago", "document", "line", "lines", "plain", "readable", "show", "terminal"]

#: The option of every command that lists something.
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

#: Characters that would control a terminal, or cannot be printed at all.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


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


def readable(value: Any) -> str:
    """Return a cell as text that cannot control a terminal."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ",".join(map(readable, value))
    text = json.dumps(plain(value), ensure_ascii=False) if isinstance(value, dict) else str(plain(value))
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def plain(value: Any) -> Any:
    """Return a value with its datetimes as ISO 8601 text."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value


def ago(duration: timedelta) -> str:
    """Return a duration in a short form: 42s, 7m, 30h, 12d."""
    seconds = max(0, int(duration.total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def terminal() -> Any:
    """Return `sagas.cli.terminal` if stdout is a terminal and rich is installed; else None."""
    if not sys.stdout.isatty() or find_spec("rich") is None:
        return None
    from sagas.cli import terminal  # noqa: PLC0415 - rich is slow to import, and not required

    return terminal
