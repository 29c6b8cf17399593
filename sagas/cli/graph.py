"""`celery -A yourapp sagas events graph`: draw the choreography, check it, and compare it with what happened."""

from __future__ import annotations

from typing import Any

import click

from sagas.events.choreography import compared, graph, observed, problems
from sagas.events.drawing import FORMATS, render

__all__ = ["draw"]


@click.command("graph")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="mermaid", show_default=True)
@click.option("--observed", "look", is_flag=True, help="Compare with what happened, as far back as the tables go.")
@click.option("--check", is_flag=True, help="Report problems instead of drawing; the exit code is 1 if there are any.")
@click.pass_obj
def draw(obj: Any, format_: str, look: bool, check: bool) -> None:
    """Draw which services handle and emit which messages, as they declare it.

    --check and --observed report findings instead of drawing. Advice alone does not cause exit code 1.
    """
    events = obj.app.sagas.events
    declared = graph(events.services.values())
    if not (check or look):
        click.echo(render(declared, format_), nl=False)  # type: ignore[arg-type]
        return
    wrong = False
    if check:
        for problem in problems(declared):
            wrong = wrong or problem.level == "problem"
            click.echo(f"{problem.level}: {problem.kind}: {problem.text}")
    if look:
        seen = observed(events.engine)
        difference = compared(declared, seen)
        for heard in difference.undeclared:
            click.echo(f"observed, not declared: {heard} ({seen[heard]} times)")
        for heard in difference.unseen:
            click.echo(f"declared, not observed: {heard}")
        wrong = wrong or bool(check and difference.undeclared)
    if wrong:
        raise click.exceptions.Exit(1)
