"""`celery -A yourapp sagas events graph`: the choreography, drawn, checked and compared with what happened."""

from __future__ import annotations

from typing import Any

import click

from sagas.events.choreography import compared, graph, observed, problems
from sagas.events.drawing import FORMATS, render

__all__ = ["draw"]


@click.command("graph")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="mermaid", show_default=True)
@click.option("--observed", "look", is_flag=True, help="Compare with what happened, as far as the tables go back.")
@click.option("--check", is_flag=True, help="Say what is wrong instead of drawing; the exit code is 1 if anything is.")
@click.pass_obj
def draw(obj: Any, format_: str, look: bool, check: bool) -> None:
    """Draw who handles and emits what, as the services declare it.

    With --check or --observed, what is wrong is said, and nothing is drawn. Advice alone does not make the exit code 1.
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
            click.echo(f"seen, not declared: {heard} ({seen[heard]} times)")
        for heard in difference.unseen:
            click.echo(f"declared, not seen: {heard}")
        wrong = wrong or bool(check and difference.undeclared)
    if wrong:
        raise click.exceptions.Exit(1)
