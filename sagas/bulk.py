"""Many sagas in one call: stored in chunks and in one transaction, so that neither memory nor round trips grow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sagas.checkpoints import SagaRecord
from sagas.definition import Saga
from sagas.errors import KeyConflict, StartError
from sagas.observers import Start
from sagas.orchestrator import Orchestrator
from sagas.plan import Plan, plan
from sagas.starts import check_same, prepare

if TYPE_CHECKING:
    from sagas.stores.sessions import AnySession

__all__ = ["Stored", "start_many"]

#: What one statement stores at most: sagas, and characters of their inputs.
_ROWS, _CHARACTERS = 500, 4_000_000

_Insert = Callable[[Sequence[SagaRecord]], Sequence[SagaRecord]]


@dataclass(slots=True)
class Stored:
    """What has become of many starts."""

    #: In order: the id of the saga and whether it is new, or why it was refused.
    ends: list[tuple[str, bool] | StartError] = field(default_factory=list)
    new: list[str] = field(default_factory=list)  #: ids of the new ones that begin with a message
    observed: list[SagaRecord] = field(default_factory=list)  #: the new ones, where there is an observer to tell
    plan: Plan | None = None  #: of the first new one

    def plans(self) -> Iterator[Plan]:
        """Yield the plan of each new saga. None of them has begun, so only the id differs."""
        for saga_id in self.new:
            assert self.plan is not None
            yield replace(self.plan, saga_id=saga_id)


def start_many(
    orchestrator: Orchestrator,
    saga: Saga,
    inputs: Iterable[Any],
    *,
    correlation_id: str | None,
    session: AnySession | None,
) -> Stored:
    """Store a saga for each input that can be one, all of them or none."""
    stored, chunk = Stored(), _Chunk()
    try:
        with orchestrator.store.inserting(session) as insert:
            for given in _uninterrupted(inputs):
                chunk.add(_prepared(orchestrator, saga, given, correlation_id))
                if chunk.full:
                    _store(orchestrator, saga, chunk, insert, stored)
                    chunk = _Chunk()
            _store(orchestrator, saga, chunk, insert, stored)
    except _Interrupted as interrupted:
        raise interrupted.error from interrupted.error.__cause__
    return stored


class _Interrupted(Exception):
    """The caller's iterable raised something, which is no error of the database, whatever it looks like."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _uninterrupted(inputs: Iterable[Any]) -> Iterator[Any]:
    try:
        yield from inputs
    except Exception as error:
        raise _Interrupted(error) from error


@dataclass(slots=True)
class _Chunk:
    """What is stored with the next statement."""

    items: list[SagaRecord | StartError] = field(default_factory=list)
    first: dict[str, SagaRecord] = field(default_factory=dict)  #: of each key, the record that is to be stored
    characters: int = 0

    def add(self, item: SagaRecord | StartError) -> None:
        self.items.append(item)
        if isinstance(item, SagaRecord):
            self.first.setdefault(item.key, item)
            self.characters += len(item.input)

    @property
    def full(self) -> bool:
        return len(self.items) >= _ROWS or self.characters >= _CHARACTERS


def _prepared(
    orchestrator: Orchestrator, saga: Saga, given: Any, correlation_id: str | None
) -> SagaRecord | StartError:
    input_, key = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    try:
        return prepare(orchestrator, saga, input_, key=key, correlation_id=correlation_id)
    except StartError as error:
        return error


def _store(orchestrator: Orchestrator, saga: Saga, chunk: _Chunk, insert: _Insert, stored: Stored) -> None:
    records = [_observed(orchestrator, record) for record in chunk.first.values()]
    found = {record.key: record for record in (insert(records) if records else ())}
    for item in chunk.items:
        if isinstance(item, StartError):
            stored.ends.append(item)
            continue
        there = found[item.key]
        if there.id != item.id:
            try:
                check_same(saga, item, there)
            except KeyConflict as error:
                stored.ends.append(error)
            else:
                stored.ends.append((there.id, False))
            continue
        stored.ends.append((there.id, True))
        if there.dispatches:
            stored.new.append(there.id)
            stored.plan = stored.plan or plan(saga, there)
        if orchestrator.observers:
            stored.observed.append(there)


def _observed(orchestrator: Orchestrator, record: SagaRecord) -> SagaRecord:
    """Have observers surround a start. The statement that stores it is one for many, and comes after that."""
    if not orchestrator.observers:
        return record
    with orchestrator.observers.during(Start(record)) as start:
        return record if start.traceparent is None else replace(record, traceparent=start.traceparent)
