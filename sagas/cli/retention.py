"""`celery -A yourapp sagas purge`, `db reencrypt` and `db audit`: what is kept, for how long, and in what form."""

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
@click.option("--older-than", type=DURATION, required=True, help="Since they ended: 90d, 12h, 8w.")
@click.option(
    "--status",
    "statuses",
    type=click.Choice(sorted(FINISHED), case_sensitive=False),
    multiple=True,
    help="Only these; may be given twice. Left out: both.",
)
@click.option("--saga", type=TEXT, metavar="NAME", help="Only those of this name.")
@click.option("--archive", "file", type=click.Path(), help="Keep them in this new file first: .jsonl or .jsonl.gz.")
@click.option("--batch", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="Deleted at once.")
@click.option("--dry-run", is_flag=True, help="Only say how many.")
@click.option("--yes", is_flag=True, help="Do not ask.")
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
    """Delete finished sagas, with their steps and history, oldest first.

    With them go the ticks of schedules that were decided about before that, unless --status chooses.

    Never a saga that is unfinished, stuck, or has an open dead letter. It is safe beside workers, may be interrupted,
    and goes on from there the next time. With --archive each saga is on the disk before it is deleted.

    Keep sagas for longer than any action may hang, and than a key may be used again: a deleted key starts a new saga.
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
        raise Refusal(f"the archive could not be written, and its sagas are kept: {error}") from error
    if ticks:
        for _ in stored_schedules.purge(store, older_than, saga, reason=reason, actor=actor):
            pass
    click.echo(f"deleted {total}")


@click.command(cls=Command)
@signed
@click.pass_obj
def reencrypt(obj: Any, reason: str, actor: str) -> None:
    """Encrypt anew what is stored plain, or with an old key. Workers may run; it may be interrupted and repeated.

    When it is through, old keys are needed for archives only.
    """
    store, written, unreadable = Operations(obj.app.sagas).store, 0, 0
    for progress in reencrypt_all(store, reason=reason, actor=actor):
        for error in progress.unreadable:
            click.echo(str(error), err=True)
        written, unreadable = progress.written, unreadable + len(progress.unreadable)
        click.echo(f"{progress.seen:,} sagas seen, {written:,} written", err=True)
    if unreadable:
        click.echo(
            f"{written} sagas are encrypted anew. {unreadable} payloads, named above, cannot be read and stay as they "
            "are"
        )
        raise click.exceptions.Exit(1)
    click.echo(f"{written} sagas are encrypted anew; all are now as {store.codec!r} keeps them")


@click.command(cls=Command)
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True)
@AS_JSON
@click.pass_obj
def audit(obj: Any, limit: int, as_json: bool) -> None:
    """List what was done to the sagas as a whole, newest first: purges, encryption."""
    show([asdict(entry) for entry in entries(Operations(obj.app.sagas).store, limit)], as_json=as_json)
