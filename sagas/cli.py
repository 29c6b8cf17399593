"""The command line: `celery -A yourapp sagas ...`."""

from __future__ import annotations

from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from sagas.errors import SagaError

__all__ = ["sagas"]


@click.group()
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def sagas(context: click.Context) -> None:
    """Look after sagas and their tables."""
    context.obj.app.loader.import_default_modules()
    if not hasattr(context.obj.app, "sagas"):
        raise click.ClickException(f"the Celery app {context.obj.app.main!r} has no sagas: Sagas(app, store, [...])")


@sagas.group()
def db() -> None:
    """The tables that sagas are kept in."""


@db.command(cls=CeleryCommand)
@click.pass_obj
def upgrade(obj: Any) -> None:
    """Bring the tables to what this version needs."""
    store = obj.app.sagas.store
    try:
        store.upgrade()
    except SagaError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{store!r} is up to date")
