"""What `start()` does: check the input, store the new saga, and return what is to be dispatched."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sagas.checkpoints import SagaRecord, replace
from sagas.creation import new_record
from sagas.definition import Saga
from sagas.engine import Next
from sagas.errors import KeyConflict
from sagas.observers import Start
from sagas.orchestrator import Orchestrator
from sagas.plan import plan
from sagas.transitions import Verdict
from sagas.values import load, same

if TYPE_CHECKING:
    from sagas.stores.sessions import AnySession

__all__ = ["check_same", "prepare", "start"]


def start(
    orchestrator: Orchestrator,
    saga: Saga,
    given: Any,
    *,
    key: str | None,
    correlation_id: str | None,
    session: AnySession | None,
    at: datetime | None = None,
) -> Next:
    """Store a new saga. The plan is there to be dispatched once the caller's transaction, if any, has committed."""
    record = prepare(orchestrator, saga, given, key=key, correlation_id=correlation_id, at=at)
    with orchestrator.observers.during(Start(record)) as start:
        if start.traceparent is not None:
            record = replace(record, traceparent=start.traceparent)
        stored = orchestrator.store.insert(record, session)
    if stored.id == record.id:
        if orchestrator.observers:
            orchestrator.store.after_commit(session, lambda: orchestrator.observers.changed(None, record))
        return Next(Verdict.DISPATCH, "", record, plan(saga, record) if record.dispatches else None)
    check_same(saga, record, stored)
    return Next(Verdict.GO_AWAY, "it was started before", stored)


def prepare(
    orchestrator: Orchestrator,
    saga: Saga,
    given: Any,
    *,
    key: str | None,
    correlation_id: str | None,
    at: datetime | None = None,
) -> SagaRecord:
    """Return the record of a saga that is about to be stored. Raises `InvalidInput` and `PayloadTooLarge`."""
    return new_record(
        orchestrator.store, orchestrator.limits, saga, given, key=key, correlation_id=correlation_id, at=at
    )


def check_same(saga: Saga, record: SagaRecord, stored: SagaRecord) -> None:
    """Raise `KeyConflict` when the saga that has the key of `record` was started with another input."""
    # Compared as values: a default that was left out and one that was given are the same.
    if stored.input != record.input and not same(load(stored.input, saga.input), load(record.input, saga.input)):
        raise KeyConflict(
            f"saga {saga.name!r}: the key {record.key!r} belongs to {stored.id}, which was started with another input"
        )
