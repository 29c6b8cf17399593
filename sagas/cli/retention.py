"""`celery -A yourapp sagas purge`, `db reencrypt` and `db audit`: retention and encryption of stored sagas."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import click

from sagas.checkpoints import FINISHED, SagaStatus
from sagas.cli.command import Command, Refusal, agree
from sagas.cli.options import DURATION, TEXT, signed
from sagas.cli.tables import AS_JSON, show
from sagas.operations import Operations
from sagas.stores import retention
from sagas.stores import schedules as stored_schedules
from sagas.stores.archive import Archive
from sagas.stores.audit import audit as entries
from sagas.stores.reencryption import reencrypt as reencrypt_all
from sagas.stores.retention import Expired

__all__ = ["audit", "purge", "reencrypt"]


@click.command(cls=Command)
@click.option("--older-than", type=DURATION, required=True, help="Time since they ended: 90d, 12h, 8w.")
@click.option(
    "--status",
    "statuses",
    type=click.Choice(sorted(FINISHED), case_sensitive=False),
    multiple=True,
    help="Only this status; may be repeated. By default both.",
)
@click.option("--saga", type=TEXT, metavar="NAME", help="Only sagas with this name.")
@click.option("--archive", "file", type=click.Path(), help="First save them in this new file: .jsonl or .jsonl.gz.")
@click.option("--batch", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="Sagas per transaction.")
@click.option("--dry-run", is_flag=True, help="Only count them.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@signed
@click.pass_obj
def purge(
    obj: Any,
    older_than: timedelta,
    statuses: Sequence[str],
    saga: str | None,
    file: str | None,
    batch: int,
    dry_run: bool,
    yes: bool,
    reason: str,
    actor: str,
) -> None:
    """Delete finished sagas with their steps and history, oldest first.

    Ticks of schedules that were decided before that are deleted too, unless --status is given.

    Sagas that are unfinished, stuck or have an open dead letter are never deleted. The command is safe while workers
    run. If interrupted, it continues the next time. With --archive, each saga is on disk before it is deleted.

    Keep sagas longer than any action may hang, and longer than a key may be reused: a deleted key starts a new saga.
    """
    store = Operations(obj.app.sagas).store
    which = Expired(older_than=older_than, statuses=frozenset(map(SagaStatus, statuses)) or FINISHED, name=saga)
    count = retention.count_expired(store, which)
    ticks = 0 if statuses else stored_schedules.count_old(store, older_than, saga)
    click.echo(f"{count:,} {which}", err=True)
    if ticks:
        click.echo(f"{ticks:,} ticks of schedules", err=True)
    if dry_run or not (count or ticks):
        click.echo(f"{'would delete' if dry_run else 'deleted'} {count}")
        return
    if not yes:
        agree(f"delete these {count:,}{'' if file else ', without an archive'}?")
    total = 0
    try:
        with nullcontext() if file is None else Archive(file) as archive:
            for deleted in retention.purge(store, which, reason=reason, actor=actor, archive=archive, batch=batch):
                total += deleted
                click.echo(f"{total:,} of {count:,}", err=True)
    except OSError as error:
        raise Refusal(f"the archive could not be written, so its sagas were not deleted: {error}") from error
    if ticks:
        for _ in stored_schedules.purge(store, older_than, saga, reason=reason, actor=actor):
            pass
    click.echo(f"deleted {total}")


@click.command(cls=Command)
@signed
@click.pass_obj
def reencrypt(obj: Any, reason: str, actor: str) -> None:
    """Encrypt again what is stored in plain text or with an old key.

    Workers may run meanwhile. The command may be interrupted and repeated. After it completes, old keys are needed for
    archives only.
    """
    store, written, unreadable = Operations(obj.app.sagas).store, 0, 0
    for progress in reencrypt_all(store, reason=reason, actor=actor):
        for error in progress.unreadable:
            click.echo(str(error), err=True)
        written, unreadable = progress.written, unreadable + len(progress.unreadable)
        click.echo(f"{progress.seen:,} sagas read, {written:,} written", err=True)
    if unreadable:
        click.echo(
            f"{written} sagas were encrypted again. {unreadable} payloads, listed above, cannot be read and were not "
            "changed"
        )
        raise click.exceptions.Exit(1)
    click.echo(f"{written} sagas were encrypted again; all of them now match {store.codec!r}")


@click.command(cls=Command)
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True)
@AS_JSON
@click.pass_obj
def audit(obj: Any, limit: int, as_json: bool) -> None:
    """List what was done to all sagas together, newest first: purges and encryption."""
    show([asdict(entry) for entry in entries(Operations(obj.app.sagas).store, limit)], as_json=as_json)
