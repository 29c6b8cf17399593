"""`celery -A yourapp sagas doctor`: check the whole setup."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from sagas.cli.command import Command
from sagas.cli.tables import AS_JSON, show
from sagas.doctor import Level, examine

__all__ = ["doctor"]

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "red"}


@click.command(cls=Command)
@click.option("--timeout", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Seconds for replies.")
@AS_JSON
@click.pass_obj
def doctor(obj: Any, timeout: float, as_json: bool) -> None:
    """Check the settings, the broker, the database, the workers and the pending work.

    It changes nothing. The exit code is 1 if there is a problem; warnings do not count. Run it with the workers'
    settings.
    """
    findings = examine(obj.app.sagas, timeout=timeout)
    if as_json:
        show([asdict(finding) for finding in findings], as_json=True)
    else:
        for finding in findings:
            click.secho(f"{finding.level:7}", fg=_COLOURS[finding.level], nl=False)
            click.echo(f"  {finding.code}: {finding.says}")
            if finding.do:
                click.echo(f"{'':9}{finding.do}")
        counts = {level: sum(finding.level is level for finding in findings) for level in Level}
        click.echo(f"{counts[Level.PROBLEM]} problems, {counts[Level.WARNING]} warnings", err=True)
    if any(finding.level is Level.PROBLEM for finding in findings):
        raise click.exceptions.Exit(1)
