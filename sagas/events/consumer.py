"""The consumer: receives the messages of one queue, has them handled, and acts on the outcome.

::

    broker -> receive -> lanes, one per key -> admitted? -> a slot in the pool -> handled -> ack
                             ^                                   |
                             '--- waits, while others continue --'- failed      -> dead letter, ack
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
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
from sagas.events.inbox import MOST_BEGUN, Call, End, Outcome
from sagas.events.lanes import Job, Lanes
from sagas.events.letters import replay_of
from sagas.events.runners import Runner
from sagas.events.services import Subscription
from sagas.observers import Observers
from sagas.text import describe

__all__ = ["Admits", "Consumer", "Consumers"]

logger = logging.getLogger(__name__)

#: Seconds that a receive may take: when nothing else is going on, and otherwise.
_IDLE, _BUSY = 1.0, 0.02

#: The most messages held at once, if messages of failing keys fill the prefetch.
_MOST_HELD = 2_000

#: Seconds between collections of what the broker itself gave up on.
_COLLECT = 30.0

#: The longest pause after an error, in seconds.
_LONGEST_PAUSE = 30.0


class Admits(Protocol):
    """What a consumer needs of `sagas.events.guards.StormGuard`."""

    def admit(self, envelope: Envelope, subscription: Subscription) -> Any:
        """Return a decision: ADMIT, THROTTLE for `seconds`, or DEAD_LETTER for a `reason`."""


class Consumer:
    """Reads one queue in its own thread, and has `runner` handle the messages.

    A message is acknowledged only after its effect, or its dead letter, is committed. A failed message is retried as
    the subscription's `Retry` says; other messages with its key wait for it, the rest continue.

    `declare`: creates the topology at the broker; called before the queue is read, and after an error.
    `prefetch`: how many messages are held at once, as long as any of them can begin.
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
        self._prefetch = prefetch
        self._concurrency = concurrency
        self._lease = lease
        self._alone = alone or threading.Lock()
        self._collect = collect
        self._collect_at = 0.0  # the earliest time, by the monotonic clock
        self._owner = f"{socket.gethostname()[:50]}:{os.getpid()}:{secrets.token_hex(8)}"
        self._lanes = Lanes()
        self._ended: queue.SimpleQueue[tuple[Job, Future[Outcome]]] = queue.SimpleQueue()
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
        """How many handlers are running."""
        return sum(job.running for job in self._lanes.jobs())

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
        message keeps failing would block those of all other keys.
        """
        held = len(self._lanes.jobs())
        if held < self._prefetch or self.running >= self._concurrency:
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
        running = self.running
        self._look_up()
        for job in self._lanes.heads():
            if job.verdict is not None and not job.running and job.due <= now:
                if not self._file(job):
                    return
                continue
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
            self._begin(job)
            running += 1

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
            self._dead_letter(job, f"dead-lettered: {admission.reason}")
        else:
            job.admitted = True
        return job.admitted

    def _begin(self, job: Job) -> None:
        call = Call(
            queue=self.queue,
            topic=job.delivery.topic,
            body=job.delivery.body,
            headers=dict(job.delivery.headers),
            attempt=job.attempts + 1,
            redelivered=job.redelivered,
            owner=self._owner if self.subscription.ordered else None,
        )
        job.running = True
        self._runner.submit(call).add_done_callback(lambda future: self._ended.put((job, future)))

    def _finish_what_ended(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._finish(*self._ended.get_nowait())

    def _finish(self, job: Job, future: Future[Outcome]) -> None:
        job.running = False
        if job.alone:
            job.alone = False
            self._alone.release()
        error = future.exception()
        outcome = Outcome(End.LOST, f"{type(error).__name__}: {error}") if error else future.result()
        self._observers.delivered(self.queue, outcome.end.value)
        if job.reader is not self._reader:
            self._lanes.remove(job)  # the broker redelivers it, and the inbox knows whether it was handled
            return
        match outcome.end:
            case End.HANDLED | End.SKIPPED | End.UNSUBSCRIBED | End.PARKED:
                if outcome.end is End.HANDLED:
                    self._breaker.succeeded()
                self._done(job)
            case End.REJECTED:
                self._dead_letter(job, outcome.error)
            case End.FAILED:
                self._breaker.failed()
                self._failed(job, outcome)
            case End.LOST:
                self._breaker.failed()
                self._lost(job, outcome)
            case End.DEFERRED:
                self._rest(outcome.error)

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

    def _done(self, job: Job) -> None:
        self._lanes.remove(job)
        job.reader.ack(job.delivery)
        self._pause = 0.0


class Consumers:
    """Several consumers, started and stopped together."""

    def __init__(self, consumers: Iterable[Consumer]) -> None:
        self._consumers = list(consumers)

    @property
    def queues(self) -> list[str]:
        return [consumer.queue for consumer in self._consumers]

    def start(self) -> None:
        for consumer in self._consumers:
            consumer.start()

    def stop(self, grace: float) -> None:
        """Begin no more messages, and end running handlers within `grace` seconds. Does not wait."""
        for consumer in self._consumers:
            consumer.stop(grace)

    @property
    def cut_off(self) -> list[str]:
        """The queues whose handlers have not ended."""
        return [consumer.queue for consumer in self._consumers if consumer.running]

    def join(self, timeout: float) -> bool:
        """Wait until all have ended, at most `timeout` seconds; return whether they have."""
        until = time.monotonic() + timeout
        return all(consumer.join(max(until - time.monotonic(), 0.0)) for consumer in self._consumers)
