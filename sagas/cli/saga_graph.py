"""`celery -A yourapp sagas graph`: draw a definition, or one saga colored by its state."""

from __future__ import annotations

from typing import Any

import click

from sagas.checkpoints import SagaSummary
from sagas.cli.command import Refusal
from sagas.definition import Saga
from sagas.drawing import FORMATS, render
from sagas.errors import SagaError
from sagas.operations import Operations

__all__ = ["draw_saga"]


@click.command("graph")
@click.argument("saga", metavar="SAGA|ID")
@click.option("--format", "format_", type=click.Choice(FORMATS), default="mermaid", show_default=True)
@click.option("--version", type=int, help="Of the definition. By default the newest.")
@click.pass_obj
def draw_saga(obj: Any, saga: str, format_: Any, version: int | None) -> None:
    """Draw a definition by its name, or one saga by its id, a prefix of its id, or its key, colored by state."""
    click.echo(render(_meant(obj.app.sagas, saga, version), format_), nl=False)


def _meant(sagas: Any, text: str, version: int | None) -> Saga | SagaSummary:
    known = sagas.orchestrator.sagas
    versions = [number for name, number in known if name == text]
    if version is not None and version not in versions:
        there = ", ".join(map(str, sorted(versions))) or "none"
        raise Refusal(f"saga {text!r} has no version {version}. It has: {there}")
    if versions:
        definition: Saga = known[text, max(versions) if version is None else version]
        return definition
    try:
        return Operations(sagas).queries.resolve(text)
    except SagaError as error:
        names = ", ".join(sorted({name for name, _ in known})) or "none"
        raise Refusal(f"{error}. It is not a definition either. The definitions are: {names}") from error
