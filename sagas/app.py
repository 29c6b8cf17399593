"""Where everything is put together: a Celery app, a store, and the sagas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic

import uuid_utils
from celery import Celery
from typing_extensions import TypeVar

import sagas.carried  # noqa: F401 - tasks carry the cause of what sent them
from sagas import signals
from sagas.app_settings import check_app
from sagas.batches import Batches
from sagas.bulk import start_many
from sagas.canvas import Canvas
from sagas.checkpoints import HistoryEntry, SagaRecord, SagaStatus, StepStatus
from sagas.children import descendants
from sagas.definition import InputT, Saga
from sagas.durations import seconds, whole_number
from sagas.engine import Next
from sagas.errors import ConfigurationError, SagaNotFound
from sagas.handle import SagaHandle, StartResult
from sagas.nodes import Wait
from sagas.observers import Observer, Observers
from sagas.orchestrator import Orchestrator
from sagas.recovery import Recovery
from sagas.scheduler import Scheduler
from sagas.schedules import Schedule
from sagas.signals import Completion
from sagas.starts import start
from sagas.threads import THREADS
from sagas.transitions import Repair, Timing, Verdict
from sagas.waiting import Waiters

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from sagas.events import Events
    from sagas.stores import CheckpointStore
    from sagas.stores.sessions import AnySession

__all__ = ["Sagas"]

T = TypeVar("T")
#: Where sagas are kept; `Sagas(app, SqlStore(...)).store` is a `SqlStore` to type checkers too.
StoreT_co = TypeVar("StoreT_co", bound="CheckpointStore", default="CheckpointStore", covariant=True)

#: Carries out what is to follow a commit.
_Send = Callable[[Callable[[], object]], object]


def _at_once(send: Callable[[], object]) -> object:
    return send()


class Sagas(Generic[StoreT_co]):
    """Adds sagas to a Celery app.

    `app`: the Celery app; any broker, no result backend needed. `store`: where sagas are kept. `sagas`: the
    definitions, every version that may still be in flight. Their children are registered with them.

    `lease`: seconds after which a worker that stopped answering loses its step to another.
    `redispatch_after`: seconds after which a saga whose next step nobody takes is dispatched again; doubled each time.
    `recovery_interval`: seconds between two looks of a worker at what is due. `max_payload`: bytes that an input or a
    result may have.
    `events`: what steps publish through, and what workers consume; see `sagas.events`.
    `redact`: names of fields of inputs and results whose values operators do not see, wherever they look; where an
    exception quotes one, it is taken out of the error, too.
    `schedules`: start sagas at the times of a cron expression; any worker runs them.
    `observers`: told of what happens, for metrics, traces and logs: see docs/monitoring.md.
    `run_next_inline`: let a worker that has done a step run the next one too, without a message, if it serves the
        queue of that step.
    `batch_size`: sagas in one message at most: of `start_many`, of an `Each`, of recovery, and of threads that start
        sagas at the same moment; 1 for a message each. Only quick steps stay in a batch.
    `batch_concurrency`: how many functions of one batch run at the same time. More than 1 is for functions that are
        thread-safe.

    Recovery after a worker's death takes at most `lease` + `recovery_interval` and the time to send a message; after a
    lost message `redispatch_after` instead of `lease`. A worker that dies while it recovers others adds 10 s.

    >>> from celery import Celery
    >>> from sagas import Saga, Sagas, SqlStore, Step
    >>> greet = Saga("greet", Step("hello", lambda: "hi", compensation=None))
    >>> app = Celery("shop", broker="memory://")
    >>> Sagas(app, SqlStore("sqlite://"), [greet])
    <Sagas of 'shop': greet 1>
    """

    def __init__(
        self,
        app: Celery,
        store: StoreT_co,
        sagas: Iterable[Saga] = (),
        *,
        lease: float | timedelta = 30.0,
        redispatch_after: float | timedelta = 30.0,
        recovery_interval: float | timedelta = 1.0,
        max_payload: int = 1_048_576,
        run_next_inline: bool = True,
        batch_size: int = 50,
        batch_concurrency: int = 1,
        events: Events | None = None,
        redact: Iterable[str] = (),
        observers: Iterable[Observer] = (),
        schedules: Iterable[Schedule] = (),
    ) -> None:
        if hasattr(app, "sagas"):
            raise ConfigurationError(f"the Celery app {app.main!r} already has its Sagas")
        lease = seconds(lease, "Sagas: lease", ConfigurationError)
        redispatch_after = seconds(redispatch_after, "Sagas: redispatch_after", ConfigurationError)
        recovery_interval = seconds(recovery_interval, "Sagas: recovery_interval", ConfigurationError)
        whole_number(max_payload, "Sagas: max_payload", ConfigurationError)
        whole_number(batch_size, "Sagas: batch_size", ConfigurationError)
        whole_number(batch_concurrency, "Sagas: batch_concurrency", ConfigurationError)
        if events is not None and getattr(store, "engine", events.engine).url != events.engine.url:
            raise ConfigurationError(
                "the sagas and the outbox of the events are in two databases, so that a step and what it emits "
                "could not be one transaction: Events(..., engine=store.engine)"
            )
        check_app(app)
        self.app = app
        self.store = store
        self.run_next_inline = run_next_inline
        self.events = events
        self.redact = frozenset(redact)
        self.observers = Observers() if events is None else events.observers
        self.observers.add(*observers)
        self.orchestrator = Orchestrator(
            store,
            timing=Timing(lease=lease, redispatch_after=redispatch_after),
            max_payload=max_payload,
            events=events,
            observers=self.observers,
            redact=self.redact,
        )
        self.canvas = Canvas(app, self.orchestrator, Batches(batch_size, batch_concurrency))
        self._waiters = Waiters(store)
        if events is not None:
            events.connect(self)
        for saga in sagas:
            self.register(saga)
        self.scheduler = Scheduler(self.orchestrator, self.canvas, schedules)
        self.recovery = Recovery(self.orchestrator, self.canvas, recovery_interval, self.scheduler)
        # By name: nothing but a worker needs them.
        app.steps["worker"].add("sagas.worker.recovery:RecoveryStep")
        if events is not None:
            app.steps["worker"].add("sagas.worker.events:EventsStep")
        app.sagas = self

    def __repr__(self) -> str:
        names = ", ".join(f"{name} {version}" for name, version in self.orchestrator.sagas)
        return f"<Sagas of {self.app.main!r}: {names}>"

    def register(self, saga: Saga) -> None:
        """Add a definition, and those of its children. Raises `DuplicateName` for a name and version that is taken."""
        for each in (saga, *descendants(saga)):
            self._check_waits(each)
            self.orchestrator.register(each)
            self.canvas.register(each)
            self.bind(each)

    def _check_waits(self, saga: Saga) -> None:
        if self.events is not None:
            self.events.check_waits(saga)
        elif waits := [each.name for each in saga.steps.values() if isinstance(each.step, Wait) and each.step.on]:
            raise ConfigurationError(
                f"saga {saga.name!r}, wait {waits[0]!r}: it waits for an event, but this app has none: "
                "Sagas(..., events=Events(...))"
            )

    def bind(self, saga: Saga) -> None:
        """Have `saga.start` start it here. One saga is bound to one app, unless a framework says which it is."""
        saga.bind(self)

    # -- what callers do ----------------------------------------------------------------------------------------

    def start(
        self,
        saga: Saga[InputT],
        input: InputT | Mapping[str, Any] | None = None,  # noqa: A002
        *,
        key: str | None = None,
        correlation_id: str | None = None,
        session: AnySession | None = None,
        at: datetime | None = None,
    ) -> SagaHandle:
        """See `Saga.start`."""
        return self._start(saga, input, key, correlation_id, session, at, _at_once)

    def _start(
        self,
        saga: Saga,
        input: Any,  # noqa: A002
        key: str | None,
        correlation_id: str | None,
        session: AnySession | None,
        at: datetime | None,
        send: _Send,
    ) -> SagaHandle:
        self._check(saga)
        next_ = start(self.orchestrator, saga, input, key=key, correlation_id=correlation_id, session=session, at=at)
        self._go_on(next_, session, send)
        return SagaHandle(next_.record.id, self)

    async def astart(
        self,
        saga: Saga[InputT],
        input: InputT | Mapping[str, Any] | None = None,  # noqa: A002
        *,
        key: str | None = None,
        correlation_id: str | None = None,
        session: AsyncSession | AsyncConnection | None = None,
        at: datetime | None = None,
    ) -> SagaHandle:
        """See `Saga.astart`."""
        if session is None:
            return await self.to_thread(lambda: self.start(saga, input, key=key, correlation_id=correlation_id, at=at))
        return await _asynchronous(session).run_sync(
            lambda own: self._start(saga, input, key, correlation_id, own, at, self._off_loop)
        )

    async def astart_many(
        self,
        saga: Saga[InputT],
        inputs: Iterable[tuple[InputT | Mapping[str, Any] | None, str | None] | InputT | Mapping[str, Any] | None],
        *,
        correlation_id: str | None = None,
        session: AsyncSession | AsyncConnection | None = None,
    ) -> Sequence[StartResult]:
        """See `Saga.astart_many`."""
        if session is None:
            return await self.to_thread(lambda: self.start_many(saga, inputs, correlation_id=correlation_id))
        return await _asynchronous(session).run_sync(
            lambda own: self._start_many(saga, inputs, correlation_id, own, self._off_loop)
        )

    def _off_loop(self, send: Callable[[], object]) -> None:
        """Send messages after the commit of an asynchronous session: a broker that is away must not block its loop."""
        if self.app.conf.task_always_eager:
            send()
        else:
            THREADS.submit(send)

    def start_many(
        self,
        saga: Saga[InputT],
        inputs: Iterable[tuple[InputT | Mapping[str, Any] | None, str | None] | InputT | Mapping[str, Any] | None],
        *,
        correlation_id: str | None = None,
        session: AnySession | None = None,
    ) -> Sequence[StartResult]:
        """See `Saga.start_many`."""
        return self._start_many(saga, inputs, correlation_id, session, _at_once)

    def _start_many(
        self,
        saga: Saga,
        inputs: Iterable[Any],
        correlation_id: str | None,
        session: AnySession | None,
        send: _Send,
    ) -> Sequence[StartResult]:
        self._check(saga)
        stored = start_many(self.orchestrator, saga, inputs, correlation_id=correlation_id, session=session)
        if stored.observed:
            self.store.after_commit(session, lambda: self._tell_started(stored.observed))
        if stored.new:
            self.store.after_commit(session, lambda: send(lambda: self.canvas.dispatch_many(stored.plans())))
        return [StartResult.of(end, self) for end in stored.ends]

    def _tell_started(self, records: Iterable[SagaRecord]) -> None:
        for record in records:
            self.observers.changed(None, record)

    def check(self) -> None:
        """Raise `ConfigurationError` when this app, with the settings that it has now, cannot carry its sagas."""
        check_app(self.app)
        self.canvas.check_queues(self.orchestrator.sagas.values())

    def _check(self, saga: Saga) -> None:
        if self.orchestrator.sagas.get((saga.name, saga.version)) is not saga:
            raise ConfigurationError(f"saga {saga.name!r} is not registered with this app: Sagas(app, store, [...])")
        check_app(self.app)  # each time: settings can be made at any time
        self.canvas.check_queues([saga])

    def start_by_name(self, name: str, input: Any = None, **options: Any) -> SagaHandle:  # noqa: A002
        """Start the newest version of the saga of this name. Raises `SagaNotFound` when there is none."""
        versions = [saga for (known, _), saga in self.orchestrator.sagas.items() if known == name]
        if not versions:
            known = ", ".join(sorted({known for known, _ in self.orchestrator.sagas})) or "none"
            raise SagaNotFound(f"no saga {name!r} is registered; there is: {known}")
        return self.start(max(versions, key=lambda saga: saga.version), input, **options)

    def handle(self, saga_id: str) -> SagaHandle:
        """Return the handle of a saga by its id. Raises `SagaNotFound`."""
        return SagaHandle(self.store.load(saga_id).id, self)

    def find(self, name: str, key: str) -> SagaHandle:
        """Return the handle of a saga by its name and business key. Raises `SagaNotFound`."""
        return SagaHandle(self.store.find(name, key).id, self)

    def signal(
        self,
        saga: str,
        key: str,
        name: str,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002
        sender: str | None = None,
        session: AnySession | None = None,
    ) -> None:
        """Send a signal to the wait `name` of the saga with this name and business key.

        `payload`: of the type that the `Wait` declares, or a mapping of its fields. `id`: the same id twice counts
        once; left out, each call is a signal of its own. `sender`: who sends it; it is kept. `session`: the signal
        commits and rolls back with your transaction.

        Raises `SagaNotFound`, `SignalRefused` where the saga no longer wants the signal or has another one,
        `InvalidInput` for a payload of another type.
        """
        self.send_signal(self.store.find(saga, key).id, name, payload, id=id, sender=sender, session=session)

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
        """Send a signal to a saga by its id. See `signal`."""
        self._send_signal(saga_id, name, payload, id, sender, session, _at_once)

    def _send_signal(
        self,
        saga_id: str,
        name: str,
        payload: Any,
        id: str | None,  # noqa: A002
        sender: str | None,
        session: AnySession | None,
        send: _Send,
    ) -> None:
        id = str(uuid_utils.uuid7()) if id is None else id  # noqa: A001
        next_ = signals.send(self.orchestrator, saga_id, name, payload, id=id, sender=sender, session=session)
        self._go_on(next_, session, send)

    async def asignal(
        self,
        saga: str,
        key: str,
        name: str,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002
        sender: str | None = None,
        session: AsyncSession | AsyncConnection | None = None,
    ) -> None:
        """Do as `signal`, without blocking the event loop."""
        found = await self.afind(saga, key)
        await self.asend_signal(found.id, name, payload, id=id, sender=sender, session=session)

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
        """Do as `send_signal`, without blocking the event loop."""
        if session is None:
            await self.to_thread(lambda: self.send_signal(saga_id, name, payload, id=id, sender=sender))
            return
        await _asynchronous(session).run_sync(
            lambda own: self._send_signal(saga_id, name, payload, id, sender, own, self._off_loop)
        )

    def complete(
        self,
        token: str,
        result: Any = None,
        *,
        session: AnySession | None = None,
    ) -> Completion:
        """Complete the deferred step, or the `Wait`, that gave out this token. The saga goes on.

        If the action has not returned, the saga goes on when what the action wrote is committed.
        Returns `Completion.ACCEPTED`; `ENDED` where it had ended or been completed before; `LATE` where the saga had
        given the step up: what the step did is then compensated. `session`: as in `signal`.
        Raises `InvalidToken`, and `InvalidInput` for a result of another type.
        """
        completion, next_ = signals.complete(self.orchestrator, token, result, session=session)
        self._go_on(next_, session, _at_once)
        return completion

    def fail(self, token: str, error: str, *, session: AnySession | None = None) -> Completion:
        """Have the deferred step fail that gave out this token: it had no effect. The saga compensates.

        Returns `Completion.ACCEPTED`, or `ENDED` as `complete` does. Raises `InvalidToken`.
        """
        completion, next_ = signals.fail(self.orchestrator, token, error, session=session)
        self._go_on(next_, session, _at_once)
        return completion

    def _go_on(self, next_: Next, session: AnySession | None, send: _Send) -> None:
        if next_.verdict is Verdict.DISPATCH:
            self._dispatch(next_, session, send)

    async def ahandle(self, saga_id: str) -> SagaHandle:
        """Do as `handle`, without blocking the event loop."""
        return await self.to_thread(lambda: self.handle(saga_id))

    async def afind(self, name: str, key: str) -> SagaHandle:
        """Do as `find`, without blocking the event loop."""
        return await self.to_thread(lambda: self.find(name, key))

    # -- what handles and operators do --------------------------------------------------------------------------

    def load(self, saga_id: str) -> SagaRecord:
        return self.store.load(saga_id)

    def history(self, saga_id: str) -> Sequence[HistoryEntry]:
        return self.store.queries.history(saga_id)

    def result(self, record: SagaRecord) -> Mapping[str, Any]:
        return self.orchestrator.result(record)

    async def to_thread(self, function: Callable[[], T]) -> T:
        """Call a function that blocks, such as one of these, without blocking the event loop."""
        return await self.store.to_thread(function)

    async def await_end(self, saga_id: str, timeout: float | None) -> SagaStatus:  # noqa: ASYNC109 - as `wait`
        return await self._waiters.end(saga_id, timeout)

    def cancel(self, saga_id: str, reason: str = "cancelled", *, actor: str | None = None) -> SagaRecord:
        """Cancel a saga: start compensating. Raises `NotAllowed` when it can no longer be undone."""
        return self._dispatch(self.orchestrator.cancel(saga_id, reason, actor))

    def retry(self, saga_id: str, step: str, *, reason: str, actor: str | None = None) -> SagaRecord:
        """Try a stuck step again, with all its attempts. Raises `NotAllowed` when it is not stuck."""
        return self._dispatch(self.orchestrator.repair(saga_id, step, Repair.RETRY, reason=reason, actor=actor))

    def skip(self, saga_id: str, step: str, *, reason: str, actor: str | None = None) -> SagaRecord:
        """Leave a stuck step as it is and go on with the rest. Raises `NotAllowed` when it is not stuck."""
        return self._dispatch(self.orchestrator.repair(saga_id, step, Repair.SKIP, reason=reason, actor=actor))

    def mark_done(
        self, saga_id: str, step: str, *, reason: str, actor: str | None = None, result: Any = None
    ) -> SagaRecord:
        """Take a stuck step as done (or, going backward, as undone) by hand, with the result that later steps need.

        Raises `NotAllowed` when it is not stuck, `InvalidInput` when the result is not what its action declares.
        """
        return self._dispatch(
            self.orchestrator.repair(saga_id, step, Repair.DONE, reason=reason, actor=actor, result=result)
        )

    def mark_failed(self, saga_id: str, step: str, *, reason: str, actor: str | None = None) -> SagaRecord:
        """Take a stuck pivot as not done, by hand, and start compensating. Raises `NotAllowed` for any other step."""
        return self._dispatch(self.orchestrator.repair(saga_id, step, Repair.FAILED, reason=reason, actor=actor))

    def resume(self, saga_id: str, *, reason: str, actor: str | None = None) -> SagaRecord:
        """Launch what is left of a saga now, without waiting for its retry or for recovery.

        Raises `NotAllowed` when nothing is left, it is stuck, or a worker is at work on it.
        """
        return self._dispatch(self.orchestrator.resume(saga_id, reason, actor))

    def compensate(self, saga_id: str, *, reason: str, actor: str | None = None) -> SagaRecord:
        """Compensate a saga, also one that is stuck at its pivot: the pivot counts as not done.

        Raises `NotAllowed` when it can no longer be undone.
        """
        record = self.store.load(saga_id)
        pivot = self.orchestrator.definition(record).pivot
        if record.status is SagaStatus.STUCK and pivot and record.step(pivot.name).status is StepStatus.STUCK:
            return self.mark_failed(saga_id, pivot.name, reason=reason, actor=actor)
        return self.cancel(saga_id, reason, actor=actor)

    def _dispatch(self, next_: Next, session: AnySession | None = None, send: _Send = _at_once) -> SagaRecord:
        self.store.after_commit(session, lambda: send(lambda: self.canvas.dispatch_or_leave(next_.plan)))
        return next_.record


def _asynchronous(session: AsyncSession | AsyncConnection) -> AsyncSession | AsyncConnection:
    if not hasattr(session, "run_sync"):
        raise ConfigurationError(
            f"session={session!r} is not an AsyncSession or AsyncConnection of SQLAlchemy's: with a synchronous one "
            "call start()"
        )
    return session
