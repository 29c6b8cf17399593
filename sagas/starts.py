"""What `start()` does: check the input, store the new saga, and return what is to be dispatched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import uuid_utils

from sagas.causes import CURRENT
from sagas.checkpoints import SagaRecord
from sagas.definition import Saga
from sagas.errors import InvalidInput, KeyConflict, PayloadTooLarge
from sagas.observers import Start
from sagas.orchestrator import LONGEST_KEY, Next, Orchestrator
from sagas.plan import plan
from sagas.text import clean, is_clean
from sagas.transitions import Verdict
from sagas.values import convert, dump, load, same

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
    """Return the record of a saga that is about to be stored. Raises `InvalidInput` and `PayloadTooLarge`.

    Without `dispatches` it needs no message: recovery begins it.
    """
    text = _encode_input(orchestrator, saga, given)
    saga_id = str(uuid_utils.uuid7())
    key = saga_id if key is None else key
    cause = CURRENT.get()
    if correlation_id is None:
        # That of others need not be one that could be asked for: it may have blanks around it.
        inherited = clean(cause.correlation_id).strip()[:LONGEST_KEY].strip() if cause else ""
        correlation_id = inherited or saga_id
    for what, value in (("key", key), ("correlation_id", correlation_id)):
        if not isinstance(value, str):
            raise InvalidInput(f"saga {saga.name!r}: {what} must be a str, not {type(value).__name__}: {what}=str(...)")
        if not 0 < len(value) <= LONGEST_KEY or value != value.strip() or not is_clean(value):
            raise InvalidInput(
                f"saga {saga.name!r}: {what} {value!r} must be a string of 1 to {LONGEST_KEY} characters "
                "without white space around it, NUL or lone surrogates"
            )
    now = orchestrator.store.now()
    if at is not None and at.tzinfo is None:
        raise InvalidInput(f"saga {saga.name!r}: at={at!r} has no time zone")
    ready_at = now if at is None else max(at.astimezone(UTC), now)
    # Recovery begins what is to start later, and what begins to wait without a message.
    later = ready_at > now or any(node.step.is_open_at_once for node in saga.stages[0])
    return SagaRecord(
        id=saga_id,
        name=saga.name,
        version=saga.version,
        key=key,
        outline=saga.outline,
        correlation_id=correlation_id,
        caused_by=cause,
        input=text,
        created_at=now,
        updated_at=now,
        stage_ready_at=ready_at,
        dispatches=0 if later else 1,
        deadline=None if saga.timeout is None else ready_at + timedelta(seconds=saga.timeout),
        next_check_at=ready_at if later else now + timedelta(seconds=orchestrator.timing.redispatch_after),
    )


def check_same(saga: Saga, record: SagaRecord, stored: SagaRecord) -> None:
    """Raise `KeyConflict` when the saga that has the key of `record` was started with another input."""
    # Compared as values: a default that was left out and one that was given are the same.
    if stored.input != record.input and not same(load(stored.input, saga.input), load(record.input, saga.input)):
        raise KeyConflict(
            f"saga {saga.name!r}: the key {record.key!r} belongs to {stored.id}, which was started with another input"
        )


def _encode_input(orchestrator: Orchestrator, saga: Saga, given: Any) -> str:
    where = f"saga {saga.name!r}, input"
    if saga.input is None:
        if given is not None:
            raise InvalidInput(f"{where}: it takes none, but was given a {type(given).__name__}")
        return "null"
    try:
        value = convert(given, saga.input) if isinstance(given, Mapping) else given
        text = dump(value, saga.input)
    except TypeError as error:
        raise InvalidInput(f"{where}: {error}") from error
    if (size := len(text.encode())) > orchestrator.max_payload:
        raise PayloadTooLarge(
            f"{where}: {size:,} bytes are more than max_payload={orchestrator.max_payload:,}; "
            "keep large things elsewhere and pass a reference"
        )
    return text
