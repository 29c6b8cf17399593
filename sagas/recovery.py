"""What makes messages dispensable: a look, every second, at the sagas that are due.

Most of what is found is certain: a dead claim, a timeout, a retry whose time has come. Whether the message of a saga is
lost, or waits in a long queue, `probes` finds out.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from kombu.exceptions import OperationalError

from sagas.canvas import Canvas
from sagas.checkpoints import SagaRecord
from sagas.endings import ends_process
from sagas.engine import Next
from sagas.errors import DefinitionMissing, PayloadUnreadable, StoreRefused, StoreUnavailable
from sagas.orchestrator import Orchestrator
from sagas.plan import Plan
from sagas.probes import Advice, Overdue, Queue
from sagas.scheduler import Scheduler
from sagas.task_names import task_name
from sagas.text import clean, describe
from sagas.transitions import Verdict

__all__ = ["Recovery"]

logger = logging.getLogger(__name__)

#: Sagas taken up at one look.
_BATCH = 100

#: Seconds that other workers' recovery leaves a saga alone after one of them has taken it up.
_LEASE = 10.0

#: After an error the pause grows up to this many intervals.
_LONGEST_PAUSE = 30

#: Seconds that a look may spend on a broker that does not answer.
_BROKER_PATIENCE = 5.0

#: Times in a row that the database may not answer before a look is given up.
_STORE_PATIENCE = 3

#: Seconds for which a saga that cannot be dealt with is left alone at first, and at most.
_FIRST_REST, _LONGEST_REST = 10.0, 60.0

#: The same, at first, for one that another worker may have the code for: its recovery is kept off for as long.
_ANOTHERS_REST = 1.0

#: So many sagas that cannot be dealt with are remembered.
_MOST_RESTS = 10_000

#: What a broker raises that does not answer. Anything else is the fault of what was to be sent.
_BROKER_AWAY = (OperationalError, OSError)


class Recovery:
    """Claims due sagas in the database, examines them, and sends what is left of them.

    Every worker runs one, in a thread. They keep out of each other's way by leases, so any number may run, and as long
    as one does no saga stands still. What goes wrong with one saga is its own: the others are seen to all the same.
    """

    def __init__(self, orchestrator: Orchestrator, canvas: Canvas, interval: float, scheduler: Scheduler) -> None:
        self._orchestrator = orchestrator
        self._scheduler = scheduler
        self._canvas = canvas
        self._interval = interval
        self._queues: dict[str, Queue] = {}  # by task; those of which a saga was overdue
        self._rests: dict[str, float] = {}  # by saga: for how long it was left alone, since it could not be dealt with
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def run_once(self) -> int:
        """Look once. Returns how many sagas were sent a message.

        Raises `StoreUnavailable` or `StoreRefused` where that is not due to one saga, and what the broker raised where
        it takes no message at all.
        """
        look = _Look()
        waiting, others = self._look_at(self._orchestrator.store.due(_BATCH, _LEASE))
        for next_ in waiting:
            self._see_to(next_.record.id, partial(self._follow, next_, look), look)
        for saga_id in others:
            self._see_to(saga_id, partial(self._examine, saga_id, look), look)
        for queue in self._queues_that_wait():
            for saga in queue.take_lost(_BATCH):
                self._see_to(saga.saga_id, partial(self._send_again, saga, look), look)
            while queue.wants_probe(self._orchestrator.store.now()) and (oldest := queue.take_oldest()):
                self._see_to(oldest.saga_id, partial(self._send_again, oldest, look, queue), look)
        self._scheduler.run_once()
        if observers := self._orchestrator.observers:
            observers.recovered(look.sent)
        if look.broker_error is not None and not look.sent:
            raise look.broker_error
        return len(look.sent)

    def start(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="sagas-recovery", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        pause = self._interval
        # Spread, so that workers started together do not look together.
        while not self._stop.wait(pause * random.uniform(0.8, 1.2)):  # noqa: S311
            try:
                while self.run_once() >= _BATCH and not self._stop.is_set():
                    pass
                pause = self._interval
            except (StoreUnavailable, StoreRefused, *_BROKER_AWAY) as error:
                pause = min(pause * 2, self._interval * _LONGEST_PAUSE)
                logger.warning("recovery pauses for %.1f s: %r", pause, error)
            except BaseException as error:
                if ends_process(error):
                    raise
                pause = min(pause * 2, self._interval * _LONGEST_PAUSE)
                logger.exception("recovery failed and pauses for %.1f s", pause)

    def _look_at(self, saga_ids: Sequence[str]) -> tuple[Sequence[Next], Sequence[str]]:
        try:
            return self._orchestrator.look_at(saga_ids)
        except Exception as error:  # noqa: BLE001 - looked at one by one, whose it is will show
            logger.warning("%d sagas are looked at one by one: %r", len(saga_ids), error)
            return (), saga_ids

    # -- one saga -----------------------------------------------------------------------------------------------

    def _examine(self, saga_id: str, look: _Look) -> None:
        self._follow(self._orchestrator.examine(saga_id), look)

    def _follow(self, next_: Next, look: _Look) -> None:
        if next_.verdict is Verdict.DISPATCH:
            self._send(next_, look)
        elif next_.verdict is Verdict.OVERDUE and next_.plan:
            plan, record = next_.plan, next_.record
            step = record.step(plan.stages[0].steps[0])
            saga = Overdue(record.id, step.name, record.sent_at(step))
            task = task_name(plan.saga, step.node, plan.direction)
            queue = self._queues.setdefault(task, Queue(self._orchestrator.timing.redispatch_after))
            match queue.advise(saga, self._orchestrator.store.now()):
                case Advice.SEND:
                    self._send_again(saga, look)
                case Advice.PROBE:
                    self._send_again(saga, look, queue)

    def _queues_that_wait(self) -> list[Queue]:
        """Return the queues of which sagas were held back, or a probe is on the way, with what has arrived by now."""
        waiting = {task: queue for task, queue in self._queues.items() if queue.waits}
        if waiting:
            for task, arrived in self._orchestrator.store.arrivals(waiting).items():
                waiting[task].note(arrived)
        return list(waiting.values())

    def _send_again(self, saga: Overdue, look: _Look, probed: Queue | None = None) -> None:
        next_ = self._orchestrator.redispatch(saga.saga_id, saga.step, saga.sent_at)
        if next_.plan:
            self._send(next_, look, probed)

    def _send(self, next_: Next, look: _Look, probed: Queue | None = None) -> None:
        """Send what is left of a saga; with `probed`, as the probe of that queue."""
        record, plan, began = next_.record, next_.plan, time.monotonic()
        assert plan is not None
        error = look.broker_error
        if error is None or look.seconds_lost <= _BROKER_PATIENCE:
            error = self._dispatch(plan, None if probed is None else record.updated_at)
        if error is not None:
            if away := isinstance(error, _BROKER_AWAY):
                look.broker_error, look.seconds_lost = error, look.seconds_lost + time.monotonic() - began
            why = clean(f"{type(error).__name__}: {describe(error)}")
            logger.warning("saga %s (%s) could not be sent to its queue: %s", record.name, record.id, why)
            self._orchestrator.not_sent(record.id, why, broker_answers=not away)
            self._tell_of_failure(record.name)
            return
        logger.info("saga %s (%s): recovery sent %s", record.name, record.id, plan.stages)
        look.sent.append(record)
        if probed is not None:
            probed.probe(record.updated_at)

    def _dispatch(self, plan: Plan, probe: datetime | None) -> Exception | None:
        try:
            self._canvas.dispatch(plan, probe=probe)
        except Exception as error:  # noqa: BLE001 - whatever a transport raises
            return error
        return None

    # -- what goes wrong with one saga --------------------------------------------------------------------------

    def _see_to(self, saga_id: str, do: Callable[[], None], look: _Look) -> None:
        try:
            do()
        except (StoreUnavailable, StoreRefused) as error:
            look.silent += 1
            if look.silent == _STORE_PATIENCE:
                raise
            logger.warning("saga %s could not be looked at: %s", saga_id, error)
        except (DefinitionMissing, PayloadUnreadable) as error:
            logger.error("%s", error)  # noqa: TRY400 - the message is the whole story
            self._leave_alone(saga_id, str(error), _ANOTHERS_REST)
        except Exception as error:
            logger.exception("saga %s could not be looked at", saga_id)
            self._leave_alone(saga_id, f"{type(error).__name__}: {describe(error)}")
        else:
            look.silent = 0
            self._rests.pop(saga_id, None)

    def _leave_alone(self, saga_id: str, why: str, first: float = _FIRST_REST) -> None:
        """Look at a saga less and less often while nothing can be done about it, so that others get their turn."""
        if len(self._rests) >= _MOST_RESTS:
            self._rests.clear()
        rest = self._rests[saga_id] = min(2 * self._rests.get(saga_id, first / 2), _LONGEST_REST)
        name = "unknown"
        try:
            name = self._orchestrator.store.postpone(saga_id, rest, clean(why)) or name
        except (StoreUnavailable, StoreRefused) as error:
            logger.warning("saga %s: %s", saga_id, error)
        self._tell_of_failure(name)

    def _tell_of_failure(self, name: str) -> None:
        if observers := self._orchestrator.observers:
            observers.recovery_failed(name)


@dataclass(slots=True)
class _Look:
    """What came of a look so far."""

    sent: list[SagaRecord] = field(default_factory=list)
    broker_error: Exception | None = None  #: that no broker answered
    seconds_lost: float = 0.0  #: with brokers that did not answer
    silent: int = 0  #: times in a row that the database did not answer
