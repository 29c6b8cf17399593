"""The record of a saga that is about to be stored: its input, its key, and when it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import uuid_utils

from sagas.causes import CURRENT
from sagas.checkpoints import SagaRecord
from sagas.definition import Saga
from sagas.errors import InvalidInput, PayloadTooLarge
from sagas.text import clean, is_clean
from sagas.values import convert, dump

if TYPE_CHECKING:
    from sagas.stores import CheckpointStore

__all__ = ["LONGEST_KEY", "Limits", "new_record"]

#: Characters of a business key, a correlation id or a name of an actor.
LONGEST_KEY = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an engine was set to that a new record depends on."""

    max_payload: int
    redispatch_after: float


def new_record(
    store: CheckpointStore,
    limits: Limits,
    saga: Saga,
    given: Any,
    *,
    key: str | None,
    correlation_id: str | None,
    at: datetime | None = None,
    parent: SagaRecord | None = None,
    parent_step: str | None = None,
) -> SagaRecord:
    """Return the record of a saga that is about to be stored. Raises `InvalidInput` and `PayloadTooLarge`.

    Without `dispatches` it needs no message: recovery begins it. `parent`, `parent_step`: of a child saga.
    """
    text = _encode_input(limits, saga, given)
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
    now = store.now()
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
        parent_id=None if parent is None else parent.id,
        parent_step=parent_step,
        root_id=None if parent is None else parent.family,
        correlation_id=correlation_id,
        caused_by=cause,
        input=text,
        created_at=now,
        updated_at=now,
        stage_ready_at=ready_at,
        dispatches=0 if later else 1,
        deadline=None if saga.timeout is None else ready_at + timedelta(seconds=saga.timeout),
        next_check_at=ready_at if later else now + timedelta(seconds=limits.redispatch_after),
    )


def _encode_input(limits: Limits, saga: Saga, given: Any) -> str:
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
    if (size := len(text.encode())) > limits.max_payload:
        raise PayloadTooLarge(
            f"{where}: {size:,} bytes are more than max_payload={limits.max_payload:,}; "
            "keep large things elsewhere and pass a reference"
        )
    return text
