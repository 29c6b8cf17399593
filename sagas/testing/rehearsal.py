"""Rehearsals: run a saga once for every way in which each of its steps can fail, and check what was left behind."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sagas.binding import BoundStep
from sagas.checkpoints import FINISHED, SagaRecord, SagaStatus, StepStatus
from sagas.children import Child
from sagas.definition import Saga
from sagas.each import Each
from sagas.errors import NotAllowed
from sagas.events import Events
from sagas.stores import CheckpointStore, Filter, OperatorStore
from sagas.stores.retention import forget
from sagas.testing.inline import Inline
from sagas.testing.scenarios import MOST_ITEMS, Scenario, ends_of_condition, last_action, scenarios
from sagas.testing.stage import Judgement, Row, Stage, answers_of

__all__ = ["Judgement", "Rehearsal", "Row", "rehearse"]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The result of all runs."""

    saga: Saga
    rows: tuple[Row, ...]
    not_rehearsed: tuple[str, ...] = ()  #: what no run has tried, as sentences

    @property
    def ok(self) -> bool:
        """Whether every run ended as it should and left nothing behind."""
        return all(row.verdict is Judgement.OK for row in self.rows)

    def table(self) -> str:
        """Return the runs as text: a line for each, then the problems, and what was not rehearsed."""
        cells = [("STEP", "FAILURE", "ENDS", "VERDICT")]
        cells += [(row.step, row.failure, str(row.status), str(row.verdict)) for row in self.rows]
        widths = [max(len(line[i]) for line in cells) for i in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        wrong = [row for row in self.rows if row.verdict is not Judgement.OK]
        found = [f"{row.verdict}: {row.step}, {row.failure}: {row.detail}" for row in wrong]
        found += [f"not rehearsed: {what}" for what in self.not_rehearsed]
        what = f"saga {self.saga.name!r} version {self.saga.version}: {len(self.rows)} runs"
        end = f"{what}, {len(wrong)} not ok" if wrong else f"{what}, all ok"
        return "\n".join(line.rstrip() for line in [*lines, "", *found, end])


def rehearse(
    saga: Saga,
    input: Any = None,  # noqa: A002
    *,
    state: Callable[[], object] | None = None,
    store: CheckpointStore | None = None,
    lease: float | timedelta = 30.0,
    max_payload: int = 1_048_576,
    events: Events | None = None,
    answers: Mapping[str, Any] | None = None,
    live: bool = False,
) -> Rehearsal:
    """Run a saga once for every way in which each of its steps can fail. This calls the real actions, many times.

    `input`: the input, or a callable that returns a fresh input for each run. Without faults, the saga must complete
    with it. `state`: returns the state that the saga changes, as a comparable value; without it, only the outcome of
    each run is checked. `store`, `lease`, `max_payload`, `events`: as in `Inline`.
    `answers`: the payloads of signals and the results of deferred steps, by the names of their nodes, also of those in
    child sagas. With them, the saga must complete. Left out, a node of type `bool` is answered True, and one without a
    type None.
    `live`: allow a database with unfinished sagas.

    A rehearsal deletes its sagas from the database at the end, also if it is interrupted; an interrupted run is first
    compensated or, after its pivot, completed. No relay sends what the steps emitted. Other side effects of the
    actions remain. Raises `NotAllowed` for a database with unfinished sagas, unless `live` is true, and `InvalidInput`
    where an answer is missing.

    A run is ok if it ended as it should: COMPLETED if a retry repairs the failure; COMPENSATED with the state as it was
    before; STUCK if only a person can decide (the pivot is in doubt, or a later step fails permanently).

    >>> from sagas import Pivot, Saga, Step
    >>> stock = {"tea": 5}
    >>> def take() -> None: stock["tea"] -= 1
    >>> def put_back() -> None: stock["tea"] += 1
    >>> sell = Saga("sell", Step("take", take, compensation=put_back), Pivot("pay", lambda: None))
    >>> rehearsal = rehearse(sell, state=lambda: stock)
    >>> rehearsal.ok
    False
    >>> next(row for row in rehearsal.rows if row.verdict == "NOT IDEMPOTENT").detail
    "its action, called again with the same key, changed the state from {'tea': 4} to {'tea': 3}"
    """
    correlation_id = f"rehearsal-{uuid.uuid4()}"
    database = store if isinstance(store, OperatorStore) else None  # which others may use, too
    if database is not None and not live and (unfinished := unfinished_in(database)):
        raise NotAllowed(
            f"{store!r} has {unfinished} unfinished sagas, so it does not look like a test database. A rehearsal calls "
            f"the real actions and compensations of {saga.name!r}: use a separate database, or pass live=True"
        )
    answered = answers_of(saga, answers or {})
    inline = Inline(store, lease=lease, max_payload=max_payload, events=events)
    if events is not None and database is not None:
        inline.orchestrator.events = _NeverSent(events)
    stage = Stage(inline, saga, input, state, answered, correlation_id)
    try:
        return _rehearsed(stage)
    finally:
        try:
            stage.settle()
        finally:
            if database is not None:
                forget(database, correlation_id)


def _rehearsed(stage: Stage) -> Rehearsal:
    saga = stage.saga
    first = stage.run(Scenario(step="-", failure="nothing fails", ends=frozenset({SagaStatus.COMPLETED})))
    if first.verdict is not Judgement.OK:
        return Rehearsal(saga, (first,), ("anything else, since the saga does not complete",))
    record = stage.record
    items = {step.name: stage.items_of(step.name) for step in saga.steps.values() if isinstance(step.step, Each)}
    rows, notes = [first], list(_notes(stage))
    for step in saga.steps.values():
        decisions: dict[str, bool] = {}
        if step.when is not None:
            natural = record.step(step.name).status is not StepStatus.SKIPPED
            row = stage.run(_other_answer(step, natural))
            if not natural and row.status is not SagaStatus.COMPLETED:
                notes.append(f"{step.name!r}, which is skipped with this input: use one for which it runs")
                continue
            rows.append(row)
            if not natural:
                decisions = {step.name: True}
                items[step.name] = stage.items_of(step.name)
        notes += _notes_of(step, items.get(step.name, 0))
        each = scenarios(saga, step, items.get(step.name, 0), stage.inline.orchestrator.timing.lease)
        rows += [stage.run(replace(scenario, decisions=decisions)) for scenario in each]
    return Rehearsal(saga, tuple(rows), tuple(notes))


def _other_answer(step: BoundStep, natural: bool) -> Scenario:
    said = "no" if natural else "yes"
    return Scenario(
        step=step.name,
        failure=f"condition says {said}",
        ends=ends_of_condition(step),
        decisions={step.name: not natural},
        varies=True,
    )


def _notes(stage: Stage) -> Iterator[str]:
    """Say what is not rehearsed of the saga as a whole."""
    if stage.state is None:
        yield "what the runs leave behind, since there is no state to compare"
    for nodes in stage.saga.stages:
        if len(nodes) > 1:
            yield f"{' and '.join(step.name for step in nodes)} at the same time: here they run one after the other"


def _notes_of(step: BoundStep, items: int) -> Iterator[str]:
    """Say what is not rehearsed of a node."""
    node = step.step
    if isinstance(node, Child | Each) and node.saga is not None:
        yield f"each step of the saga {node.saga.name!r} at {step.name!r}: rehearse that saga by itself"
        if last_action(node.saga) is None:
            yield f"a failure in {step.name!r}, whose saga has no action that always runs"
    if isinstance(node, Each) and not items:
        yield f"the items of {step.name!r}: with this input there are none"
    if items > MOST_ITEMS:
        yield f"failures of the {items - MOST_ITEMS} items in the middle of {step.name!r}"


def unfinished_in(store: OperatorStore) -> int:
    """Return how many sagas in a database are unfinished: an application may be using it."""
    return store.queries.count(Filter(statuses=frozenset(SagaStatus) - FINISHED))


class _NeverSent:
    """Creates outbox rows that are marked as sent, so that no relay sends the messages of a rehearsal."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def prepare(self, message: Any, **options: Any) -> Mapping[str, Any]:
        return _sent(self._events.prepare(message, **options))

    def lifecycle(self, before: SagaRecord, after: SagaRecord) -> Sequence[Mapping[str, Any]]:
        return [_sent(row) for row in self._events.lifecycle(before, after)]


def _sent(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**row, "sent_at": row["created_at"]}
