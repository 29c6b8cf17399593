"""What a Celery worker does for events: it relays the outbox, and consumes queues whose handlers its pool runs."""

from __future__ import annotations

import logging
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from celery import bootsteps, current_app, signals

from sagas.events.bus import Events
from sagas.events.consumer import InThread, Runner
from sagas.events.inbox import Call, Outcome
from sagas.worker.recovery import pool_of

__all__ = ["EventsStep"]

logger = logging.getLogger(__name__)

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
        if pool_of(parent) in _POOLS:
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
        handoff = _Handoff(call, self._events, pool_of(self._worker))
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
