"""The command line: `celery -A yourapp sagas ...`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from celery.bin.base import handle_preload_options
from celery.utils.imports import symbol_by_name

from sagas.cli.actions import actions
from sagas.cli.audit import audit
from sagas.cli.check import check
from sagas.cli.command import Command, Refusal
from sagas.cli.doctor import doctor
from sagas.cli.events import events
from sagas.cli.flower import flower
from sagas.cli.listing import list_
from sagas.cli.options import JSON_FILE, json_object
from sagas.cli.retention import audit as audit_of_all
from sagas.cli.retention import purge, reencrypt
from sagas.cli.saga_graph import draw_saga
from sagas.cli.showing import history, show
from sagas.cli.start import start
from sagas.cli.watch import watch
from sagas.definition import Saga
from sagas.errors import SagaError
from sagas.testing import rehearse as rehearse_saga

__all__ = ["sagas"]


@click.group()
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def sagas(context: click.Context) -> None:
    """Look after sagas and their tables."""
    context.obj.app.loader.import_default_modules()
    if not hasattr(context.obj.app, "sagas"):
        raise click.ClickException(f"the Celery app {context.obj.app.main!r} has no sagas: Sagas(app, store, [...])")


_COMMANDS: tuple[click.Command, ...] = (
    list_, show, history, watch, *actions, audit, purge, start, check, doctor, draw_saga,
    flower, events,
)  # fmt: skip
for command in _COMMANDS:
    sagas.add_command(command)


@sagas.group()
def db() -> None:
    """The tables that sagas are kept in."""


@db.command(cls=Command)
@click.pass_obj
def upgrade(obj: Any) -> None:
    """Bring the tables to what this version needs."""
    store = obj.app.sagas.store
    store.upgrade()
    click.echo(f"{store!r} is up to date")


db.add_command(reencrypt)
db.add_command(audit_of_all)


@sagas.command(cls=Command)
@click.argument("saga")
@click.option("--input", "file", type=JSON_FILE, help="A JSON file with the input; - for stdin.")
@click.option(
    "--state",
    metavar="MODULE:FUNCTION",
    help="Returns what the saga changes in the world, to compare. Left out, only the ends of the runs are judged.",
)
@click.pass_obj
def rehearse(obj: Any, saga: str, file: Any, state: str | None) -> None:
    """Run SAGA once for every way in which each of its steps can fail.

    The REAL actions and compensations are called, many times, and the sagas are kept in the app's database: use
    a test environment, where no worker is running.

    Prints a line for each run, then what was not undone and what is not idempotent. The exit code is 1 when
    something is not ok, and 2 when it could not be rehearsed.
    """
    app = obj.app.sagas
    definition = _newest(app.orchestrator.sagas.values(), saga)
    given = None if file is None else json_object(file)
    snapshot = None if state is None else _function(state)
    click.echo(f"Calling the real actions and compensations of {saga!r}; sagas are kept in {app.store!r}.", err=True)
    try:
        rehearsal = rehearse_saga(
            definition,
            given,
            state=snapshot,
            store=app.store,
            lease=app.orchestrator.timing.lease,
            max_payload=app.orchestrator.max_payload,
        )
    except SagaError as error:
        raise Refusal(f"{saga!r} could not be rehearsed: {error}") from error
    click.echo(rehearsal.table())
    if snapshot is None:
        click.echo("Without --state nobody has looked at what the runs left behind.")
    if not rehearsal.ok:
        raise click.exceptions.Exit(1)


def _newest(definitions: Iterable[Saga], name: str) -> Saga:
    versions = [saga for saga in definitions if saga.name == name]
    if not versions:
        known = ", ".join(sorted({saga.name for saga in definitions})) or "none"
        raise Refusal(f"no saga {name!r} is registered; there is: {known}")
    return max(versions, key=lambda saga: saga.version)


def _function(path: str) -> Callable[[], object]:
    try:
        function: Callable[[], object] = symbol_by_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise Refusal(f"--state {path} cannot be imported: {error}") from error
    if not callable(function):
        raise Refusal(f"--state {path} is not a function")
    return function
