"""Everything that the page of one saga shows, loaded at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sagas.approvals import Approvals, PendingApproval
from sagas.checkpoints import DeadLetter, Direction, HistoryEntry, SagaSummary, StepRecord
from sagas.errors import DefinitionMissing
from sagas.events.trace import Entry, trace, walk
from sagas.operations import Operations, Relatives, pretty
from sagas.operator_actions import AllowedAction
from sagas.outline import steps_of
from sagas.stores import Payloads
from sagas.task_names import FAIL, JOIN, task_id

__all__ = ["OneSaga", "TraceLine", "look", "tasks_of"]

#: How many of the last history entries, and of the first trace lines, a page shows.
_ENTRIES = 500

#: For how many of the last dispatches Celery tasks are looked up.
_DISPATCHES = 20


@dataclass(frozen=True, slots=True)
class TraceLine:
    """A line in the trace of the saga's correlation id."""

    depth: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class OneSaga:
    """A saga, as shown on its page."""

    record: SagaSummary
    now: datetime
    missing: str  #: why the running code has no definition for it, or empty
    allowed_actions: tuple[AllowedAction, ...]
    approvals: tuple[PendingApproval, ...]
    history: Sequence[HistoryEntry]
    older: int  #: the number of omitted history entries
    letters: Sequence[DeadLetter]
    trace: Sequence[TraceLine]
    later: int  #: the number of omitted trace lines
    relatives: Relatives
    payloads: Payloads
    input: str
    results: dict[str, str]

    @property
    def steps(self) -> list[StepRecord]:
        """All steps in the order of the definition, including those that have not started."""
        return steps_of(self.record)


def look(operations: Operations, saga_id: str) -> OneSaga:
    """Query the database. Raises `SagaNotFound`."""
    record, missing, lines = operations.queries.summary(saga_id), "", list[TraceLine]()
    history = operations.queries.history(saga_id)
    payloads = operations.queries.payloads(saga_id)
    try:
        operations.sagas.orchestrator.definition(record)
    except DefinitionMissing as error:
        missing = str(error)
    if operations.sagas.events is not None:
        lines = [TraceLine(*each) for each in walk(trace(operations.sagas.events.engine, record.correlation_id))]
    return OneSaga(
        operations.sagas.orchestrator.sagas.foreseen(record),
        operations.store.now(),
        missing,
        operations.allowed_actions(record),
        Approvals(operations).of(record),
        history[-_ENTRIES:],
        len(history[:-_ENTRIES]),
        operations.queries.dead_letters(saga_id),
        lines[:_ENTRIES],
        len(lines[_ENTRIES:]),
        operations.relatives(record),
        payloads,
        pretty(operations.shown(payloads.input)),
        {step: pretty(operations.shown(result)) for step, result in payloads.results.items()},
    )


def tasks_of(record: SagaSummary, step: str) -> Iterator[tuple[str, str]]:
    """Yield the possible ids of the Celery tasks for a step, oldest first, each with a description."""
    for dispatch in range(max(1, record.dispatches - _DISPATCHES + 1), record.dispatches + 1):
        for direction, what in ((Direction.FORWARD, "action"), (Direction.BACKWARD, "undo")):
            yield task_id(record.id, step, direction, dispatch), f"{what}, dispatch {dispatch}"
        for helper in (JOIN, FAIL):
            yield task_id(record.id, step, record.direction, dispatch, helper), f"{helper}, dispatch {dispatch}"
