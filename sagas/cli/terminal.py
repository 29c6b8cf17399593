"""Output for terminals. Only this package's commands import it, and only if rich is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sagas.checkpoints import SagaStatus, StepProgress
from sagas.cli.cells import ago, readable
from sagas.operations import pretty

__all__ = [
    "bar",
    "blocks",
    "board",
    "console",
    "counts",
    "audit_entries",
    "history",
    "live",
    "outcome",
    "sagas",
    "show",
    "table",
    "watched",
]

_STYLES = {
    "PENDING": "dim",
    "RUNNING": "cyan",
    "COMPLETED": "green",
    "WAITING": "cyan",
    "DONE": "green",
    "COMPENSATING": "yellow",
    "COMPENSATED": "magenta",
    "SKIPPED": "magenta",
    "FAILED": "red",
    "IN_DOUBT": "red",
    "STUCK": "bold red",
}
#: From this many columns on, a saga in a list fits on one line.
_WIDE = 160


def console(*, stderr: bool = False) -> Console:
    """Return the terminal, without colors if Celery was started with --no-color."""
    context = click.get_current_context(silent=True)
    colourless = getattr(context.obj if context else None, "no_color", False)
    return Console(stderr=stderr, no_color=True if colourless else None, highlight=False, soft_wrap=False)


def live(first: RenderableType) -> Live:
    """Return a part of the terminal that is redrawn repeatedly."""
    return Live(first, console=console(), auto_refresh=False, vertical_overflow="crop")


def bar(what: str, total: int) -> Progress:
    """Return a progress bar."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    progress = Progress(*columns, console=console(stderr=True), transient=True)
    progress.add_task(what, total=total)
    return progress


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return rows that have the same fields as a table. Ids are not truncated."""
    made = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name in rows[0]:
        made.add_column(str(name), no_wrap=name == "id", overflow="fold")
    for each in rows:
        made.add_row(*(_cell(name, value) for name, value in each.items()))
    return made


def blocks(headers: Sequence[str], rows: Sequence[tuple[Sequence[Text], Sequence[Text]]]) -> Group:
    """Return each row as a line of cells, with its details below.

    A table with 80 columns would truncate a cell, or break it into pieces that cannot be copied.
    """
    lines = [[Text(name, "dim") for name in headers], *(list(cells) for cells, _ in rows)]
    widths = [max(cell_len(cells[column].plain) for cells in lines) for column in range(len(headers))]

    def joined(cells: Sequence[Text]) -> Text:
        made = Text()
        for cell, width in zip(cells, widths, strict=True):
            made.append_text(cell).append(" " * (width - cell_len(cell.plain) + 2))
        made.rstrip()
        return made

    shown: list[RenderableType] = [joined(lines[0])]
    for cells, details in rows:
        shown.append(joined(cells))
        shown.extend(Padding(detail, (0, 0, 0, 2)) for detail in details)
    return Group(*shown)


def sagas(rows: Sequence[Mapping[str, Any]], now: datetime) -> RenderableType:
    """Return a list of sagas. Ids are never truncated; errors are, and `show` prints them in full."""
    if console().width >= _WIDE:
        return table([_person(row, now) for row in rows])
    return blocks(
        ("id", "status", "age", "step"),
        [
            (
                (Text(row["id"]), _status(row["status"]), Text(ago(now - row["created_at"])), _text(row["step"])),
                (_one_line(f"{row['saga']} {row['key']}", "dim"), *_errors(row["error"])),
            )
            for row in rows
        ],
    )


def _person(row: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    return {
        "id": row["id"],
        "saga": row["saga"],
        "key": row["key"],
        "status": row["status"],
        "step": row["step"],
        "age": ago(now - row["created_at"]),
        "error": _one_line(row["error"] or "", "red"),
    }


def counts(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return how many sagas of each name have each status, with a column for each status in use."""
    there = [status for status in SagaStatus if any(row["status"] == status for row in rows)]
    made = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column("saga", overflow="fold")
    for status in there:
        made.add_column(Text(status.value, _STYLES[status.value]), justify="right")
    for name in sorted({row["saga"] for row in rows}):
        found = {row["status"]: row["count"] for row in rows if row["saga"] == name}
        made.add_row(Text(readable(name)), *(f"{found[s]:,}" if s in found else "" for s in there))
    return made


def board(numbers: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], now: datetime) -> Group:
    """Return counts and a list for `watch`."""
    if not rows:
        return Group(Text("no saga matches", "dim"))
    return Group(counts(numbers), Text(), sagas(rows, now))


def show(saga: Mapping[str, Any], now: datetime) -> None:
    """Print one saga: its status and the reason, the allowed actions, and then the rest."""
    screen = console()
    screen.print(_head(saga, now))
    if saga["allowed_actions"]:
        screen.print(Text("\nAllowed actions", "bold"))
    for allowed in saga["allowed_actions"]:
        # The terminal wraps the line itself, so that the command is copied in one piece.
        screen.print(Text(f"  {readable(allowed['command'])}", "cyan"), soft_wrap=True)
    screen.print(Text("\nSteps", "bold"), _steps(saga["steps"], now), sep="\n")
    if saga["children"]:
        screen.print(Text("\nChildren", "bold"), _children(saga["children"]), sep="\n")
    screen.print(Text("\nInput", "bold"), Padding(Text(_json(saga["input"])), (0, 0, 0, 2)), sep="\n")
    if saga["dead_letters"]:
        screen.print(Text("\nOpen dead letters", "bold"), _letters(saga["dead_letters"]), sep="\n")


def watched(saga: Mapping[str, Any], now: datetime) -> Group:
    """Return one saga for `watch`: its status and steps."""
    return Group(_head(saga, now), Text(), _steps(saga["steps"], now))


def _head(saga: Mapping[str, Any], now: datetime) -> Group:
    title = Text.assemble(
        _status(saga["status"]), f"  {readable(saga['saga'])} ", (f"v{saga['version']}", "dim"), "  ",
        (readable(saga["key"]), "bold"),
    )  # fmt: skip
    times = f"started {_moment(saga['created_at'])} UTC, {ago(now - saga['created_at'])} ago"
    if saga["updated_at"] != saga["created_at"]:
        times += f"; last changed {ago(now - saga['updated_at'])} ago"
    shown = [title, Text(saga["id"]), Text(times, "dim")]
    if saga["correlation_id"] != saga["id"]:
        shown.append(Text(f"correlation id {readable(saga['correlation_id'])}", "dim"))
    if (parent := saga["parent"]) is not None:
        shown.append(Text(f"child of {readable(parent['saga'])} {parent['id']}, step {parent['step']}", "dim"))
    return Group(*shown, *(_text(saga[what], "red") for what in ("error", "definition_missing") if saga[what]))


def _children(children: Sequence[Mapping[str, Any]]) -> Group:
    return blocks(
        ("id", "status", "step"),
        [
            (
                (Text(each["id"]), _status(each["status"]), _text(each["step"])),
                (_one_line(f"{each['saga']} {each['key']}", "dim"), *_errors(each["error"])),
            )
            for each in children
        ],
    )


def _letters(letters: Sequence[Mapping[str, Any]]) -> Group:
    return blocks(
        ("step", "direction", "since (UTC)"),
        [
            (
                (_text(each["step"]), _text(each["direction"]), Text(_moment(each["created_at"]))),
                (_text(each["error"], "red"),),
            )
            for each in letters
        ],
    )


def _steps(steps: Sequence[Mapping[str, Any]], now: datetime) -> Group:
    return blocks(
        ("step", "status", "failed", "lost", "began (UTC)", "took"),
        [
            (
                (
                    _text(step["step"]),
                    _status(step["status"] if step["started_at"] or step["status"] != "PENDING" else "-"),
                    Text(str(step["failures"] or "")),
                    Text(str(step["lost"] or "")),
                    Text(_moment(step["started_at"])),
                    Text(_took(step, now)),
                ),
                tuple(_about(step, now)),
            )
            for step in steps
        ],
    )


def _about(step: Mapping[str, Any], now: datetime) -> list[Text]:
    about = []
    if step["owner"]:
        about.append(Text(f"held by {step['owner']} until {_moment(step['lease_until'])}", "dim"))
    if step["progress"] is not None:
        since = step["heartbeat_at"] if step["owner"] else None
        when = "" if since is None else f", reported {ago(now - since)} ago"
        about.append(Text(f"{StepProgress(**step['progress'])}{when}", "cyan"))
    if step["due_at"] is not None and step["due_at"] > now and step["status"] != "WAITING":
        about.append(Text(f"retried in {ago(step['due_at'] - now)}", "dim"))
    if step["result"] is not None:
        about.append(Text(f"result {_json(step['result'], indent=None)}", "green"))
    if step["error"]:
        about.append(_text(step["error"], "red"))
    return about


def history(rows: Sequence[Mapping[str, Any]]) -> Group:
    """Return what happened to a saga."""
    return blocks(
        ("at (UTC)", "what", "step", "actor"),
        [
            (
                (Text(_moment(row["at"])), _text(row["what"]), _text(row["step"]), _text(row["actor"], "bold")),
                _details(row["detail"]),
            )
            for row in rows
        ],
    )


def audit_entries(rows: Sequence[Mapping[str, Any]]) -> Group:
    """Return what operators did."""
    return blocks(
        ("at (UTC)", "actor", "what", "step"),
        [
            (
                (Text(_moment(row["at"])), _text(row["actor"], "bold"), _text(row["what"]), _text(row["step"])),
                (_text(f"{row['id']} {row['saga']} {row['key']}", "dim"), *_details(row["reason"])),
            )
            for row in rows
        ],
    )


def outcome(row: Mapping[str, Any]) -> Text:
    """Return the outcome of an action on one saga."""
    if row["error"]:
        about = "" if row["id"] in row["error"] else f"{row['id']}: "  # most errors name the saga
        return Text.assemble(("refused: ", "bold red"), about, (readable(row["error"]), "red"))
    return Text.assemble(f"{row['id']} {readable(row['saga'])} {readable(row['key'])}: ", _status(row["status"]))


# -- cells ----------------------------------------------------------------------------------------------------------


def _cell(name: str, value: Any) -> Text:
    if isinstance(value, Text):
        return value
    return _status(str(value)) if name == "status" else _text(value)


def _text(value: Any, style: str = "") -> Text:
    return Text(readable(value), style)


def _status(status: str) -> Text:
    return Text(status, _STYLES.get(status, "dim"))


def _one_line(text: str, style: str) -> Text:
    return Text(" ".join(readable(text).split()), style, no_wrap=True, overflow="ellipsis")


def _errors(error: str | None) -> tuple[Text, ...]:
    return (_one_line(error, "red"),) if error else ()


def _details(text: str) -> tuple[Text, ...]:
    return (_text(text),) if text else ()


def _moment(at: datetime | None) -> str:
    return "" if at is None else at.strftime("%Y-%m-%d %H:%M:%S")


def _took(step: Mapping[str, Any], now: datetime) -> str:
    if step["started_at"] is None:
        return ""
    took = (step["finished_at"] or now) - step["started_at"]
    return f"{took.total_seconds():.1f}s" if took.total_seconds() < 60 else ago(took)


def _json(value: Any, indent: int | None = 2) -> str:
    return readable(pretty(value, indent))
