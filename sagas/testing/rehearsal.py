"""Rehearsals: run a saga once for every way in which each of its steps can fail, and check what was left behind."""

from __future__ import annotations

import copy
import enum
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from sagas.binding import BoundStep
from sagas.checkpoints import AT_REST, FINISHED, SagaRecord, SagaStatus
from sagas.children import Child
from sagas.definition import Saga
from sagas.errors import NotAllowed, SagaNotFound, TerminalError
from sagas.events import Events
from sagas.handle import SagaHandle
from sagas.retries import Retry
from sagas.stores import CheckpointStore, Filter, OperatorStore
from sagas.stores.retention import forget
from sagas.testing.inline import Inline

__all__ = ["Judgement", "Rehearsal", "Row", "rehearse"]

#: How often a worker dies at one step: twice, to distinguish an effect that happened twice from one that happened once.
_CRASHES = 2

_LONGEST_DETAIL = 300


class Judgement(enum.StrEnum):
    """What a rehearsal found in one run."""

    OK = "ok"
    WRONG_END = "WRONG END"  #: it did not end as a saga that fails there should
    NOT_COVERED = "NOT COVERED"  #: it was compensated, but something is left
    NOT_IDEMPOTENT = "NOT IDEMPOTENT"  #: a second call with the same idempotency key had a second effect


@dataclass(frozen=True, slots=True)
class Row:
    """One run: what failed in which step, how the saga ended, and the verdict."""

    step: str
    failure: str
    status: SagaStatus
    verdict: Judgement
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The result of all runs."""

    saga: Saga
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether every run ended as it should and left nothing behind."""
        return all(row.verdict is Judgement.OK for row in self.rows)

    def table(self) -> str:
        """Return the runs as text: a line for each, and then the problems."""
        cells = [("STEP", "FAILURE", "ENDS", "VERDICT")]
        cells += [(row.step, row.failure, str(row.status), str(row.verdict)) for row in self.rows]
        widths = [max(len(line[i]) for line in cells) for i in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        wrong = [row for row in self.rows if row.verdict is not Judgement.OK]
        found = [f"{row.verdict}: {row.step}, {row.failure}: {row.detail}" for row in wrong]
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
    live: bool = False,
) -> Rehearsal:
    """Run a saga once for every way in which each of its steps can fail. This calls the real actions, many times.

    `input`: the input, or a callable that returns a fresh input for each run. Without faults, the saga must complete
    with it. `state`: returns the state that the saga changes, as a comparable value; without it, only the outcome of
    each run is checked. `store`, `lease`, `max_payload`, `events`: as in `Inline`.
    `live`: allow a database with unfinished sagas.

    A rehearsal deletes its sagas from the database at the end, also if it is interrupted; an interrupted run is first
    compensated or, after its pivot, completed. No relay sends what the steps emitted. Other side effects of the
    actions remain. Raises `NotAllowed` for a database with unfinished sagas, unless `live` is true.

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
    inline = Inline(store, lease=lease, max_payload=max_payload, events=events)
    if events is not None and database is not None:
        inline.orchestrator.events = _NeverSent(events)
    stage = _Stage(inline, saga, input, state, correlation_id)
    try:
        rows = [stage.run("-", "nothing fails", lambda: None, {SagaStatus.COMPLETED})]
        if rows[0].verdict is Judgement.OK:
            for step in saga.steps.values():
                rows += stage.rehearse_action(step)
            for step in saga.steps.values():
                if isinstance(step.step, Child):
                    rows += stage.rehearse_child(step, step.step)
                elif step.compensation is not None:
                    rows += stage.rehearse_compensation(step)
    finally:
        try:
            stage.settle()
        finally:
            if database is not None:
                forget(database, correlation_id)
    return Rehearsal(saga, tuple(rows))


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


class _Stage:
    """The environment for the runs of one rehearsal."""

    def __init__(
        self, inline: Inline, saga: Saga, given: Any, state: Callable[[], object] | None, correlation_id: str
    ) -> None:
        self.inline = inline
        self.correlation_id = correlation_id
        self.saga = saga
        self.given = given
        self.state = state
        self.findings: list[str] = []
        self.runs = 0
        inline.around = self._watch

    def rehearse_action(self, step: BoundStep) -> Iterator[Row]:
        inline, name = self.inline, step.name
        undone = {SagaStatus.COMPENSATED}
        given_up = {SagaStatus.STUCK} if step.past_pivot or step.step.is_pivot else undone
        refused = {SagaStatus.STUCK} if step.past_pivot else undone
        no = TerminalError("refused, in rehearsal")
        yield self.run(name, "refused", lambda: inline.fail_at(name, no, times=None), refused)
        yield self.run(name, "broken", lambda: inline.fail_at(name, times=None), given_up)
        for when, crash in (("before", inline.crash_before), ("after", inline.crash_after)):
            ends = {SagaStatus.COMPLETED} if self._survives(step, step.retry) else given_up
            if self.saga.timeout is not None and not (step.past_pivot or step.step.is_pivot):
                ends = ends | undone  # the crashes may have used up the saga's timeout
            yield self.run(name, f"crash {when} its effect", partial(crash, name, times=_CRASHES), ends)
        yield self.run(
            name, "broken after its effect", lambda: inline.fail_at(name, times=None, after_effect=True), given_up
        )
        if step.compensation is not None:
            yield self.run(name, "effect after compensation", lambda: self._overtake(name), undone)

    def rehearse_compensation(self, step: BoundStep) -> Iterator[Row]:
        name = step.name
        undone = {SagaStatus.COMPENSATED}

        def crash() -> None:
            self._compensate_after(step)
            self.inline.crash_after(name, times=_CRASHES, undo=True)

        yield self.run(name, "compensated twice", lambda: self._compensate_after(step), undone, undo_again=name)
        ends = undone if self._survives(step, step.compensation_retry) else {SagaStatus.STUCK}
        yield self.run(name, "crash after compensation", crash, ends)

    def rehearse_child(self, step: BoundStep, child: Child) -> Iterator[Row]:
        """Fail a child saga as a whole. Its own steps are rehearsed with it, not here."""
        name, undone = step.name, {SagaStatus.COMPENSATED}
        failed = {SagaStatus.STUCK} if step.past_pivot else undone
        last = _last_action(child.saga)
        no = TerminalError("refused, so that the child saga fails")
        yield self.run(name, "child fails", lambda: self.inline.fail_at(last, no, times=None), failed)
        if step.compensation is not None and step.stage + 1 < len(self.saga.stages):
            yield self.run(name, "compensated when completed", lambda: self._compensate_after(step), undone)

    def run(
        self, step: str, failure: str, arm: Callable[[], None], ends: set[SagaStatus], undo_again: str | None = None
    ) -> Row:
        """Start the saga with a fault, and judge how it ended."""
        self.inline.heal()
        self.inline.lost.clear()
        self.findings = []
        before = self._snapshot()
        arm()
        given = self.given() if callable(self.given) else self.given
        self.runs += 1
        handle = self.inline.start(self.saga, given, key=self._key, correlation_id=self.correlation_id)
        if undo_again is not None and handle.status is SagaStatus.COMPENSATED:
            self._undo_again(handle, undo_again)
        after = self._snapshot()
        status, error = handle.status, handle.error
        if status not in ends:
            wanted = " or ".join(sorted(ends))
            return Row(step, failure, status, Judgement.WRONG_END, f"it should end {wanted}: {error or 'no error'}")
        if self.findings:
            return Row(step, failure, status, Judgement.NOT_IDEMPOTENT, self.findings[0])
        if status is SagaStatus.COMPENSATED and after != before:
            left = f"compensated, but the state was {_short(before)} and is {_short(after)}"
            return Row(step, failure, status, Judgement.NOT_COVERED, left)
        return Row(step, failure, status, Judgement.OK, error or "")

    def settle(self) -> None:
        """Finish an interrupted run, so that it leaves nothing half done."""
        try:
            record = self.inline.store.find(self.saga.name, self._key)
        except SagaNotFound:
            return
        if record.status not in AT_REST:
            self.inline.heal()
            with suppress(NotAllowed):  # after its pivot, or already compensating: it only has to continue
                self.inline.cancel(record.id, "the rehearsal was interrupted")
            self.inline.finish(record.id)

    @property
    def _key(self) -> str:
        return f"{self.correlation_id}-{self.runs}"

    def _undo_again(self, handle: SagaHandle, step: str) -> None:
        once = self._snapshot()
        self.inline.undo_again(handle, step)
        self._expect_no_change("compensation", once)

    @contextmanager
    def _watch(self, step: str) -> Iterator[None]:
        """Compare the state around each delivery: an effect that happened before must not happen again."""
        lost, before = self.inline.lost.copy(), self._snapshot()
        yield
        for undo, what in ((False, "action"), (True, "compensation")):
            # Only if a result was lost: writes through step.session were rolled back with it, so the attempt that
            # succeeds may well be the first to change anything.
            if 0 < lost[step, undo] < self.inline.lost[step, undo]:
                self._expect_no_change(what, before)

    def _expect_no_change(self, what: str, before: object) -> None:
        if (after := self._snapshot()) != before:
            changed = f"changed the state from {_short(before)} to {_short(after)}"
            self.findings.append(f"its {what}, called again with the same key, {changed}")

    def _snapshot(self) -> object:
        # A copy: the caller may return the very object that the actions change.
        return None if self.state is None else copy.deepcopy(self.state())

    def _overtake(self, name: str) -> None:
        self.inline.overtake(name)
        self.inline.fail_at(name, TerminalError("refused, while an earlier attempt hangs"), times=None)

    def _compensate_after(self, step: BoundStep) -> None:
        """Make the saga compensate when this step is done or, if no step follows, leave this step in doubt."""
        if step.stage + 1 < len(self.saga.stages):
            [later, *_] = self.saga.stages[step.stage + 1]
            self.inline.fail_at(later.name, TerminalError("refused, so that the saga compensates"), times=None)
        else:
            self.inline.fail_at(step.name, times=None, after_effect=True)

    def _survives(self, step: BoundStep, retry: Retry) -> bool:
        # The claim of a dead worker ends with its lease and counts as lost, or with its timeout and counts as failed.
        expires = step.step.timeout > self.inline.orchestrator.timing.lease
        most = step.step.max_deliveries if expires else retry.policy_for(TimeoutError()).max_attempts
        return most > _CRASHES


def _last_action(saga: Saga) -> str:
    """Return the last step of a saga, or of its children, that calls a function of the author's."""
    names = [
        _last_action(step.step.saga) if isinstance(step.step, Child) else step.name
        for step in saga.steps.values()
        if not step.step.is_open_at_once
    ]
    return names[-1] if names else list(saga.steps)[-1]


def _short(state: object) -> str:
    text = repr(state)
    return text if len(text) <= _LONGEST_DETAIL else f"{text[:_LONGEST_DETAIL]}..."
