"""`celery -A yourapp sagas watch`: follow one saga until its end, or a list of sagas."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import click

from sagas.checkpoints import AT_REST, SagaStatus, SagaSummary, StepRecord
from sagas.cli.cells import plain
from sagas.cli.command import INTERRUPTED, Command
from sagas.cli.listing import counted
from sagas.cli.options import DURATION, Where, filters
from sagas.cli.rows import described, in_order, row
from sagas.cli.tables import line, terminal
from sagas.commands import command
from sagas.errors import StoreUnavailable
from sagas.operations import Operations
from sagas.stores import Filter

__all__ = ["watch"]

_ENDS = {SagaStatus.COMPLETED: 0, SagaStatus.COMPENSATED: 1, SagaStatus.STUCK: 3}
_TIME_IS_UP = 4
#: The queries for a list may take this fraction of the time: counting a large table takes long.
_SHARE = 5


@click.command(
    cls=Command,
    short_help="Follow one saga until its end, or a list.",
    epilog="""
        celery -A yourapp sagas watch order-123 && echo done
        celery -A yourapp sagas watch order-123 --timeout 10m --json | jq -r .status
        celery -A yourapp sagas watch --saga place_order --attention
    """,
)
@click.argument("wanted", metavar="[ID]", required=False)
@filters
@click.option("--interval", type=DURATION, default="1s", show_default=True, help="Time between two queries.")
@click.option("--timeout", type=DURATION, help="When to stop watching. By default never.")
@click.option("--limit", type=click.IntRange(min=1, max=1000), default=20, show_default=True, help="The most sagas.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each change, a line each.")
@click.pass_obj
def watch(
    obj: Any,
    /,
    wanted: str | None,
    where: Where,
    interval: timedelta,
    timeout: timedelta | None,
    limit: int,
    as_json: bool,
) -> None:
    """Follow one saga until its end or, without ID, the list of sagas that match the options.

    For one saga, the exit code is its outcome: 0 COMPLETED, 1 COMPENSATED, 3 STUCK; 4 if the timeout passed first, and
    2 if it could not be followed. A list is followed until you interrupt it (130) or the timeout passes (0).

    A pipe gets a line for each change, with tabs between the fields.
    """
    if wanted is not None and where:
        raise click.UsageError("pass an ID or options that select sagas, not both")
    operations = Operations(obj.app.sagas)
    give_up = None if timeout is None else time.monotonic() + timeout.total_seconds()
    tty = None if as_json else terminal()
    try:
        with _interruptible() as interrupted:
            looks = _looks(interval.total_seconds(), give_up, interrupted)
            if wanted is None:
                _watch_list(operations, where, limit, tty, as_json, looks)
                return
            code = _watch_one(operations, operations.queries.resolve(wanted), tty, as_json, looks)
    except KeyboardInterrupt:
        code = INTERRUPTED
    raise click.exceptions.Exit(code)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Defer the first interrupt until the current query ends: during a query it could be lost."""
    interrupted = threading.Event()

    def note(_signal: int, _frame: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _looks(interval: float, give_up: float | None, interrupted: threading.Event) -> Iterator[None]:
    """Yield for each query until the time is up. Raises `KeyboardInterrupt` between two queries."""
    while True:
        began = time.monotonic()
        yield
        pause = max(interval, _SHARE * (time.monotonic() - began))
        if give_up is not None:
            pause = min(pause, give_up - time.monotonic())
            if pause <= 0:
                return
        if interrupted.wait(pause):
            raise KeyboardInterrupt


@contextmanager
def _patient(away: Callable[[StoreUnavailable], None]) -> Iterator[None]:
    """Tolerate a database that does not answer: it answered before, and may be back at the next query."""
    try:
        yield
    except StoreUnavailable as error:
        away(error)


def _warn(error: StoreUnavailable) -> None:
    click.echo(f"{error}; still trying", err=True)


# -- one saga -------------------------------------------------------------------------------------------------------


class _View(Protocol):
    def show(self, before: SagaSummary | None, record: SagaSummary) -> None: ...
    def away(self, error: StoreUnavailable) -> None: ...


def _watch_one(operations: Operations, record: SagaSummary, tty: Any, as_json: bool, looks: Iterator[None]) -> int:
    if tty is None:
        return _follow(operations, record, _Lines(operations, as_json=as_json), looks)
    with tty.live("") as live:
        code = _follow(operations, record, _Page(operations, tty, live), looks)
    if code == _ENDS[SagaStatus.STUCK]:
        click.echo(f"\nallowed actions: {command('show', record.id)}")
    return code


def _follow(operations: Operations, record: SagaSummary, view: _View, looks: Iterator[None]) -> int:
    before: SagaSummary | None = None
    for _ in looks:
        with _patient(view.away):
            if before is not None:
                record = operations.queries.summary(record.id)
            view.show(before, record)
            before = record
            if record.status in AT_REST:
                return _ENDS[record.status]
    return _TIME_IS_UP


class _Lines:
    """Prints a line for each change: of the saga, with an empty `step`, and of each step."""

    def __init__(self, operations: Operations, *, as_json: bool) -> None:
        self._operations = operations
        self._as_json = as_json

    def show(self, before: SagaSummary | None, record: SagaSummary) -> None:
        if before is None and not self._as_json:
            click.echo("\t".join(_FIELDS))
        for change in _changes(before, record):
            if self._as_json:
                click.echo(json.dumps(plain(change)))
            else:
                line(change)

    def away(self, error: StoreUnavailable) -> None:
        _warn(error)


_FIELDS = ("at", "step", "status", "failures", "lost", "progress", "error")


def _changes(before: SagaSummary | None, record: SagaSummary) -> Iterator[dict[str, Any]]:
    def change(*values: Any) -> dict[str, Any]:
        return dict(zip(_FIELDS, (record.updated_at, *values), strict=True))

    for step in in_order(record):
        old = StepRecord(node=step.node) if before is None else before.step(step.name)
        seen = old.status, old.attempt, old.progress, old.error
        if seen != (step.status, step.attempt, step.progress, step.error):
            progress = None if step.progress is None else str(step.progress)
            yield change(step.name, step.status.value, step.failures, step.lost, progress, step.error)
    if before is None or (before.status, before.error) != (record.status, record.error):
        yield change(None, record.status.value, None, None, None, record.error)


class _Page:
    """Shows the saga on a terminal and redraws it after each query, because ages change even if nothing happens."""

    def __init__(self, operations: Operations, tty: Any, live: Any) -> None:
        self._operations, self._tty, self._live = operations, tty, live

    def show(self, before: SagaSummary | None, record: SagaSummary) -> None:  # noqa: ARG002 - it redraws everything
        saga = described(self._operations, record)
        self._live.update(self._tty.watched(saga, self._operations.store.now()), refresh=True)

    def away(self, error: StoreUnavailable) -> None:
        self._live.console.print(f"{error}; still trying", markup=False, style="red")


# -- a list ---------------------------------------------------------------------------------------------------------


def _watch_list(
    operations: Operations, where: Where, limit: int, tty: Any, as_json: bool, looks: Iterator[None]
) -> None:
    if tty is None:
        _follow_list(operations, where, limit, as_json, looks)
        return
    with tty.live("") as live:
        for _ in looks:
            with _patient(lambda error: live.console.print(f"{error}; still trying", markup=False, style="red")):
                now = operations.store.now()
                chosen = where.at(now)
                found = [
                    row(operations, record)
                    for record in operations.queries.select(chosen, limit=limit, with_steps=True)
                ]
                live.update(tty.board(counted(operations, chosen), found, now), refresh=True)


def _follow_list(operations: Operations, where: Where, limit: int, as_json: bool, looks: Iterator[None]) -> None:
    """Print the matching sagas, then each again after a change, even if it no longer matches."""
    known: dict[str, int] = {}
    named = as_json
    for _ in looks:
        with _patient(_warn):
            chosen = where.at(operations.store.now())
            found = list(operations.queries.select(chosen, limit=limit, with_steps=True))
            there = {record.id for record in found}
            gone = tuple(saga_id for saga_id in known if saga_id not in there)
            if gone:
                found += operations.queries.select(Filter(ids=gone), limit=len(gone), with_steps=True)
            changed = [record for record in reversed(found) if known.get(record.id) != record.revision]
            for each in [row(operations, record) for record in changed]:
                if not named:
                    click.echo("\t".join(each))
                    named = True
                if as_json:
                    click.echo(json.dumps(plain(each)))
                else:
                    line(each)
            known = {record.id: record.revision for record in found if record.id in there}
