"""The consumer: receives the messages of one queue, has them handled, and acts on the outcome.

::

    broker -> receive -> lanes, one per key -> admitted? -> a slot in the pool -> handled -> ack
                             ^                                   |
                             '--- waits, while others continue --'- failed      -> dead letter, ack

A subscription with a `batch_size` takes a slot for several messages. If their transaction is rolled back, each goes
through the picture again, alone.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol

from sqlalchemy import Engine

from sagas.errors import BrokerUnavailable, QueueMismatch, SagaError, StoreUnavailable
from sagas.events import leases, redeliveries
from sagas.events.breakers import BreakerState, CircuitBreaker
from sagas.events.brokers import Broker, Reader
from sagas.events.deadletters import DeadLetters
from sagas.events.envelope import Envelope
from sagas.events.inbox import MOST_BEGUN, Batch, Call, End, Outcome
from sagas.events.lanes import Job, Lanes
from sagas.events.letters import replay_of
from sagas.events.runners import Runner
from sagas.events.services import Subscription
from sagas.observers import Observers
from sagas.text import describe

__all__ = ["Admits", "Consumer"]

logger = logging.getLogger(__name__)

#: Seconds that a receive may take: when nothing else is going on, and otherwise.
_IDLE, _BUSY = 1.0, 0.02

#: The most messages held at once, if messages of failing keys fill the prefetch.
_MOST_HELD = 2_000

#: Seconds between collections of what the broker itself gave up on.
_COLLECT = 30.0

#: The longest pause after an error, in seconds.
_LONGEST_PAUSE = 30.0

#: The ends after which a message is acknowledged.
_SETTLED = (End.HANDLED, End.SKIPPED, End.UNSUBSCRIBED, End.PARKED)


class Admits(Protocol):
    """What a consumer needs of `sagas.events.guards.StormGuard`."""

    def admit(self, envelope: Envelope, subscription: Subscription) -> Any:
        """Return a decision: ADMIT, THROTTLE for `seconds`, or DEAD_LETTER for a `reason`."""


class Consumer:
    """Reads one queue in its own thread, and has `runner` handle the messages.

    A message is acknowledged only after its effect, or its dead letter, is committed. A failed message is retried as
    the subscription's `Retry` says; other messages with its key wait for it, the rest continue.

    `declare`: creates the topology at the broker; called before the queue is read, and after an error.
    `prefetch`: how many messages are held at once, as long as any of them can begin; at least two batches.
    `concurrency`: how many handlers may run at once.
    `lease`: seconds after which a silent reader loses an ordered queue; renewed after a third. It must be longer than
        the broker takes to redeliver what a dead reader had: otherwise newer messages overtake them.
    `collect`: collects what the broker itself gave up on in this queue; called periodically.
    `alone`: held while a message runs that was begun before and never ended. All consumers of a process share it.
    """

    def __init__(
        self,
        subscription: Subscription,
        *,
        engine: Engine,
        broker: Broker,
        declare: Callable[[], object],
        runner: Runner,
        dead_letters: DeadLetters,
        breaker: CircuitBreaker,
        guards: Admits | None = None,
        prefetch: int = 20,
        concurrency: int = 4,
        lease: float = 30.0,
        alone: threading.Lock | None = None,
        collect: Callable[[], int] = int,
        observers: Observers,
    ) -> None:
        self._observers = observers
        self.subscription = subscription
        self.queue = subscription.queue
        self._engine = engine
        self._broker = broker
        self._declare = declare
        self._runner = runner
        self._dead_letters = dead_letters
        self._breaker = breaker
        self._guards = guards
        batch = subscription.batch_size
        self._prefetch = prefetch if batch == 1 else max(prefetch, 2 * batch)  # one waits while the other runs
        self._concurrency = concurrency
        self._lease = lease
        self._alone = alone or threading.Lock()
        self._collect = collect
        self._collect_at = 0.0  # the earliest time, by the monotonic clock
        self._owner = f"{socket.gethostname()[:50]}:{os.getpid()}:{secrets.token_hex(8)}"
        self._lanes = Lanes()
        self._ended: queue.SimpleQueue[tuple[Sequence[Job], Future[Outcome | Sequence[Outcome]]]] = queue.SimpleQueue()
        self._running = 0
        self._reader: Reader | None = None
        self._leased_until = 0.0  # by the monotonic clock
        self._ask_again_at = 0.0  # for the lease, after the database was unavailable
        self._resume_at = 0.0  # nothing begins or is received before
        self._pause = 0.0
        self._stop = threading.Event()
        self._give_up_at: float | None = None
        self._thread: threading.Thread | None = None

    # -- the thread ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread = threading.Thread(target=self.run, name=f"sagas-consumer-{self.queue}", daemon=True)
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Begin no more messages, and end when running handlers end, within `grace` seconds. Does not wait."""
        self._give_up_at = time.monotonic() + grace
        self._stop.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread; return whether it has ended."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def running(self) -> int:
        """How many handlers are running. A batch is one."""
        return self._running

    def run(self) -> None:
        """Read until `stop`. Survives outages of the broker and the database."""
        while not self._over():
            try:
                self._turn()
            except BrokerUnavailable as error:
                self._reset()
                self._rest(f"the broker is unavailable: {error}")
            except SagaError as error:
                self._rest(str(error))
            except Exception:
                logger.exception("%s: reading failed", self.queue)
                self._reset()
                self._rest("reading failed")
        self._close()

    def _over(self) -> bool:
        if not self._stop.is_set():
            return False
        assert self._give_up_at is not None
        return not self.running or time.monotonic() > self._give_up_at

    def _turn(self) -> None:
        """Do one round of work. Takes no longer than `_IDLE`."""
        self._finish_what_ended()
        if self._stop.is_set() or not self._is_ours():
            self._wait(_BUSY if self._stop.is_set() else _IDLE)
            return
        now = time.monotonic()
        if now < self._resume_at:
            self._wait(min(self._resume_at - now, _IDLE))
            return
        self._begin_what_can(now)
        now = time.monotonic()
        if now < self._resume_at:  # the breaker is open
            return
        wait, room = self._next_due(now), self._room()
        if room <= 0:
            self._wait(wait)
        elif self._ended.empty():
            self._receive(room, wait)

    def _room(self) -> int:
        """Return how many more messages to ask for.

        This exceeds the prefetch only if no held message can begin. Otherwise the messages of one key whose first
        message keeps failing would block those of all other keys. Batches that run with all that is held block nobody.
        """
        jobs = self._lanes.jobs()
        held = len(jobs)
        in_batches = self.subscription.batch_size > 1 and all(job.running for job in jobs)
        if held < self._prefetch or self._running >= self._concurrency or in_batches:
            return self._prefetch - held
        return min(self._prefetch, _MOST_HELD - held)

    def _next_due(self, now: float) -> float:
        if self.running:
            return _BUSY
        return min([_IDLE, *(max(job.due - now, 0.0) for job in self._lanes.heads())])

    def _wait(self, seconds: float) -> None:
        """Wait until a handler ends, but no longer than `seconds`."""
        with suppress(queue.Empty):
            self._finish(*self._ended.get(timeout=max(seconds, 0.001)))

    def _rest(self, why: str) -> None:
        """Pause for a while, longer each time."""
        self._pause = min(max(self._pause * 2, 0.5), _LONGEST_PAUSE)
        self._resume_at = time.monotonic() + self._pause
        logger.warning("%s: paused for %.1f s: %s", self.queue, self._pause, why)

    # -- receiving ----------------------------------------------------------------------------------------------

    def _receive(self, limit: int, timeout: float) -> None:
        if self._reader is None:
            self._declare_queue()
            self._reader = self._broker.reader(self.queue)
        if time.monotonic() >= self._collect_at:
            self._collect_at = time.monotonic() + _COLLECT
            self._collect()
        received = self._reader.receive(limit, max(timeout, 0.001))
        if not self._lanes.lines:  # none of the messages that caused the pause are left
            self._pause = 0.0
        for delivery in received:
            self._lanes.add(Job.of(delivery, self._reader))

    def _declare_queue(self) -> None:
        """Declare everything. A mismatch of another queue is reported by the consumer of that queue."""
        try:
            self._declare()
        except QueueMismatch as error:
            if self.queue in error.queues:
                self._observers.delivered(self.queue, End.DOWN)
                logger.error("%s: cannot read the queue: %s", self.queue, error.queues[self.queue])  # noqa: TRY400
                raise

    def _reset(self) -> None:
        """Reconnect. Messages that do not run yet are dropped here: the broker redelivers them."""
        for job in self._lanes.jobs():
            if not job.running:
                self._lanes.remove(job)
        self._close()

    def _close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
        if self._leased_until and self._stop.is_set():
            self._leased_until = 0.0
            with suppress(StoreUnavailable):
                leases.release(self._engine, self.queue, self._owner)

    def _is_ours(self) -> bool:
        """Return whether this process may read the queue: only one process at a time reads an ordered queue."""
        if not self.subscription.ordered:
            return True
        now = time.monotonic()
        if now < self._leased_until - self._lease * 2 / 3:
            return True
        if now < self._ask_again_at:
            return False
        try:
            ours = leases.take(self._engine, self.queue, self._owner, self._lease)
        except StoreUnavailable as error:
            self._rest(str(error))
            self._ask_again_at = self._resume_at
            return False
        if ours:
            self._leased_until = now + self._lease
            return True
        if self._leased_until:
            logger.warning("%s: another process has taken over the queue", self.queue)
            self._leased_until = 0.0
            self._reset()
        return False

    # -- handling -----------------------------------------------------------------------------------------------

    def _begin_what_can(self, now: float) -> None:
        self._look_up()
        for job in self._lanes.heads():
            if job.verdict is not None and not job.running and job.due <= now:
                if not self._file(job):
                    return
                continue
            running = self._running
            if running >= self._concurrency or (running and self._breaker.state is BreakerState.HALF_OPEN):
                continue
            if job.running or job.due > now or not self._admitted(job):
                continue
            # A message that kills its process must not take others with it each time, or they would look as guilty. The
            # first time nobody knows which one it was: so what was begun and never ended runs alone from then on.
            job.alone = bool(job.begun or job.lost)
            if job.alone and not self._alone.acquire(blocking=False):
                job.due = now + _BUSY
                continue
            if (seconds := self._breaker.wait()) > 0:
                self._resume_at = time.monotonic() + seconds
                if job.alone:
                    self._alone.release()
                return
            self._begin(self._with_others(job, now))

    def _with_others(self, first: Job, now: float) -> Sequence[Job]:
        """Return a message with those that share its transaction. Messages of one key follow each other."""
        size = self.subscription.batch_size
        if size == 1 or not first.joins_batches or self._breaker.state is not BreakerState.CLOSED:
            return [first]
        batch: list[Job] = []
        for line in self._lanes.all():
            for job in line:
                can_begin = not job.running and job.due <= now and job.verdict is None
                if not (can_begin and job.joins_batches and self._admitted(job)):
                    break  # those behind it wait for it
                batch.append(job)
                if len(batch) == size:
                    return batch
        return batch

    def _look_up(self) -> None:
        """Look up, in one query, how often the redelivered messages were begun before."""
        unknown = {}
        for job in self._lanes.jobs():
            if job.begun is None and job.delivery.deliveries > 1 and job.envelope is not None:
                unknown[job] = job.envelope.event_id
        if not unknown:
            return
        begun = redeliveries.times_begun(self._engine, self.queue, set(unknown.values()))
        for job, event_id in unknown.items():
            job.begun = begun.get(event_id, 0)

    def _admitted(self, job: Job) -> bool:
        """Ask the guards once for each message. A person has already decided on replays."""
        assert job.envelope is not None
        if job.admitted or self._guards is None or replay_of(job.envelope) is not None:
            return True
        admission = self._guards.admit(job.envelope, self.subscription)
        if admission.decision == "throttle":
            job.due = time.monotonic() + admission.seconds
        elif admission.decision == "dead_letter":
            job.verdict = f"dead-lettered: {admission.reason}"  # filed when it is the first of its key
        else:
            job.admitted = True
        return job.admitted

    def _begin(self, jobs: Sequence[Job]) -> None:
        calls = tuple(
            Call(
                queue=self.queue,
                topic=job.delivery.topic,
                body=job.delivery.body,
                headers=dict(job.delivery.headers),
                attempt=job.attempts + 1,
                redelivered=job.redelivered,
                owner=self._owner if self.subscription.ordered else None,
            )
            for job in jobs
        )
        for job in jobs:
            job.running = True
        self._running += 1
        future = self._runner.submit(calls[0] if len(calls) == 1 else Batch(calls))
        future.add_done_callback(lambda future: self._ended.put((jobs, future)))

    def _finish_what_ended(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._finish(*self._ended.get_nowait())

    def _finish(self, jobs: Sequence[Job], future: Future[Outcome | Sequence[Outcome]]) -> None:
        self._running -= 1
        outcomes = _outcomes(future, len(jobs))
        for job, outcome in zip(jobs, outcomes, strict=True):
            job.running = False
            if job.alone:
                job.alone = False
                self._alone.release()
            if outcome.end is not End.ROLLED_BACK:
                self._observers.delivered(self.queue, outcome.end.value)
        if jobs[0].reader is not self._reader:
            for job in jobs:  # the broker redelivers it, and the inbox knows whether it was handled
                self._lanes.remove(job)
            return
        ends = {outcome.end for outcome in outcomes}
        if End.HANDLED in ends:
            self._breaker.succeeded()
        if ends & {End.FAILED, End.LOST}:
            self._breaker.failed()
        if End.DEFERRED in ends:
            self._rest(outcomes[0].error)
        self._done(*(job for job, outcome in zip(jobs, outcomes, strict=True) if outcome.end in _SETTLED))
        for job, outcome in zip(jobs, outcomes, strict=True):
            self._act_on(outcome, job)

    def _act_on(self, outcome: Outcome, job: Job) -> None:
        """Do what remains to be done for a message that cannot be acknowledged yet."""
        match outcome.end:
            case End.ROLLED_BACK:
                job.rolled_back = True
            case End.REJECTED:
                self._dead_letter(job, outcome.error)
            case End.FAILED:
                self._failed(job, outcome)
            case End.LOST:
                self._lost(job, outcome)

    def _failed(self, job: Job, outcome: Outcome) -> None:
        retry = self.subscription.retry
        job.attempts += 1
        job.begun = 0  # this attempt ended, so its handler did not die
        if job.attempts >= retry.max_attempts:
            self._dead_letter(job, outcome.error)
            return
        delay = outcome.after
        if delay is None:
            delay = retry.delay_after(job.attempts, f"{job.name}:{job.attempts}")
        job.due = time.monotonic() + delay
        logger.warning(
            "%s: %s failed, attempt %d of %d; next attempt in %.1f s: %s",
            self.queue, job.name, job.attempts, retry.max_attempts, delay, outcome.error,
        )  # fmt: skip

    def _lost(self, job: Job, outcome: Outcome) -> None:
        job.lost += 1
        if job.lost > MOST_BEGUN:
            self._dead_letter(job, f"its process died {job.lost} times while handling it: {outcome.error}")
            return
        job.due = time.monotonic() + self.subscription.retry.delay_after(job.lost, job.name)

    def _dead_letter(self, job: Job, error: str) -> None:
        """Make it a dead letter, now or when the database is available again. It is not handled any more."""
        job.verdict = error
        self._file(job)

    def _file(self, job: Job) -> bool:
        """File a message as a dead letter. Return False if that has to wait."""
        assert job.verdict is not None
        try:
            if job.envelope is None:
                letter = self._dead_letters.file_unread(job.delivery, job.verdict)
            else:
                letter = self._dead_letters.file(
                    self.queue,
                    job.envelope,
                    body=job.delivery.body,
                    headers=job.delivery.headers,
                    error=job.verdict,
                    attempts=job.attempts,
                )
        except Exception as error:  # noqa: BLE001 - it is logged and retried
            # Most likely the database is unavailable. If it rejects only this message, the others continue.
            job.due = time.monotonic() + _LONGEST_PAUSE / 10
            logger.error(  # noqa: TRY400
                "%s: %s cannot be filed as a dead letter. It stays at the broker until it can: %s",
                self.queue, job.name, describe(error),
            )  # fmt: skip
            return False
        self._observers.delivered(self.queue, End.DEAD_LETTERED)
        logger.error("%s: dead letter %d: %s: %s", self.queue, letter, job.name, job.verdict)
        self._done(job)
        return True

    def _done(self, *jobs: Job) -> None:
        if not jobs:
            return
        for job in jobs:
            self._lanes.remove(job)
        jobs[0].reader.ack(*(job.delivery for job in jobs))
        self._pause = 0.0


def _outcomes(future: Future[Outcome | Sequence[Outcome]], count: int) -> Sequence[Outcome]:
    """Return the outcome of each message of a runner's work."""
    error = future.exception()
    if error:
        return [Outcome(End.LOST, f"{type(error).__name__}: {error}")] * count
    result = future.result()
    return [result] if isinstance(result, Outcome) else result
