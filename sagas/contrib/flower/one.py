"""Everything that the page of one saga shows, asked in one go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sagas.canvas import FAIL, JOIN, task_id
from sagas.checkpoints import DeadLetter, Direction, HistoryEntry, SagaSummary, StepRecord
from sagas.errors import DefinitionMissing
from sagas.events.trace import Entry, trace, walk
from sagas.operations import Operations, pretty
from sagas.operator_actions import AllowedAction
from sagas.outline import steps_of
from sagas.stores import Payloads

__all__ = ["OneSaga", "Told", "look", "tasks_of"]

#: Entries of the history, and lines of the story, that a page shows: the last and the first ones.
_ENTRIES = 500

#: Dispatches, the last ones, whose Celery tasks are looked for.
_DISPATCHES = 20


@dataclass(frozen=True, slots=True)
class Told:
    """A line of the story of its correlation id."""

    depth: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class OneSaga:
    """A saga, as its page shows it."""

    record: SagaSummary
    now: datetime
    missing: str  #: why the running code has no definition for it, where it has none
    allowed_actions: tuple[AllowedAction, ...]
    history: Sequence[HistoryEntry]
    older: int  #: entries of the history that were left out
    letters: Sequence[DeadLetter]
    story: Sequence[Told]
    later: int  #: lines of the story that were left out
    payloads: Payloads
    input: str
    results: dict[str, str]

    @property
    def steps(self) -> list[StepRecord]:
        """The steps in the order of the definition, those that have not begun too."""
        return steps_of(self.record)


def look(operations: Operations, saga_id: str) -> OneSaga:
    """Ask the database. Raises `SagaNotFound`."""
    record, missing, story = operations.queries.summary(saga_id), "", list[Told]()
    history = operations.queries.history(saga_id)
    payloads = operations.queries.payloads(saga_id)
    try:
        operations.sagas.orchestrator.definition(record)
    except DefinitionMissing as error:
        missing = str(error)
    if operations.sagas.events is not None:
        story = [Told(*each) for each in walk(trace(operations.sagas.events.engine, record.correlation_id))]
    return OneSaga(
        record,
        operations.store.now(),
        missing,
        operations.allowed_actions(record),
        history[-_ENTRIES:],
        len(history[:-_ENTRIES]),
        operations.queries.dead_letters(saga_id),
        story[:_ENTRIES],
        len(story[_ENTRIES:]),
        payloads,
        pretty(operations.shown(payloads.input)),
        {step: pretty(operations.shown(result)) for step, result in payloads.results.items()},
    )


def tasks_of(record: SagaSummary, step: str) -> Iterator[tuple[str, str]]:
    """Yield the ids of the Celery tasks that there may have been for a step, oldest first, each with what it is."""
    for dispatch in range(max(1, record.dispatches - _DISPATCHES + 1), record.dispatches + 1):
        for direction, what in ((Direction.FORWARD, "action"), (Direction.BACKWARD, "undo")):
            yield task_id(record.id, step, direction, dispatch), f"{what}, dispatch {dispatch}"
        for helper in (JOIN, FAIL):
            yield task_id(record.id, step, record.direction, dispatch, helper), f"{helper}, dispatch {dispatch}"
