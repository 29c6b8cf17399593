"""`celery -A yourapp sagas rehearse`: find out whether a saga can fail at every step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from celery.utils.imports import symbol_by_name

from sagas.app import Sagas
from sagas.cli.command import INTERRUPTED, Command, Refusal, agree
from sagas.cli.options import JSON_FILE, json_object
from sagas.definition import Saga
from sagas.doctor import broker, workers
from sagas.endings import ProcessEnd
from sagas.errors import SagaError
from sagas.operations import Operations
from sagas.stores import OperatorStore
from sagas.testing import rehearse as rehearse_saga
from sagas.testing.rehearsal import unfinished_in

__all__ = ["rehearse"]

#: Seconds that the broker has to answer, and the workers.
_PATIENCE = 2.0
_TERMINATED = 128 + signal.SIGTERM


@click.command(
    cls=Command,
    epilog="""
        celery -A yourapp sagas rehearse place_order --input order.json
        celery -A yourapp sagas rehearse place_order --input order.json --state shop.books:state --yes
    """,
)
@click.argument("saga")
@click.option("--input", "file", type=JSON_FILE, help="A JSON file with the input; - for stdin.")
@click.option("--answers", type=JSON_FILE, help="A JSON file with what signals and callbacks carry, by node.")
@click.option(
    "--state",
    metavar="MODULE:FUNCTION",
    help="Returns the state that the saga changes, to compare it. Without it, only the outcome of each run is checked.",
)
@click.option("--live", is_flag=True, help="Run despite unfinished sagas or running workers.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.pass_obj
def rehearse(obj: Any, saga: str, file: Any, answers: Any, state: str | None, live: bool, yes: bool) -> None:
    """Run SAGA once for every way in which each of its steps can fail.

    This calls the REAL actions and compensations, many times. The sagas are stored in the app's database and deleted at
    the end, also after Ctrl-C. Use a test environment: without --live, the command refuses a database with unfinished
    sagas, and a broker with workers of this app.

    It prints a line for each run, then what was not undone, what is not idempotent, and what was not rehearsed. The
    exit code is 1 if something is wrong, 2 if the rehearsal could not run, and 130 after Ctrl-C.
    """
    app = obj.app.sagas
    store = Operations(app).store
    definition = _newest(app.orchestrator.sagas.values(), saga)
    given = None if file is None else json_object(file)
    answered = None if answers is None else json_object(answers)
    snapshot = None if state is None else _function(state)
    if not live:
        _refuse_live(app, store)
    click.echo(
        f"This calls the real actions and compensations of {saga!r}, many times. Its sagas are stored in {store!r} and "
        "deleted at the end. Side effects of the actions remain.",
        err=True,
    )
    if not yes:
        agree(f"rehearse {saga}?")
    try:
        with _terminable():
            rehearsal = rehearse_saga(
                definition,
                given,
                state=snapshot,
                store=store,
                lease=app.orchestrator.timing.lease,
                max_payload=app.orchestrator.max_payload,
                events=app.events,
                answers=answered,
                live=True,  # checked above
            )
    except SagaError as error:
        raise Refusal(f"{saga!r} could not be rehearsed: {error}") from error
    except (KeyboardInterrupt, _Terminated) as error:
        click.echo("interrupted; the sagas of the rehearsal were deleted", err=True)
        code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else _TERMINATED
        raise click.exceptions.Exit(code) from None
    click.echo(rehearsal.table())
    if snapshot is None:
        click.echo("Without --state, nothing has checked what the runs left behind.")
    if not rehearsal.ok:
        raise click.exceptions.Exit(1)


def _refuse_live(app: Sagas, store: OperatorStore) -> None:
    """Refuse what does not look like a test environment: the actions would have real effects in the wrong place."""
    if unfinished := unfinished_in(store):
        raise Refusal(
            f"{store!r} has {unfinished} unfinished sagas, so it does not look like a test database. Rehearse with the "
            "settings of a test environment, or add --live"
        )
    found = broker.examine(app.app, _PATIENCE)
    if away := next((finding for finding in found if finding.code == broker.UNREACHABLE), None):
        click.echo(f"{away.says.partition('. ')[0]}: it is unknown whether workers are running", err=True)
    elif names := [worker.name for worker in workers.own(app, workers.ask(app, _PATIENCE))]:
        raise Refusal(
            f"workers of this app are running ({', '.join(names)}): their recovery would take over the rehearsal's "
            "sagas. Stop them, rehearse with the settings of a test environment, or add --live"
        )


class _Terminated(ProcessEnd):
    """SIGTERM: the rehearsal must clean up, and no step may treat the exception as its own failure."""


@contextmanager
def _terminable() -> Iterator[None]:
    def end(_signal: int, _frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _newest(definitions: Iterable[Saga], name: str) -> Saga:
    versions = [saga for saga in definitions if saga.name == name]
    if not versions:
        known = ", ".join(sorted({saga.name for saga in definitions})) or "none"
        raise Refusal(f"no saga named {name!r} is registered. Registered are: {known}")
    return max(versions, key=lambda saga: saga.version)


def _function(path: str) -> Callable[[], object]:
    try:
        function: Callable[[], object] = symbol_by_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise Refusal(f"--state {path} cannot be imported: {error}") from error
    if not callable(function):
        raise Refusal(f"--state {path} is not a function")
    return function
