"""`celery -A yourapp sagas check-deploy`: find the sagas in flight that this code could not continue."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from sagas.check import check as check_flights
from sagas.cli.command import Command
from sagas.cli.tables import AS_JSON, show

__all__ = ["check"]


class _Count(click.ParamType[int | str]):
    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value != "all" and not str(value).isdecimal():
            self.fail(f"{value!r} is neither a number nor 'all'", param, ctx)
        return "all" if value == "all" else int(value)


@click.command("check-deploy", cls=Command)
@click.option(
    "--values",
    type=_Count(),
    default=100,
    show_default=True,
    help="For each definition, read the stored inputs and results of this many sagas.",
)
@AS_JSON
@click.pass_obj
def check(obj: Any, values: int | str, as_json: bool) -> None:
    """Check this code against the sagas in flight.

    It needs their database and no broker, and changes nothing. Run it with the new code before you deploy that code.
    The exit code is 1 if this code could not continue some sagas, and 2 if the check failed.
    """
    flights = check_flights(obj.app.sagas, values=None if isinstance(values, str) else values)
    if as_json:
        show([{**asdict(flight), "ok": flight.ok} for flight in flights], as_json=True)
    else:
        show(
            [
                {
                    "saga": flight.name,
                    "version": flight.version,
                    "count": flight.count,
                    "oldest": flight.oldest,
                    "values read": flight.read,
                    "result": "ok" if flight.ok else f"{len(flight.problems)} problems, see below",
                }
                for flight in flights
            ]
        )
        for flight in flights:
            for problem in flight.problems:
                click.echo(f"{flight.name} {flight.version}, for example {flight.example}: {problem}")
            if flight.changes:
                click.echo(
                    f"{flight.name} {flight.version}: ahead of {flight.count - flight.stranded} sagas, "
                    f"{'; '.join(flight.changes)}. They go on with this code's definition"
                )
        if not flights:
            click.echo("no sagas are in flight", err=True)
    if not all(flight.ok for flight in flights):
        raise click.exceptions.Exit(1)
