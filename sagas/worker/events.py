"""Events in a Celery worker: it relays the outbox, and consumes queues whose handlers run in its pool."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from celery import bootsteps, current_app, signals

from sagas.events.bus import Events
from sagas.events.inbox import Batch, Call, Outcome
from sagas.events.runners import InThread, Runner
from sagas.worker.recovery import pool_of

__all__ = ["EventsStep"]

logger = logging.getLogger(__name__)

#: The pools that can run handlers. With any other pool, a handler runs in the thread that reads its queue.
_POOLS = ("prefork", "threads")


class EventsStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs a relay, and a consumer for each event queue of this worker. The worker's pool runs the handlers.

    The queues are those that `-Q` names or, without `-Q`, all queues of the services. They are not Celery's queues.
    """

    requires = {"celery.worker.components:Pool"}  # noqa: RUF012 - Celery's own convention

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._events: Events = parent.app.sagas.events
        #: The event queues that this worker consumes.
        self.event_queues = _take_event_queues(self._events, parent.app.amqp.queues)
        self._pool: _InPool | None = None

    def start(self, parent: Any) -> None:
        runner: Runner = InThread(self._events.handle)
        if pool_of(parent) in _POOLS:
            runner = self._pool = _InPool(parent, self._events)
        self._consumers = self._events.consumers(runner, self.event_queues)
        self._consumers.start()
        self._events.relay.start()
        signals.worker_shutdown.connect(self._finish, weak=False)
        logger.info("events: consuming %s", ", ".join(self._consumers.queues) or "no queue")

    def register_with_event_loop(self, parent: Any, hub: Any) -> None:  # noqa: ARG002
        """The worker's event loop starts: at the beginning, and after each lost connection."""
        if self._pool is not None:
            self._pool.loop_begins()

    def close(self, parent: Any) -> None:  # noqa: ARG002
        """The worker is about to stop: begin no more messages, while the pool finishes what it has."""
        self._events.relay.stop()
        self._consumers.stop(grace=float("inf"))

    def stop(self, parent: Any) -> None:
        """Do nothing: the pool stops after this, and messages that it still finishes must be acknowledged."""

    terminate = stop

    def _finish(self, **_: Any) -> None:
        signals.worker_shutdown.disconnect(self._finish)
        self._consumers.stop(grace=1.0)
        self._consumers.join(5.0)


def _take_event_queues(events: Events, queues: Any) -> list[str]:
    """Return the event queues that this worker consumes, and remove them from those that Celery consumes."""
    ours = [subscription.queue for subscription in events.subscriptions]
    if queues._consume_from is None:  # noqa: SLF001 - the only way to see that -Q was not given
        return ours
    named = [queue for queue in ours if queue in queues.consume_from]
    queues.deselect(named)
    return named


def _handle_in_child(work: Call | Batch) -> Outcome | Sequence[Outcome]:
    outcome: Outcome | Sequence[Outcome] = current_app.sagas.events.handle(work)
    return outcome


class _InPool:
    """Runs handlers in the worker's pool, taking turns with its tasks."""

    def __init__(self, worker: Any, events: Events) -> None:
        self._worker = worker
        self._events = events
        self._handoffs: set[_Handoff] = set()
        self._began = False

    def submit(self, work: Call | Batch) -> Future[Outcome | Sequence[Outcome]]:
        handoff = _Handoff(work, self._events, pool_of(self._worker))
        self._handoffs.add(handoff)
        handoff.future.add_done_callback(lambda _: self._handoffs.discard(handoff))
        if self._worker.use_eventloop:
            # The pool of a worker with an event loop belongs to the thread of that loop.
            self._worker.hub.call_soon(self._hand_over, handoff)
        else:
            self._hand_over(handoff)
        return handoff.future

    def _hand_over(self, handoff: _Handoff) -> None:
        handoff.handed_over = True
        self._worker.process_task(handoff)  # the worker's way for tasks: it waits for a free slot

    def loop_begins(self) -> None:
        """Hand over again what the pool has not begun: a worker that loses its connection forgets such requests."""
        began, self._began = self._began, True
        if began:
            for handoff in list(self._handoffs):
                if handoff.handed_over and not handoff.begun:
                    self._hand_over(handoff)


class _Handoff:
    """A delivery, or a batch of them, on its way through the pool. The worker treats it as a request."""

    def __init__(self, work: Call | Batch, events: Events, pool: str) -> None:
        self.future: Future[Outcome | Sequence[Outcome]] = Future()
        self.handed_over = False
        self.begun = False
        self._work = work
        self._target = _handle_in_child if pool == "prefork" else events.handle

    def execute_using_pool(self, pool: Any) -> None:
        pool.apply_async(
            self._target,
            args=(self._work,),
            accept_callback=self._on_begun,
            callback=self._on_ended,
            error_callback=self._on_cut_off,
        )

    def _on_begun(self, _pid: int, _at: float) -> None:
        self.begun = True

    def _on_ended(self, outcome: Outcome | Sequence[Outcome]) -> None:
        with suppress(InvalidStateError):  # it was handed over twice
            self.future.set_result(outcome)

    def _on_cut_off(self, info: Any) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(RuntimeError(str(info.exception)))
