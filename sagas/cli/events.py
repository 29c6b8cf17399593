"""The command line of events: `celery -A yourapp events ...`. Each group of commands has a module of its own."""

from __future__ import annotations

import click
from celery.bin.base import handle_preload_options

__all__ = ["events"]


@click.group()
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def events(context: click.Context) -> None:
    """Look after events, commands, and what carries them."""
    context.obj.app.loader.import_default_modules()
    if not hasattr(context.obj.app, "sagas_events"):
        raise click.ClickException(
            f"the Celery app {context.obj.app.main!r} has no events: Sagas(app, store, [...], events=Events(...))"
        )
