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
from functools import partial

from kombu.exceptions import OperationalError

from sagas.batches import likeness
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

#: Seconds for which a saga is held back at most, for others that may share its message.
_LONGEST_HELD = 0.5

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
        try:
            self._look_at_all(look)
        finally:
            self._send_held(look)
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

    def _look_at_all(self, look: _Look) -> None:
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
            self._send_or_hold(next_, look)
        elif next_.verdict is Verdict.OVERDUE and next_.plan:
            plan, record = next_.plan, next_.record
            step = record.step(plan.stages[0].steps[0])
            saga = Overdue(record.id, step.name, record.sent_at(step), sent_before=step.sent_at is not None)
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
        if not next_.plan:
            return
        if probed is None and not saga.sent_before:
            self._send_or_hold(next_, look)
        elif self._send(next_, look, probe=probed is not None) and probed is not None:
            probed.probe(next_.record.updated_at)

    # -- sending ------------------------------------------------------------------------------------------------

    def _send_or_hold(self, next_: Next, look: _Look) -> None:
        """Send what is left of a saga, or hold it back until others like it can go with it."""
        if not self._may_share(next_):
            self._send(next_, look)
            return
        look.hold(next_)
        if look.held_for > _LONGEST_HELD:
            self._send_held(look)

    def _may_share(self, next_: Next) -> bool:
        """Tell whether a saga may share a message.

        One that may be what its worker died of, or that hangs, has a message to itself: it must not take others along.
        """
        plan = next_.plan
        if not plan or not self._canvas.shared.may_share(plan):
            return False
        step = next_.record.step(plan.stages[0].steps[0])
        return not (step.failures or step.lost)

    def _send_held(self, look: _Look) -> None:
        for alike in look.take_held():
            for first in range(0, len(alike), self._canvas.batches.size):
                self._send_together(alike[first : first + self._canvas.batches.size], look)

    def _send_together(self, alike: Sequence[Next], look: _Look) -> None:
        """Send sagas that are alike in one message. What a broker that does not answer says is told to each."""
        plans = [next_.plan for next_ in alike if next_.plan]
        error = self._try(lambda: self._canvas.shared.send_one(plans), look) if len(plans) > 1 else None
        for next_ in alike:
            if len(plans) == 1 or not (error is None or isinstance(error, _BROKER_AWAY)):
                self._see_to(next_.record.id, partial(self._send, next_, look), look)  # whose fault it is will show
            elif error is not None:
                self._see_to(next_.record.id, partial(self._not_sent, next_.record, error), look)
            else:
                self._note_sent(next_, look)

    def _send(self, next_: Next, look: _Look, *, probe: bool = False) -> bool:
        """Send what is left of a saga in a message of its own. Returns whether a broker took it."""
        record, plan = next_.record, next_.plan
        error = self._try(lambda: self._canvas.dispatch(plan, probe=record.updated_at if probe else None), look)
        if error is not None:
            self._not_sent(record, error)
            return False
        self._note_sent(next_, look)
        return True

    def _try(self, send: Callable[[], None], look: _Look) -> Exception | None:
        """Send something, unless brokers that do not answer have cost this look too much. Returns what was raised."""
        if look.broker_error is not None and look.seconds_lost > _BROKER_PATIENCE:
            return look.broker_error
        began = time.monotonic()
        try:
            send()
        except Exception as error:  # noqa: BLE001 - whatever a transport raises
            if isinstance(error, _BROKER_AWAY):
                look.broker_error, look.seconds_lost = error, look.seconds_lost + time.monotonic() - began
            return error
        return None

    @staticmethod
    def _note_sent(next_: Next, look: _Look) -> None:
        assert next_.plan is not None
        logger.info("saga %s (%s): recovery sent %s", next_.record.name, next_.record.id, next_.plan.stages)
        look.sent.append(next_.record)

    def _not_sent(self, record: SagaRecord, error: Exception) -> None:
        why = clean(f"{type(error).__name__}: {describe(error)}")
        logger.warning("saga %s (%s) could not be sent to its queue: %s", record.name, record.id, why)
        self._orchestrator.not_sent(record.id, why, broker_answers=not isinstance(error, _BROKER_AWAY))
        self._tell_of_failure(record.name)

    # -- what goes wrong with one saga --------------------------------------------------------------------------

    def _see_to(self, saga_id: str, do: Callable[[], object], look: _Look) -> None:
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
    _held: dict[Plan, list[Next]] = field(default_factory=dict)  #: to be sent, by what they have in common
    _held_since: float = 0.0

    def hold(self, next_: Next) -> None:
        assert next_.plan is not None
        if not self._held:
            self._held_since = time.monotonic()
        self._held.setdefault(likeness(next_.plan), []).append(next_)

    @property
    def held_for(self) -> float:
        """Seconds for which the first has been held back."""
        return time.monotonic() - self._held_since if self._held else 0.0

    def take_held(self) -> list[list[Next]]:
        """Return those that are held back, together those that may share a message."""
        held, self._held = list(self._held.values()), {}
        return held
