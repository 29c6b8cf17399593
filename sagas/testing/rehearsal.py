"""Rehearsals: one run of a saga for every way in which each of its steps can fail, and what was left behind."""

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

from sagas.checkpoints import AT_REST, FINISHED, SagaRecord, SagaStatus
from sagas.definition import BoundStep, Retry, Saga
from sagas.errors import NotAllowed, SagaNotFound, TerminalError
from sagas.events import Events
from sagas.handle import SagaHandle
from sagas.stores import CheckpointStore, Filter, SqlStore
from sagas.stores.retention import forget
from sagas.testing.inline import Inline

__all__ = ["Judgement", "Rehearsal", "Row", "rehearse"]

#: How often a worker dies at one step: twice, so that an effect that came twice can be told from one that came once.
_CRASHES = 2

_LONGEST_DETAIL = 300


class Judgement(enum.StrEnum):
    """What a rehearsal found in one run."""

    OK = "ok"
    WRONG_END = "WRONG END"  #: it did not end as a saga that fails there should
    NOT_COVERED = "NOT COVERED"  #: it was undone, and something is left
    NOT_IDEMPOTENT = "NOT IDEMPOTENT"  #: a second call under the same idempotency key had a second effect


@dataclass(frozen=True, slots=True)
class Row:
    """One run: what went wrong in which step, how the saga ended, and whether that is right."""

    step: str
    failure: str
    status: SagaStatus
    verdict: Judgement
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What came out of all the runs."""

    saga: Saga
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether every run ended as it should, with nothing left behind that should not be."""
        return all(row.verdict is Judgement.OK for row in self.rows)

    def table(self) -> str:
        """Return the runs as text: a line for each, then what is wrong, plainly."""
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
    """Run a saga once for every way in which each of its steps can fail. The real actions are called, many times.

    `input`: what it is started with, or a callable that makes a fresh input for each run. It must be one that goes
    through when nothing fails. `state`: returns what the saga changes in the world, as something that can be compared;
    left out, only the ends of the runs are judged. `store`, `lease`, `max_payload`, `events`: as in `Inline`.
    `live`: rehearse also in a database with unfinished sagas.

    A rehearsal deletes its sagas from the database when it ends, also when it is interrupted; a run that was cut off is
    first compensated or, after its pivot, completed. No relay sends what the steps emitted. What the actions changed in
    the world stays. Raises `NotAllowed` for a database that has unfinished sagas, unless `live` is true.

    A run is ok when it ended as it should: COMPLETED where attempts heal the failure; COMPENSATED, with the state as it
    was before; STUCK where only a person can know (the pivot in doubt, a later step that fails for good).

    >>> from sagas import Pivot, Saga, Step
    >>> stock = {"tea": 5}
    >>> def take() -> None: stock["tea"] -= 1
    >>> def put_back() -> None: stock["tea"] += 1
    >>> sell = Saga("sell", Step("take", take, compensation=put_back), Pivot("pay", lambda: None))
    >>> rehearsal = rehearse(sell, state=lambda: stock)
    >>> rehearsal.ok
    False
    >>> next(row for row in rehearsal.rows if row.verdict == "NOT IDEMPOTENT").detail
    "its action, called again under the same key, changed the state from {'tea': 4} to {'tea': 3}"
    """
    correlation_id = f"rehearsal-{uuid.uuid4()}"
    if isinstance(store, SqlStore) and not live and (unfinished := unfinished_in(store)):
        raise NotAllowed(
            f"{store!r} has {unfinished} unfinished sagas, so it does not look like a test database. A rehearsal calls "
            f"the real actions and compensations of {saga.name!r}: use a database of its own, or pass live=True"
        )
    inline = Inline(store, lease=lease, max_payload=max_payload, events=events)
    if events is not None and isinstance(store, SqlStore):
        inline.orchestrator.events = _NeverSent(events)
    stage = _Stage(inline, saga, input, state, correlation_id)
    try:
        rows = [stage.run("-", "nothing fails", lambda: None, {SagaStatus.COMPLETED})]
        if rows[0].verdict is Judgement.OK:
            for step in saga.steps.values():
                rows += stage.rehearse_action(step)
            for step in saga.steps.values():
                if step.compensation is not None:
                    rows += stage.rehearse_compensation(step)
    finally:
        try:
            stage.settle()
        finally:
            if isinstance(store, SqlStore):
                forget(store, correlation_id)
    return Rehearsal(saga, tuple(rows))


def unfinished_in(store: SqlStore) -> int:
    """Return how many sagas in a database are not at their end: some application may be at work there."""
    return store.count(Filter(statuses=frozenset(SagaStatus) - FINISHED))


class _NeverSent:
    """Makes rows of the outbox that count as sent from the beginning: no relay tells the world of a rehearsal."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def prepare(self, message: Any, **options: Any) -> Mapping[str, Any]:
        return _sent(self._events.prepare(message, **options))

    def lifecycle(self, before: SagaRecord, after: SagaRecord) -> Sequence[Mapping[str, Any]]:
        return [_sent(row) for row in self._events.lifecycle(before, after)]


def _sent(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**row, "sent_at": row["created_at"]}


class _Stage:
    """Where the runs of one rehearsal take place."""

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
                ends = ends | undone  # the time that the crashes took may be all it had
            yield self.run(name, f"crash {when} its effect", partial(crash, name, times=_CRASHES), ends)
        yield self.run(
            name, "broken after its effect", lambda: inline.fail_at(name, times=None, after_effect=True), given_up
        )
        if step.compensation is not None:
            yield self.run(name, "effect after its undo", lambda: self._overtake(name), undone)

    def rehearse_compensation(self, step: BoundStep) -> Iterator[Row]:
        name = step.name
        undone = {SagaStatus.COMPENSATED}

        def crash() -> None:
            self._turn_back_after(step)
            self.inline.crash_after(name, times=_CRASHES, undo=True)

        yield self.run(name, "undone twice", lambda: self._turn_back_after(step), undone, undo_again=name)
        ends = undone if self._survives(step, step.compensation_retry) else {SagaStatus.STUCK}
        yield self.run(name, "crash after its undo", crash, ends)

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
            left = f"undone, but the state was {_short(before)} and is {_short(after)}"
            return Row(step, failure, status, Judgement.NOT_COVERED, left)
        return Row(step, failure, status, Judgement.OK, error or "")

    def settle(self) -> None:
        """Bring a run that was cut off to its end, so that it leaves nothing half done in the world."""
        try:
            record = self.inline.store.find(self.saga.name, self._key)
        except SagaNotFound:
            return
        if record.status not in AT_REST:
            self.inline.heal()
            with suppress(NotAllowed):  # after its pivot, or on its way back: it only has to go on
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
        """Look at the state around each delivery: an effect that had come before must not come again."""
        lost, before = self.inline.lost.copy(), self._snapshot()
        yield
        for undo, what in ((False, "action"), (True, "compensation")):
            # Only those whose report was lost: what is written through step.session was rolled back with it, so the
            # attempt that succeeds may well be the first to change anything.
            if 0 < lost[step, undo] < self.inline.lost[step, undo]:
                self._expect_no_change(what, before)

    def _expect_no_change(self, what: str, before: object) -> None:
        if (after := self._snapshot()) != before:
            changed = f"changed the state from {_short(before)} to {_short(after)}"
            self.findings.append(f"its {what}, called again under the same key, {changed}")

    def _snapshot(self) -> object:
        # A copy: the caller may return the very thing that the actions change.
        return None if self.state is None else copy.deepcopy(self.state())

    def _overtake(self, name: str) -> None:
        self.inline.overtake(name)
        self.inline.fail_at(name, TerminalError("refused, while an earlier attempt hangs"), times=None)

    def _turn_back_after(self, step: BoundStep) -> None:
        """Have the saga turn back as soon as this step is done; or in doubt, where no later one could turn it back."""
        if step.stage + 1 < len(self.saga.stages):
            [later, *_] = self.saga.stages[step.stage + 1]
            self.inline.fail_at(later.name, TerminalError("refused, so that the saga turns back"), times=None)
        else:
            self.inline.fail_at(step.name, times=None, after_effect=True)

    def _survives(self, step: BoundStep, retry: Retry) -> bool:
        # A claim whose worker died ends with its lease, and counts as lost; or with its timeout, and counts as failed.
        expires = step.step.timeout > self.inline.orchestrator.timing.lease
        most = step.step.max_deliveries if expires else retry.policy_for(TimeoutError()).max_attempts
        return most > _CRASHES


def _short(state: object) -> str:
    text = repr(state)
    return text if len(text) <= _LONGEST_DETAIL else f"{text[:_LONGEST_DETAIL]}..."
