"""Inline mode: run a saga from start to end in the calling thread, with faults where the test wants them.

It uses the engine itself and replaces only the messages: see `sagas.runner`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import uuid_utils

from sagas import signals, transitions
from sagas.binding import BoundStep
from sagas.bulk import start_many
from sagas.checkpoints import Direction, HistoryEntry, SagaRecord, SagaStatus, SagaSummary
from sagas.definition import InputT, Saga
from sagas.durations import seconds, whole_number
from sagas.each import Each
from sagas.engine import Next
from sagas.errors import ConfigurationError, NotAllowed
from sagas.events import Events, type_of
from sagas.events.lifecycle import lifecycle_events
from sagas.handle import SagaHandle, StartResult
from sagas.plan import Plan
from sagas.runner import Runner
from sagas.signals import Completion
from sagas.starts import start
from sagas.stores import CheckpointStore
from sagas.testing.faults import Call, Crashed, Fault, Faults
from sagas.testing.memory import MemoryStore
from sagas.transitions import Case, Timing
from sagas.waiting import Waiters

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from sagas.stores.sessions import AnySession

__all__ = ["Inline"]

T = TypeVar("T")


class Inline:
    """Runs sagas in the calling thread: no broker, no worker, no other thread, and no waiting.

    `store`: stores the sagas; by default in memory. Steps that use `step.session` need a `SqlStore`.
    `lease`, `redispatch_after`, `max_payload`, `events`: as in `Sagas`; without `events`, emitted messages are only
    recorded in `emitted`.

    Sagas need not be registered with an app, and a registered saga is not changed. Faults happen in the order in which
    you ask for them, each to the next attempts of its step.

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
        #: Entered around every delivery of a message to a step of a saga; `rehearse` compares the state here.
        self.around: Callable[[Plan], AbstractContextManager[object]] = nullcontext
        self.faults = Faults()
        self._sagas: dict[Saga, Saga] = {}
        self._at = ""
        self._carried: set[str] = set()

    # -- running ------------------------------------------------------------------------------------------------

    def start(
        self,
        saga: Saga[InputT],
        input: InputT | Mapping[str, Any] | None = None,  # noqa: A002
        *,
        key: str | None = None,
        correlation_id: str | None = None,
        at: datetime | None = None,
    ) -> SagaHandle:
        """Start a saga, run it until it is COMPLETED, COMPENSATED or STUCK, or waits, and return its handle.

        It waits where somebody has to send a signal or complete a deferred step: `handle.signal(...)`,
        `inline.complete(token, result)`. `inline.advance(handle, time)` lets time pass.

        Raises what `Saga.start` raises, and `NotAllowed` if a fault names a step that the saga does not have.
        """
        self.faults.check(saga)
        next_ = start(
            self.orchestrator, self._shadow(saga), input, key=key, correlation_id=correlation_id, session=None, at=at
        )
        self._finish(next_.record.id, next_.plan)
        return SagaHandle(next_.record.id, self)

    def send_signal(
        self,
        saga_id: str,
        name: str,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002
        sender: str | None = None,
        session: AnySession | None = None,
    ) -> None:
        """Send a signal, and run the saga as far as it goes then. What `handle.signal` calls."""
        id = str(uuid_utils.uuid7()) if id is None else id  # noqa: A001
        next_ = signals.send(self.orchestrator, saga_id, name, payload, id=id, sender=sender, session=session)
        self._finish(saga_id, next_.plan)

    async def asend_signal(
        self,
        saga_id: str,
        name: str,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002
        sender: str | None = None,
        session: AsyncSession | AsyncConnection | None = None,
    ) -> None:
        """Do as `send_signal`. What `handle.asignal` calls."""
        if session is None:
            await self.to_thread(lambda: self.send_signal(saga_id, name, payload, id=id, sender=sender))
        else:
            await session.run_sync(
                lambda own: self.send_signal(saga_id, name, payload, id=id, sender=sender, session=own)
            )

    def complete(self, token: str, result: Any = None) -> Completion:
        """Complete a deferred step, and run its saga as far as it goes then. See `Sagas.complete`."""
        completion, next_ = signals.complete(self.orchestrator, token, result)
        self._finish(next_.record.id, next_.plan)
        return completion

    def fail_deferred(self, token: str, error: str) -> Completion:
        """Have a deferred step fail, and run its saga as far as it goes then. See `Sagas.fail`."""
        completion, next_ = signals.fail(self.orchestrator, token, error)
        self._finish(next_.record.id, next_.plan)
        return completion

    def advance(self, handle: SagaHandle, time: timedelta) -> None:
        """Let time pass, and run a saga that waits: timeouts and deadlines that are over then take effect."""
        self._runner.advance(time)
        self._finish(handle.id, None)

    def start_many(
        self,
        saga: Saga[InputT],
        inputs: Iterable[tuple[InputT | Mapping[str, Any] | None, str | None] | InputT | Mapping[str, Any] | None],
        *,
        correlation_id: str | None = None,
    ) -> Sequence[StartResult]:
        """Start many sagas, run each of the new ones to its end, and return what became of each input, in order."""
        self.faults.check(saga)
        stored = start_many(self.orchestrator, self._shadow(saga), inputs, correlation_id=correlation_id, session=None)
        for plan in stored.plans():
            self._runner.finish(plan.saga_id, plan)
        return [StartResult.of(end, self) for end in stored.ends]

    def undo_again(self, handle: SagaHandle, step: str) -> None:
        """Compensate a compensated step once more, as if its action reported its success only now."""
        before = handle.record
        saga = self.orchestrator.definition(before, step)
        if before.status is not SagaStatus.COMPENSATED or saga.steps[step].compensation is None:
            raise NotAllowed(f"saga {before.name!r} is {before.status}: step {step!r} cannot be compensated once more")
        case = Case.of(saga, before, self.now, self.orchestrator.timing)
        change = transitions.succeed(case, step, "a late report", Direction.FORWARD, before.step(step).result)
        self.store.save(before, change.record, change.history, change.dead_letters)
        self._finish(before.id, None)

    def finish(self, saga_id: str) -> SagaRecord:
        """Run an interrupted saga, as recovery would, until it is COMPLETED, COMPENSATED or STUCK."""
        return self._finish(saga_id, None)

    def _finish(self, saga_id: str, plan: Plan | None) -> SagaRecord:
        record = self.store.load(saga_id)
        if record.family in self._carried:  # a step of it sends this; who carries it goes on when that has returned
            return record
        self._carried.add(record.family)
        try:
            return self._runner.finish(saga_id, plan)
        finally:
            self._carried.discard(record.family)

    @property
    def emitted(self) -> list[Any]:
        """The events and commands that steps emitted, and the lifecycle events of the sagas, in order.

        Only with a store in memory: other stores have an outbox.
        """
        if not isinstance(self.store, MemoryStore):
            raise ConfigurationError(f"{self.store!r} stores emitted messages in its outbox: read them there")
        return [row["message"] for row in self.store.outbox]

    @property
    def now(self) -> datetime:
        """The simulated time: that of the database, plus the time that was skipped."""
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
        item: int | None = None,
    ) -> None:
        """Raise an error in the next attempts of a step's action or, with `undo`, of its compensation.

        `error`: by default a `RuntimeError`. `times`: None for all attempts. `after_effect`: call the real function
        first, and lose its result. `item`: the number of an item of an `Each`, from 0; left out, whichever comes first.
        """
        error = error or RuntimeError("broken on purpose")
        fault = Fault(step, item=item, undo=undo, times=times, after_effect=after_effect, error=error)
        self.faults.pending.append(fault)

    def crash_before(self, step: str, *, times: int | None = 1, undo: bool = False, item: int | None = None) -> None:
        """Let the worker die after claiming a step, before its function is called. The claim has to expire."""
        self.faults.pending.append(Fault(step, item=item, undo=undo, times=times, error=Crashed()))

    def crash_after(self, step: str, *, times: int | None = 1, undo: bool = False, item: int | None = None) -> None:
        """Let the worker die after the function has returned, before the result is stored. The claim has to expire."""
        fault = Fault(step, item=item, undo=undo, times=times, after_effect=True, error=Crashed())
        self.faults.pending.append(fault)

    def overtake(self, step: str, *, item: int | None = None) -> None:
        """Delay the next attempt of a step so long that its function is called only when the saga has ended.

        Also call `fail_at`, so that the following attempts do not complete the saga.
        """
        self.faults.pending.append(Fault(step, item=item, before=self.carry_on))

    def heal(self) -> None:
        """Remove all faults that have not happened."""
        self.faults.heal()

    @property
    def meanwhile(self) -> Callable[[SagaSummary], bool]:
        """Called before the clock moves on to when a saga is due. True where it did something to that saga."""
        return self._runner.meanwhile

    @meanwhile.setter
    def meanwhile(self, do: Callable[[SagaSummary], bool]) -> None:
        self._runner.meanwhile = do

    def carry_on(self, saga_id: str) -> None:
        """Run a saga to its end while an attempt at one of its steps hangs."""
        self._runner.finish(saga_id, None)

    # -- used by handles ----------------------------------------------------------------------------------------

    def load(self, saga_id: str) -> SagaRecord:
        return self.store.load(saga_id)

    def history(self, saga_id: str) -> Sequence[HistoryEntry]:
        return self.store.queries.history(saga_id)

    def result(self, record: SagaRecord) -> Mapping[str, Any]:
        return self.orchestrator.result(record)

    async def to_thread(self, function: Callable[[], T]) -> T:
        return await self.store.to_thread(function)

    async def await_end(self, saga_id: str, timeout: float | None) -> SagaStatus:  # noqa: ASYNC109 - as `wait`
        return await Waiters(self.store).end(saga_id, timeout)

    def cancel(self, saga_id: str, reason: str = "cancelled") -> SagaRecord:
        return self._finish(saga_id, self.orchestrator.cancel(saga_id, reason).plan)

    # -- the saga with faults -----------------------------------------------------------------------------------

    def _deliver(self, plan: Plan, step: str) -> Next | None:
        """Deliver a message to a step. Returns None if the worker crashed."""
        outer, self._at = self._at, plan.saga_id
        try:
            with self.around(plan):
                try:
                    return self.orchestrator.perform(plan.saga_id, step, plan.epoch)
                except Crashed:
                    return None
        finally:
            self._at = outer

    def _shadow(self, saga: Saga) -> Saga:
        """Return a copy of a saga whose functions are called through `_play`."""
        if saga not in self._sagas:
            shadow = copy.copy(saga)
            shadow.stages = tuple(tuple(self._arm(saga, step) for step in stage) for stage in saga.stages)
            shadow.steps = {step.name: step for stage in shadow.stages for step in stage}
            shadow.pivot = None if saga.pivot is None else shadow.steps[saga.pivot.name]
            self.orchestrator.register(shadow)
            self._sagas[saga] = shadow
        return self._sagas[saga]

    def _arm(self, saga: Saga, step: BoundStep) -> BoundStep:
        armed = copy.copy(step)
        if step.child is not None:
            armed.child = self._shadow(step.child)
        if step.when is not None:
            armed.when = replace(step.when, function=partial(self.faults.decide, step.name, step.when))
        if isinstance(step.step, Each):  # faults are for its items
            armed.action = replace(step.action, function=partial(self.faults.list_items, step.name, step.action))
            return armed
        armed.action = replace(step.action, function=partial(self._play, saga.name, step.name, False, step.action))
        if step.compensation is not None:
            play = partial(self._play, saga.name, step.name, True, step.compensation)
            armed.compensation = replace(step.compensation, function=play)
        return armed

    def _play(self, saga: str, step: str, undo: bool, function: Callable[..., Any], /, **arguments: Any) -> Any:
        call = Call(self._at, saga, step, self._item() if self.faults.tell_items_apart else None, undo)
        return self.faults.play(call, function, arguments)

    def _item(self) -> int | None:
        """Return the number of the item that the saga at work is, or belongs to."""
        record = self.store.load(self._at)
        while record.parent_item is None and record.parent_id is not None:
            record = self.store.load(record.parent_id)
        return record.parent_item


class _Recorder:
    """Records emitted messages, for tests that need neither services nor an outbox."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store

    def prepare(self, message: Any, **_: object) -> Mapping[str, Any]:
        if not isinstance(self._store, MemoryStore):
            raise ConfigurationError(f"{self._store!r} has an outbox. Pass events: Inline(store, events=Events(...))")
        type_of(message)
        return {"message": message}

    def lifecycle(self, before: SagaRecord, after: SagaRecord) -> Sequence[Mapping[str, Any]]:
        return [self.prepare(message) for message in lifecycle_events(before, after)]
