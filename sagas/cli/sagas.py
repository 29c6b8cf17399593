"""The command line: `celery -A yourapp sagas ...`."""

from __future__ import annotations

from typing import Any

import click
from celery.bin.base import handle_preload_options

from sagas.cli.command import Command, Group, LazyCommands, Refusal

__all__ = ["sagas"]

_COMMANDS = LazyCommands(
    {
        "list": "sagas.cli.listing:list_",
        "show": "sagas.cli.showing:show",
        "history": "sagas.cli.showing:history",
        "watch": "sagas.cli.watch:watch",
        "retry": "sagas.cli.actions:retry",
        "skip": "sagas.cli.actions:skip",
        "mark-done": "sagas.cli.actions:mark_done",
        "compensate": "sagas.cli.actions:compensate",
        "cancel": "sagas.cli.actions:cancel",
        "resume": "sagas.cli.actions:resume",
        "audit": "sagas.cli.audit:audit",
        "purge": "sagas.cli.retention:purge",
        "start": "sagas.cli.start:start",
        "signal": "sagas.cli.signal:signal",
        "waiting": "sagas.cli.waiting:waiting",
        "check-deploy": "sagas.cli.check:check",
        "doctor": "sagas.cli.doctor:doctor",
        "graph": "sagas.cli.saga_graph:draw_saga",
        "rehearse": "sagas.cli.rehearse:rehearse",
        "flower": "sagas.cli.flower:flower",
        "schedules": "sagas.cli.schedules:schedules",
        "events": "sagas.cli.events:events",
    }
)


@click.group(cls=Group, commands=_COMMANDS)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def sagas(context: click.Context) -> None:
    """Manage sagas and their tables."""
    context.obj.app.loader.import_default_modules()
    if not hasattr(context.obj.app, "sagas"):
        raise Refusal(f"the Celery app {context.obj.app.main!r} has no sagas. Create them: Sagas(app, store, [...])")


@sagas.group(
    commands=LazyCommands({"reencrypt": "sagas.cli.retention:reencrypt", "audit": "sagas.cli.retention:audit"})
)
def db() -> None:
    """Manage the tables that store sagas."""


@db.command(cls=Command)
@click.pass_obj
def upgrade(obj: Any) -> None:
    """Upgrade the tables to what this version needs."""
    store = obj.app.sagas.store
    store.upgrade()
    click.echo(f"{store!r} is up to date")
