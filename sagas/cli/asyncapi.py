"""`celery -A yourapp sagas events asyncapi`: print the AsyncAPI document."""

from __future__ import annotations

import json
from typing import Any

import click

from sagas.events.asyncapi import asyncapi as describe

__all__ = ["asyncapi"]


@click.command()
@click.option(
    "--output", type=click.File("w", encoding="utf-8", lazy=True), default="-", help="A file; by default stdout."
)
@click.option("--title", help="The application's title; by default the name of the Celery app.")
@click.option("--app-version", default="1.0.0", show_default=True, help="The application's version.")
@click.pass_obj
def asyncapi(obj: Any, output: Any, title: str | None, app_version: str) -> None:
    """Write the AsyncAPI 3.0 document of the events and commands, as JSON."""
    app = obj.app
    document = describe(app.sagas.events, title=title or app.main or "events", version=app_version)
    output.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
