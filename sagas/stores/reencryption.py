"""Stored payloads written anew with the current key, while workers go on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, or_, select, update

from sagas.checkpoints import step_name
from sagas.errors import NotAllowed, PayloadUnreadable, StoreUnavailable
from sagas.stores import audit, schema
from sagas.stores.codecs import STEP_PAYLOADS, input_of
from sagas.stores.engines import reading
from sagas.stores.protocols import OperatorStore

__all__ = ["Progress", "reencrypt"]

_sagas, _steps = schema.sagas.c, schema.steps.c

#: How often, and seconds apart, it comes back to sagas that workers were quicker to change.
_ROUNDS, _PAUSE = 50, 0.2

_INPUT = (
    update(schema.sagas)
    .where(_sagas.id == bindparam("_id"), _sagas.revision == bindparam("_revision"))
    .values(input=bindparam("_input"), revision=bindparam("_revision") + 1)
)
_OF_STEP = (
    update(schema.steps)
    .where(_steps.saga_id == bindparam("_id"), _steps.seq == bindparam("_seq"))
    .values({column: bindparam(f"_{column}") for column in STEP_PAYLOADS})
)


@dataclass(frozen=True, slots=True)
class _Stale:
    """A saga with payloads that are not as they would be stored today, and those as they would."""

    saga_id: str
    revision: int
    input: str
    steps: Mapping[int, Mapping[str, str | None]]  #: by number: the payloads of a step by the names of their columns


@dataclass(frozen=True, slots=True)
class Progress:
    """How far `reencrypt` has come."""

    seen: int  #: sagas
    written: int  #: sagas
    unreadable: Sequence[PayloadUnreadable] = ()  #: found since the last one; these stay as they are


def reencrypt(store: OperatorStore, *, reason: str, actor: str | None = None, batch: int = 200) -> Iterator[Progress]:
    """Write every payload anew that is not encrypted with the current key; yield how far it has come.

    What cannot be read is left as it is, and named in the progress; the rest goes on.

    Safe beside workers: a saga is written by compare-and-set on its revision, and one that a worker holds is come back
    to. Archives stay as they are: keep the keys for those.
    Raises `NotAllowed` without a reason, `StoreUnavailable` when there are sagas that workers have held all the time:
    run it again.
    """
    if not reason.strip():
        raise NotAllowed("say why; it is kept in sagas_audit")
    entry, after, seen, written = None, "", 0, 0
    while True:
        began = time.monotonic()
        ids = _page(store, after, batch)
        if not ids:
            return
        waiting: Sequence[str] = ids
        unreadable: dict[str, PayloadUnreadable] = {}  # by what it says, which names the payload
        for _ in range(_ROUNDS):
            stale = _stale(store, waiting, unreadable)
            if not stale:
                break
            with store.connections.writing() as connection:
                done = _write(connection, stale)
                if done:
                    entry = entry or audit.note(connection, _entry(store, reason=reason, actor=actor))
                    audit.count_up(connection, entry, len(done))
            written += len(done)
            waiting = [each.saga_id for each in stale if each.saga_id not in done]
            if not waiting:
                break
            time.sleep(_PAUSE)
        else:
            raise StoreUnavailable(f"saga {waiting[0]} is held by a worker all the time; run it again later")
        after, seen = ids[-1], seen + len(ids)
        yield Progress(seen, written, tuple(unreadable.values()))
        time.sleep(time.monotonic() - began)  # workers get at least half of the time


def _entry(store: OperatorStore, *, reason: str, actor: str | None) -> audit.MaintenanceEntry:
    return audit.MaintenanceEntry(
        at=store.now(), actor=actor, what="reencrypt", detail=repr(store.codec), reason=reason, count=0
    )


def _page(store: OperatorStore, after: str, limit: int) -> Sequence[str]:
    with reading(store.engine) as connection:
        query = select(_sagas.id).where(_sagas.id > after).order_by(_sagas.id).limit(limit)
        return connection.execute(query).scalars().all()


def _stale(store: OperatorStore, ids: Sequence[str], unreadable: dict[str, PayloadUnreadable]) -> list[_Stale]:
    """Return those of the sagas that are to be written, each as it is to be. Collects what cannot be read."""

    def again(stored: str, about: str) -> str | None:
        if store.codec.is_current(stored):
            return None
        try:
            return store.codec.encode(store.codec.decode(stored, about), about)
        except PayloadUnreadable as error:
            unreadable[str(error)] = error
            return None

    # The sagas before their steps: the revision is then never younger than what is read.
    with reading(store.engine) as connection:
        columns = select(_sagas.id, _sagas.revision, _sagas.input).where(_sagas.id.in_(ids))
        rows = connection.execute(columns).mappings().all()
        payloads = [_steps[column] for column in STEP_PAYLOADS]
        query = select(_steps.saga_id, _steps.seq, _steps.node, _steps.item, *payloads)
        with_payload = query.where(_steps.saga_id.in_(ids), or_(*(column.is_not(None) for column in payloads)))
        steps: dict[str, list[RowMapping]] = {}
        for step in connection.execute(with_payload).mappings():
            steps.setdefault(step["saga_id"], []).append(step)
    found = []
    for row in rows:
        input_ = again(row["input"], input_of(row["id"]))
        written = {}
        for step in steps.get(row["id"], ()):
            name = step_name(step["node"], step["item"])
            anew = {
                column: text
                for column, about in STEP_PAYLOADS.items()
                if step[column] is not None and (text := again(step[column], about(row["id"], name))) is not None
            }
            if anew:
                written[step["seq"]] = {column: anew.get(column, step[column]) for column in STEP_PAYLOADS}
        if written or input_ is not None:
            found.append(_Stale(row["id"], row["revision"], row["input"] if input_ is None else input_, written))
    return found


def _write(connection: Connection, stale: Sequence[_Stale]) -> set[str]:
    """Write those that nobody holds or has changed, and return their ids."""
    free = select(_sagas.id).where(_sagas.id.in_([each.saga_id for each in stale]))
    ids = set(connection.execute(free.with_for_update(skip_locked=True)).scalars())
    done = set()
    steps: list[dict[str, Any]] = []
    for each in stale:
        values = {"_id": each.saga_id, "_revision": each.revision, "_input": each.input}
        if each.saga_id in ids and connection.execute(_INPUT, values).rowcount == 1:
            done.add(each.saga_id)
            steps += [
                {"_id": each.saga_id, "_seq": seq, **{f"_{column}": text for column, text in payloads.items()}}
                for seq, payloads in each.steps.items()
            ]
    if steps:
        connection.execute(_OF_STEP, steps)
    return done
