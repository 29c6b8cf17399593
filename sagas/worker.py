"""What a Celery worker does for sagas beside running their tasks."""

from __future__ import annotations

import logging
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from celery import Celery, bootsteps, current_app, signals

from sagas.errors import ConfigurationError
from sagas.events import Events
from sagas.events.consumer import InThread, Runner
from sagas.events.inbox import Call, Outcome
from sagas.recovery import Recovery

__all__ = [
    "EventsStep",
    "RecoveryStep",
    "refuse_memory",
    "warn_of_eagerness",
    "warn_of_ignored_limits",
    "warn_of_silence",
]

logger = logging.getLogger(__name__)

#: The pools on which Celery's time limits do nothing; the timeouts of steps, being kept in SQL, do.
_WITHOUT_LIMITS = ("threads", "solo")


class RecoveryStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs recovery in a thread of the worker's main process, through reconnects, until the worker stops."""

    requires = {"celery.worker.components:Pool"}  # noqa: RUF012 - Celery's own convention

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        import sagas.control  # noqa: F401, PLC0415 - a worker has all of it loaded; others would take 0.1 s for it

        self._recovery: Recovery = parent.app.sagas.recovery
        parent.app.sagas.check()
        if parent.app.sagas.orchestrator.sagas:
            refuse_memory(parent)
        warn_of_eagerness(parent.app)
        warn_of_ignored_limits(parent)
        warn_of_silence(parent.app)
        # Celery's time limits are for one task: with them each step is one.
        if parent.app.sagas.follow_on and not (parent.time_limit or parent.soft_time_limit):
            queues = parent.app.amqp.queues.consume_from
            parent.app.sagas.canvas.prepare(queues=queues, sends_events=parent.task_events)

    def start(self, parent: Any) -> None:  # noqa: ARG002
        self._recovery.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002
        self._recovery.stop()

    terminate = stop


def refuse_memory(worker: Any) -> None:
    """Refuse a broker in the memory of one process for a pool of several: what a child sends reaches nobody."""
    with worker.app.connection_for_write() as connection:
        if connection.transport.driver_type == "memory" and _pool_of(worker) == "prefork":
            raise ConfigurationError(
                "the broker memory:// is within one process, and the prefork pool has several: start the worker with "
                "--pool threads or solo, or use a real broker"
            )


def warn_of_ignored_limits(worker: Any) -> None:
    """Say so when the app sets Celery's time limits on a pool that ignores them."""
    pool = _pool_of(worker)
    limits = {"task_time_limit": worker.time_limit, "task_soft_time_limit": worker.soft_time_limit}
    ignored = [f"{name}={value}" for name, value in limits.items() if value]
    if ignored and pool in _WITHOUT_LIMITS:
        logger.warning(
            "%s: the %s pool ignores Celery's time limits. Use Step(timeout=...): it holds on every pool",
            ", ".join(ignored),
            pool,
        )


def warn_of_eagerness(app: Celery) -> None:
    """Say so when nothing that is started would ever come to the worker."""
    if app.conf.task_always_eager:
        logger.warning(
            "task_always_eager is on: sagas run where they are started, and those that this worker recovers in its "
            "main process. It is for tests"
        )


def warn_of_silence(app: Celery) -> None:
    """Say so when a Redis that falls silent would hold a worker, and its recovery, for ever."""
    with app.connection_for_write() as connection:
        if connection.transport.driver_type == "redis" and not connection.transport_options.get("socket_timeout"):
            logger.warning(
                "broker_transport_options has no socket_timeout: whoever publishes on a connection to Redis that hangs "
                "waits for ever. Set it, for example to 30 (seconds)"
            )


def _pool_of(worker: Any) -> str:
    """Return what the worker's pool is called with `--pool`."""
    module = getattr(worker.pool_cls, "__module__", "").rpartition(".")[2]
    return "threads" if module == "thread" else module


# -- events -------------------------------------------------------------------------------------------------------

#: The pools that handlers are handed to. With any other a handler runs in the thread that reads its queue.
_POOLS = ("prefork", "threads")


class EventsStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs a relay, and a reader for each queue of events that the worker is to consume, whose handlers its pool runs.

    Which queues: those that `-Q` names, or without `-Q` all of the services'. They are none of Celery's own.
    """

    requires = {"celery.worker.components:Pool"}  # noqa: RUF012 - Celery's own convention

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._events: Events = parent.app.sagas.events
        #: Those that this worker consumes.
        self.event_queues = _take_event_queues(self._events, parent.app.amqp.queues)
        self._pool: _InPool | None = None

    def start(self, parent: Any) -> None:
        runner: Runner = InThread(self._events.handle)
        if _pool_of(parent) in _POOLS:
            runner = self._pool = _InPool(parent, self._events)
        self._consumers = self._events.consumers(runner, self.event_queues)
        self._consumers.start()
        self._events.relay.start()
        signals.worker_shutdown.connect(self._finish, weak=False)
        logger.info("events: consuming %s", ", ".join(self._consumers.queues) or "no queue")

    def register_with_event_loop(self, parent: Any, hub: Any) -> None:  # noqa: ARG002
        """The worker's loop begins, at the start and after each loss of its connection."""
        if self._pool is not None:
            self._pool.loop_begins()

    def close(self, parent: Any) -> None:  # noqa: ARG002
        """The worker is about to stop: begin nothing more, while the pool still runs what it has."""
        self._events.relay.stop()
        self._consumers.stop(grace=float("inf"))

    def stop(self, parent: Any) -> None:
        """Do nothing: the pool is stopped after this, and what it still ends must be acknowledged."""

    terminate = stop

    def _finish(self, **_: Any) -> None:
        signals.worker_shutdown.disconnect(self._finish)
        self._consumers.stop(grace=1.0)
        self._consumers.join(5.0)


def _take_event_queues(events: Events, queues: Any) -> list[str]:
    """Return the queues of events that this worker is to consume, and take them from those that Celery consumes."""
    ours = [subscription.queue for subscription in events.subscriptions]
    if queues._consume_from is None:  # noqa: SLF001 - there is no other way to see that -Q was not given
        return ours
    named = [queue for queue in ours if queue in queues.consume_from]
    queues.deselect(named)
    return named


def _handle_in_child(call: Call) -> Outcome:
    outcome: Outcome = current_app.sagas.events.handle(call)
    return outcome


class _InPool:
    """Has the worker's pool run handlers, and takes turns with its tasks."""

    def __init__(self, worker: Any, events: Events) -> None:
        self._worker = worker
        self._events = events
        self._handoffs: set[_Handoff] = set()
        self._began = False

    def submit(self, call: Call) -> Future[Outcome]:
        handoff = _Handoff(call, self._events, _pool_of(self._worker))
        self._handoffs.add(handoff)
        handoff.future.add_done_callback(lambda _: self._handoffs.discard(handoff))
        if self._worker.use_eventloop:
            # The pool of a worker with an event loop belongs to the thread that the loop runs in.
            self._worker.hub.call_soon(self._hand_over, handoff)
        else:
            self._hand_over(handoff)
        return handoff.future

    def _hand_over(self, handoff: _Handoff) -> None:
        handoff.handed_over = True
        self._worker.process_task(handoff)  # as the worker does with a task: it waits for a free place

    def loop_begins(self) -> None:
        """Hand over once more what the pool has not begun: when the worker loses its connection, it forgets that."""
        began, self._began = self._began, True
        if began:
            for handoff in list(self._handoffs):
                if handoff.handed_over and not handoff.begun:
                    self._hand_over(handoff)


class _Handoff:
    """A delivery on its way through the pool. To the worker it is a request."""

    def __init__(self, call: Call, events: Events, pool: str) -> None:
        self.future: Future[Outcome] = Future()
        self.handed_over = False
        self.begun = False
        self._call = call
        self._target = _handle_in_child if pool == "prefork" else events.handle

    def execute_using_pool(self, pool: Any) -> None:
        pool.apply_async(
            self._target,
            args=(self._call,),
            accept_callback=self._on_begun,
            callback=self._on_ended,
            error_callback=self._on_cut_off,
        )

    def _on_begun(self, _pid: int, _at: float) -> None:
        self.begun = True

    def _on_ended(self, outcome: Outcome) -> None:
        with suppress(InvalidStateError):  # it was handed over twice
            self.future.set_result(outcome)

    def _on_cut_off(self, info: Any) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(RuntimeError(str(info.exception)))
