"""How long sagas are kept: finished ones are deleted, archived before if that is asked for, some at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, exists, func, select

from sagas.checkpoints import FINISHED, SagaStatus
from sagas.errors import NotAllowed
from sagas.stores import audit, schema
from sagas.stores.archive import Archive, Archived
from sagas.stores.codecs import AS_STORED
from sagas.stores.engines import reading
from sagas.stores.protocols import OperatorStore
from sagas.stores.rows import entry_of, letter_of, saga_of
from sagas.text import is_clean

__all__ = ["Expired", "count_expired", "forget", "purge"]

_sagas, _letters = schema.sagas.c, schema.dead_letters.c
_root = schema.sagas.alias("root")

#: The tables that go with a saga, in the order in which their rows can be deleted.
_OF_A_SAGA = (schema.steps, schema.history, schema.dead_letters)

#: Sagas that `forget` deletes in one transaction.
_FORGOTTEN_AT_ONCE = 500

#: Ids are made of the clock of whoever starts a saga. By so much it may be behind the database's.
_CLOCKS = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    """Says which sagas have been kept for long enough. Unfinished ones never have, nor those with an open dead letter.

    Neither has a child saga as long as the saga at the top of its tree is unfinished: it may still have to compensate.

    `older_than`: since they ended. Longer than any action may hang: one that lands late needs its saga to be undone;
        and a key that was deleted starts a second saga.
    `statuses`: COMPLETED, COMPENSATED or both. `name`: of sagas of this name; None: of any.
    Raises `NotAllowed` for anything else.
    """

    older_than: timedelta
    statuses: frozenset[SagaStatus] = FINISHED
    name: str | None = None

    def __post_init__(self) -> None:
        if not self.older_than > timedelta():
            raise NotAllowed(f"older_than={self.older_than} must be more than nothing")
        if self.name is not None and not is_clean(self.name):
            raise NotAllowed(f"there is no saga of the name {self.name!r}: no database can hold it")
        if not self.statuses or self.statuses - FINISHED:
            unfinished = ", ".join(sorted(self.statuses - FINISHED)) or "none"
            raise NotAllowed(
                f"only COMPLETED and COMPENSATED sagas can be deleted, not {unfinished}: they are not done"
            )

    def __str__(self) -> str:
        of = "" if self.name is None else f" of {self.name!r}"
        return f"{' and '.join(sorted(self.statuses))} sagas{of} that ended more than {self.older_than} ago"


def count_expired(store: OperatorStore, which: Expired) -> int:
    """Return how many sagas `purge` would delete now."""
    before = store.now() - which.older_than
    query = select(func.count()).select_from(schema.sagas).where(*_expired(which, before), _sagas.id < _bound(before))
    with reading(store.engine) as connection:
        return int(connection.execute(query).scalar_one())


def purge(
    store: OperatorStore, which: Expired, *, reason: str, actor: str | None = None, archive: Archive | None = None,
    batch: int = 1000,
) -> Iterator[int]:  # fmt: skip
    """Delete sagas that have been kept for long enough, oldest first; yield how many after each transaction.

    With an `archive`, each `batch` of sagas is on the disk before it is deleted. A run that is cut off may leave up to
    one batch in both, and none in neither; the next run goes on from there. Between two batches it rests as long as the
    last one took, so that workers get at least half of the time. `sagas_audit` says what was deleted, also for a run
    that was cut off.
    Raises `NotAllowed` without a reason, `StoreUnavailable`, and `OSError` where the archive cannot be written.
    """
    if not reason.strip():
        raise NotAllowed("say why sagas are deleted; it is kept in sagas_audit")
    before, after, entry = store.now() - which.older_than, "", None
    while True:
        began = time.monotonic()
        page = _page(store, which, before, after, batch)
        if not page:
            return
        # What was found is looked at again under a lock: one that a worker holds, or has changed, is left to the next
        # run. The search itself locks nothing.
        with store.connections.writing() as connection:
            ids = _locked(connection, which, before, page)
            if ids and archive is not None:
                archive.write(_read(connection, ids))
            if ids:
                _delete(connection, ids)
                entry = entry or audit.note(connection, _entry(store, which, archive, reason=reason, actor=actor))
                audit.count_up(connection, entry, len(ids))
        after = page[-1]
        yield len(ids)
        if len(page) < batch:
            return
        time.sleep(time.monotonic() - began)


def forget(store: OperatorStore, correlation_id: str) -> int:
    """Delete the sagas of one correlation id, finished or not, and the messages that they emitted; return how many.

    For what a rehearsal made: nobody is to find it, carry it on or send it.
    """
    deleted, ids = 0, select(_sagas.id).where(_sagas.correlation_id == correlation_id).limit(_FORGOTTEN_AT_ONCE)
    while True:
        with store.connections.writing() as connection:
            page = connection.execute(ids).scalars().all()
            if page:
                _delete(connection, page)
            else:
                connection.execute(delete(schema.outbox).where(schema.outbox.c.correlation_id == correlation_id))
                return deleted
        deleted += len(page)


def _entry(
    store: OperatorStore, which: Expired, archive: Archive | None, *, reason: str, actor: str | None
) -> audit.MaintenanceEntry:
    detail = f"{which}, {'not archived' if archive is None else f'archived in {archive.path}'}"
    return audit.MaintenanceEntry(at=store.now(), actor=actor, what="purge", detail=detail, reason=reason, count=0)


def _expired(which: Expired, before: datetime) -> list[ColumnElement[bool]]:
    waits = exists().where(_letters.saga_id == _sagas.id, _letters.resolved_at.is_(None))
    wanted = exists().where(_root.c.id == _sagas.root_id, _root.c.status.not_in(sorted(FINISHED)))
    conditions = [_sagas.status.in_(sorted(which.statuses)), _sagas.updated_at < before, ~waits, ~wanted]
    if which.name is not None:
        conditions.append(_sagas.name == which.name)
    return conditions


def _bound(before: datetime) -> str:
    """Return an id that is above all of the sagas that began by then. With it the search does not read the younger."""
    milliseconds = int((before + _CLOCKS).timestamp() * 1000)
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}"


def _page(store: OperatorStore, which: Expired, before: datetime, after: str, limit: int) -> Sequence[str]:
    between = _sagas.id > after, _sagas.id < _bound(before)
    query = select(_sagas.id).where(*_expired(which, before), *between).order_by(_sagas.id).limit(limit)
    with reading(store.engine) as connection:
        return connection.execute(query).scalars().all()


def _locked(connection: Connection, which: Expired, before: datetime, page: Sequence[str]) -> list[str]:
    query = select(_sagas.id).where(_sagas.id.in_(page), *_expired(which, before)).order_by(_sagas.id)
    return list(connection.execute(query.with_for_update(skip_locked=True)).scalars())


def _delete(connection: Connection, ids: Sequence[str]) -> None:
    # Not left to the cascade: that works row by row, and not at all on a SQLite that was not told to.
    for table in _OF_A_SAGA:
        connection.execute(delete(table).where(table.c.saga_id.in_(ids)))
    connection.execute(delete(schema.sagas).where(_sagas.id.in_(ids)))


def _read(connection: Connection, ids: Sequence[str]) -> list[Archived]:
    of: dict[str, dict[str, list[Any]]] = {saga_id: {table.name: [] for table in _OF_A_SAGA} for saga_id in ids}
    for table in _OF_A_SAGA:
        order = table.c.seq if table is schema.steps else table.c.id
        for row in connection.execute(select(table).where(table.c.saga_id.in_(ids)).order_by(order)).mappings():
            of[row["saga_id"]][table.name].append(row)
    sagas = connection.execute(select(schema.sagas).where(_sagas.id.in_(ids)).order_by(_sagas.id)).mappings()
    return [
        Archived(
            record=saga_of(row, rows[schema.steps.name], AS_STORED),
            history=tuple(map(entry_of, rows[schema.history.name])),
            dead_letters=tuple(map(letter_of, rows[schema.dead_letters.name])),
        )
        for row in sagas
        for rows in (of[row["id"]],)
    ]
