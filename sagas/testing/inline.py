"""Inline mode: a saga from its start to its end in the calling thread, with faults where the test wants them.

Everything is the engine's own, except for the messenger: see `sagas.runner`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from sagas import transitions
from sagas.bulk import start_many
from sagas.checkpoints import Direction, SagaRecord, SagaStatus
from sagas.definition import BoundStep, InputT, Saga
from sagas.durations import seconds, whole_number
from sagas.endings import ProcessEnd
from sagas.errors import ConfigurationError, NotAllowed
from sagas.events import Events, type_of
from sagas.events.lifecycle import lifecycle_events
from sagas.handle import SagaHandle, StartResult
from sagas.orchestrator import Next
from sagas.plan import Plan
from sagas.runner import Runner
from sagas.stores import CheckpointStore
from sagas.testing.memory import MemoryStore
from sagas.transitions import Case, Timing
from sagas.waiting import Waiters

__all__ = ["Inline"]

T = TypeVar("T")


class Inline:
    """Runs sagas in the calling thread: no broker, no worker, no other thread, and no waiting.

    `store`: where the sagas are kept; left out, in memory. Steps that use `step.session` need an `SqlStore`.
    `lease`, `redispatch_after`, `max_payload`, `events`: as in `Sagas`; without `events` what steps emit is only kept,
    in `emitted`.

    A saga need not be registered with an app, and one that is stays as it is. Faults happen in the order in which they
    were asked for, each to the next attempts at its step.

    >>> from sagas import Saga, Step, TerminalError
    >>> greet = Saga("greet", Step("hello", lambda: "hi", compensation=lambda: print("never mind")))
    >>> inline = Inline()
    >>> inline.start(greet).result["hello"]
    'hi'
    >>> inline.fail_at("hello", TerminalError("nobody is there"))
    >>> inline.start(greet).status
    never mind
    <SagaStatus.COMPENSATED: 'COMPENSATED'>
    """

    def __init__(
        self,
        store: CheckpointStore | None = None,
        *,
        lease: float | timedelta = 30.0,
        redispatch_after: float | timedelta = 30.0,
        max_payload: int = 1_048_576,
        events: Events | None = None,
    ) -> None:
        self.store = MemoryStore() if store is None else store
        self._runner = Runner(
            self.store,
            timing=Timing(
                lease=seconds(lease, "Inline: lease", ConfigurationError),
                redispatch_after=seconds(redispatch_after, "Inline: redispatch_after", ConfigurationError),
            ),
            deliver=self._deliver,
            max_payload=whole_number(max_payload, "Inline: max_payload", ConfigurationError),
            events=events or _Recorder(self.store),
        )
        self.orchestrator = self._runner.orchestrator
        #: Entered around every delivery of a step; `rehearse` looks at the world from here.
        self.around: Callable[[str], AbstractContextManager[object]] = nullcontext
        #: How often the report of an effect was lost on purpose, by step and whether it was undone.
        self.lost: Counter[tuple[str, bool]] = Counter()
        self._sagas: dict[Saga, Saga] = {}
        self._faults: list[_Fault] = []
        self._at = ""

    # -- running ------------------------------------------------------------------------------------------------

    def start(
        self,
        saga: Saga[InputT],
        input: InputT | Mapping[str, Any] | None = None,  # noqa: A002
        *,
        key: str | None = None,
        correlation_id: str | None = None,
    ) -> SagaHandle:
        """Start a saga, run it until it is COMPLETED, COMPENSATED or STUCK, and return its handle.

        Raises what `Saga.start` raises; `NotAllowed` when a fault was asked for where the saga has no such step.
        """
        self._check_faults(saga)
        next_ = self.orchestrator.start(self._shadow(saga), input, key=key, correlation_id=correlation_id, session=None)
        self._runner.finish(next_.record.id, next_.plan)
        return SagaHandle(next_.record.id, self)

    def start_many(
        self,
        saga: Saga[InputT],
        inputs: Iterable[tuple[InputT | Mapping[str, Any] | None, str | None] | InputT | Mapping[str, Any] | None],
        *,
        correlation_id: str | None = None,
    ) -> Sequence[StartResult]:
        """Start many sagas, run each of the new ones to its end, and return what became of each input, in order."""
        self._check_faults(saga)
        stored = start_many(self.orchestrator, self._shadow(saga), inputs, correlation_id=correlation_id, session=None)
        for plan in stored.plans():
            self._runner.finish(plan.saga_id, plan)
        return [StartResult.of(end, self) for end in stored.ends]

    def _check_faults(self, saga: Saga) -> None:
        for fault in self._faults:
            fault.check(saga)

    def undo_again(self, handle: SagaHandle, step: str) -> None:
        """Have a step that is undone undone once more, as when its action reports its success only now."""
        before = handle.record
        saga = self.orchestrator.definition(before, step)
        if before.status is not SagaStatus.COMPENSATED or saga.steps[step].compensation is None:
            raise NotAllowed(f"saga {before.name!r} is {before.status}: nothing undoes step {step!r} once more")
        case = Case.of(saga, before, self.now, self.orchestrator.timing)
        change = transitions.succeed(case, step, "a late report", Direction.FORWARD, before.step(step).result)
        self.store.save(before, change.record, change.history, change.dead_letters)
        self._runner.finish(before.id, None)

    def finish(self, saga_id: str) -> SagaRecord:
        """Run a saga that was cut off, as recovery would, until it is COMPLETED, COMPENSATED or STUCK."""
        return self._runner.finish(saga_id, None)

    @property
    def emitted(self) -> list[Any]:
        """The events and commands that steps emitted, and that the saga published of its life, in order.

        Only where sagas are kept in memory: elsewhere they are rows of the outbox.
        """
        if not isinstance(self.store, MemoryStore):
            raise ConfigurationError(f"{self.store!r} keeps what was emitted in its outbox: read it there")
        return [row["message"] for row in self.store.outbox]

    @property
    def now(self) -> datetime:
        """The time in here: that of the database, and what was skipped."""
        return self._runner.now

    # -- faults -------------------------------------------------------------------------------------------------

    def fail_at(
        self,
        step: str,
        error: Exception | None = None,
        *,
        times: int | None = 1,
        undo: bool = False,
        after_effect: bool = False,
    ) -> None:
        """Have the action of a step, or with `undo` its compensation, raise an error in its next attempts.

        `error`: left out, a `RuntimeError`. `times`: None for every attempt there will be. `after_effect`: the real
        function is called first, and its answer is lost.
        """
        error = error or RuntimeError("broken on purpose")
        self._faults.append(_Fault(step, undo=undo, times=times, after_effect=after_effect, error=error))

    def crash_before(self, step: str, *, times: int | None = 1, undo: bool = False) -> None:
        """Have the worker die when it has claimed a step, before the function is called. The claim has to expire."""
        self._faults.append(_Fault(step, undo=undo, times=times, after_effect=False, error=_Crashed()))

    def crash_after(self, step: str, *, times: int | None = 1, undo: bool = False) -> None:
        """Have the worker die after the function has returned, before that is recorded. The claim has to expire."""
        self._faults.append(_Fault(step, undo=undo, times=times, after_effect=True, error=_Crashed()))

    def overtake(self, step: str) -> None:
        """Have the next attempt at a step take so long that its function is called when the saga is at its end.

        Ask for `fail_at` too, so that the attempts which follow it do not complete the saga.
        """
        self._faults.append(_Fault(step, undo=False, times=1, after_effect=False, error=None))

    def heal(self) -> None:
        """Forget every fault that was asked for and has not happened."""
        self._faults.clear()

    # -- what handles ask ---------------------------------------------------------------------------------------

    def load(self, saga_id: str) -> SagaRecord:
        return self.store.load(saga_id)

    def result(self, record: SagaRecord) -> Mapping[str, Any]:
        return self.orchestrator.result(record)

    async def to_thread(self, function: Callable[[], T]) -> T:
        return await self.store.to_thread(function)

    async def await_end(self, saga_id: str, timeout: float | None) -> SagaStatus:  # noqa: ASYNC109 - as `wait`
        return await Waiters(self.store).end(saga_id, timeout)

    def cancel(self, saga_id: str, reason: str = "cancelled") -> SagaRecord:
        return self._runner.finish(saga_id, self.orchestrator.cancel(saga_id, reason).plan)

    # -- the saga with faults -----------------------------------------------------------------------------------

    def _deliver(self, plan: Plan, step: str) -> Next | None:
        """Bring a message to a step. None when that was the end of its worker."""
        outer, self._at = self._at, plan.saga_id
        try:
            with self.around(step):
                try:
                    return self.orchestrator.perform(plan.saga_id, step, plan.epoch)
                except _Crashed:
                    return None
        finally:
            self._at = outer

    def _shadow(self, saga: Saga) -> Saga:
        """Return a copy of a saga whose functions are called by way of `_play`."""
        if saga not in self._sagas:
            shadow = copy.copy(saga)
            shadow.stages = tuple(tuple(self._arm(step) for step in stage) for stage in saga.stages)
            shadow.steps = {step.name: step for stage in shadow.stages for step in stage}
            shadow.pivot = None if saga.pivot is None else shadow.steps[saga.pivot.name]
            self.orchestrator.register(shadow)
            self._sagas[saga] = shadow
        return self._sagas[saga]

    def _arm(self, step: BoundStep) -> BoundStep:
        armed = copy.copy(step)
        armed.action = replace(step.action, function=partial(self._play, step.name, False, step.action))
        if step.compensation is not None:
            play = partial(self._play, step.name, True, step.compensation)
            armed.compensation = replace(step.compensation, function=play)
        return armed

    def _play(self, step: str, undo: bool, function: Callable[..., Any], /, **arguments: Any) -> Any:
        """Call a function of a step, or do what the next fault asks for instead."""
        fault = next((fault for fault in self._faults if (fault.step, fault.undo) == (step, undo)), None)
        if fault is None:
            return function(**arguments)
        if fault.times is not None:
            fault.times -= 1
            if not fault.times:
                self._faults.remove(fault)
        if fault.error is None:
            self._runner.finish(self._at, None)
            return function(**arguments)
        if fault.after_effect:
            function(**arguments)
            self.lost[step, undo] += 1
        raise fault.error


class _Crashed(ProcessEnd):
    """The end of a worker. No `except Exception` sees it, and open transactions are rolled back, as in real life."""


@dataclass(slots=True, eq=False)
class _Fault:
    step: str
    undo: bool
    times: int | None
    after_effect: bool
    error: BaseException | None  #: None: it is overtaken by the rest of the saga

    def check(self, saga: Saga) -> None:
        """Refuse a fault that could never happen: a test that relies on it would prove nothing."""
        if self.step not in saga.steps:
            raise NotAllowed(f"saga {saga.name!r} has no step {self.step!r} to fail at; it has {', '.join(saga.steps)}")
        if self.undo and saga.steps[self.step].compensation is None:
            raise NotAllowed(f"saga {saga.name!r}: nothing undoes step {self.step!r}, so its undo cannot fail")


class _Recorder:
    """Keeps what is emitted as it is, for tests that need neither services nor an outbox."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store

    def prepare(self, message: Any, **_: object) -> Mapping[str, Any]:
        if not isinstance(self._store, MemoryStore):
            raise ConfigurationError(f"{self._store!r} has an outbox: Inline(store, events=Events(...))")
        type_of(message)
        return {"message": message}

    def lifecycle(self, before: SagaRecord, after: SagaRecord) -> Sequence[Mapping[str, Any]]:
        return [self.prepare(message) for message in lifecycle_events(before, after)]
