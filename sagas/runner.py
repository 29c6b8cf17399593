"""Carries sagas to their end in the calling thread: what Celery and recovery do, in a loop, and without waiting.

Where nothing can happen until later (a retry, the end of a dead worker's lease, a timeout) it moves a clock there.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, cast

from sagas.checkpoints import AT_REST, SagaRecord, SagaSummary, StepStatus
from sagas.endings import interruptible
from sagas.engine import Next
from sagas.leases import Unrenewed
from sagas.opening import current_stage, settled
from sagas.orchestrator import Orchestrator
from sagas.plan import Plan
from sagas.stores import CheckpointStore
from sagas.transitions import Timing, Verdict

__all__ = ["Runner"]

#: Beyond the moment that is moved to, so that rounding leaves nothing before it.
_A_MOMENT = timedelta(milliseconds=2)

#: Brings the message of a step. None when that was the end of its worker.
Deliver = Callable[[Plan, str], Next | None]


class Runner:
    """Runs sagas in the calling thread, on a store whose clock it moves.

    `deliver`: brings a message to a step; left out, the orchestrator performs it. `options`: those of `Orchestrator`.
    """

    def __init__(
        self, store: CheckpointStore, *, timing: Timing, deliver: Deliver | None = None, **options: Any
    ) -> None:
        self._clocked = _Clocked(store)
        self.orchestrator = Orchestrator(
            cast("CheckpointStore", self._clocked), timing=timing, leases=Unrenewed, **options
        )
        self._deliver = self._perform if deliver is None else deliver
        #: Called before the clock moves on to when a saga is due. True where it did something to that saga.
        self.meanwhile: Callable[[SagaSummary], bool] = lambda _: False
        self._family: list[Plan] = []  # what is left of other sagas than the one that is carried: children, parents
        self.orchestrator.send = self._family.append

    @property
    def now(self) -> datetime:
        """The time in here: that of the database, and what was skipped."""
        return self._clocked.now()

    def finish(self, saga_id: str, plan: Plan | None) -> SagaRecord:
        """Carry a saga, its parents and its children until they are at rest, or wait for somebody else.

        The clock is moved wherever nothing can happen until later.
        """
        with interruptible():
            self._carry(plan)
            while (record := self._next(saga_id)) is not None:
                if self.meanwhile(record):
                    continue
                assert record.next_check_at is not None
                self._clocked.move_to(record.next_check_at)
                found = self.orchestrator.examine(record.id)
                if found.verdict is Verdict.OVERDUE:  # nothing waits in a queue here: its message went with its worker
                    found = self._redispatch(found)
                self._carry(found.plan)
        return self.orchestrator.store.load(saga_id)

    def _next(self, saga_id: str) -> SagaSummary | None:
        """Return the saga that is to be looked at first, of a saga and its family. None where nothing happens."""
        record = self.orchestrator.store.load(saga_id)
        related = record.parent_id is not None or any(step.kind in ("child", "each") for step in record.steps.values())
        sagas = self.orchestrator.store.family(record.family) if related else [record]
        left = [
            each
            for each in sagas
            if each.status not in AT_REST and each.next_check_at is not None and not self._waits_for_others(each)
        ]
        return min(left, key=_due, default=None)

    def advance(self, time: timedelta) -> None:
        """Let time pass."""
        self._clocked.move_to(self.now + time)

    def _waits_for_others(self, record: SagaSummary) -> bool:
        """Tell whether nothing happens to a saga until somebody sends a signal or completes a step."""
        saga = self.orchestrator.definition(record)
        left = [step for step in current_stage(saga, record) if not settled(saga, step, record.direction)]
        return bool(left) and all(
            step.status is StepStatus.WAITING
            and step.kind != "timer"
            and step.due_at is not None
            and step.due_at > self.now
            for step in left
        )

    def _redispatch(self, overdue: Next) -> Next:
        assert overdue.plan is not None
        step, record = overdue.plan.stages[0].steps[0], overdue.record
        return self.orchestrator.redispatch(record.id, step, record.sent_at(record.step(step)))

    def _carry(self, plan: Plan | None) -> None:
        while plan or self._family:
            plan = self._chain(plan or self._family.pop(0))

    def _chain(self, plan: Plan) -> Plan | None:
        """Do what Celery does with a plan. Return what is to be dispatched when it does not go on."""
        for stage in plan.stages:
            goes_on, dispatch = False, None
            for name in stage.steps:
                next_ = self._deliver(plan, name)
                joined = next_ is not None and next_.verdict is Verdict.CLOSED
                if joined:
                    next_ = self.orchestrator.join(plan.saga_id, name, plan.epoch)
                if next_ is not None and next_.verdict is Verdict.FAILED:  # link_error
                    next_ = self.orchestrator.report(plan.saga_id, name, plan.epoch)
                if next_ is not None:
                    dispatch = next_.plan if next_.verdict is Verdict.DISPATCH else dispatch
                    on = next_.verdict in (Verdict.CONTINUE, Verdict.SETTLED)
                    goes_on = goes_on or (on and (joined or not stage.joined))
            if dispatch or not goes_on:
                return dispatch
        return None

    def _perform(self, plan: Plan, step: str) -> Next | None:
        return self.orchestrator.perform(plan.saga_id, step, plan.epoch)


def _due(record: SagaSummary) -> datetime:
    assert record.next_check_at is not None
    return record.next_check_at


class _Clocked:
    """A store whose clock can be moved forward."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._skipped = timedelta()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def now(self) -> datetime:
        return self._store.now() + self._skipped

    def move_to(self, moment: datetime) -> None:
        self._skipped += max(moment - self.now() + _A_MOMENT, timedelta())
