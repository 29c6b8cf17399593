"""The command line: `celery -A yourapp sagas ...`."""

from __future__ import annotations

from typing import Any

import click
from celery.bin.base import handle_preload_options

from sagas.cli.actions import actions
from sagas.cli.audit import audit
from sagas.cli.check import check
from sagas.cli.command import Command, Group, Refusal
from sagas.cli.doctor import doctor
from sagas.cli.events import events
from sagas.cli.flower import flower
from sagas.cli.listing import list_
from sagas.cli.rehearse import rehearse
from sagas.cli.retention import audit as audit_of_all
from sagas.cli.retention import purge, reencrypt
from sagas.cli.saga_graph import draw_saga
from sagas.cli.showing import history, show
from sagas.cli.start import start
from sagas.cli.watch import watch

__all__ = ["sagas"]


@click.group(cls=Group)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def sagas(context: click.Context) -> None:
    """Manage sagas and their tables."""
    context.obj.app.loader.import_default_modules()
    if not hasattr(context.obj.app, "sagas"):
        raise Refusal(f"the Celery app {context.obj.app.main!r} has no sagas. Create them: Sagas(app, store, [...])")


_COMMANDS: tuple[click.Command, ...] = (
    list_, show, history, watch, *actions, audit, purge, start, check, doctor, draw_saga,
    rehearse, flower, events,
)  # fmt: skip
for command in _COMMANDS:
    sagas.add_command(command)


@sagas.group()
def db() -> None:
    """Manage the tables that store sagas."""


@db.command(cls=Command)
@click.pass_obj
def upgrade(obj: Any) -> None:
    """Upgrade the tables to what this version needs."""
    store = obj.app.sagas.store
    store.upgrade()
    click.echo(f"{store!r} is up to date")


db.add_command(reencrypt)
db.add_command(audit_of_all)
