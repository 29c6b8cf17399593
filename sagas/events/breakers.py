"""Circuit breakers: pause a queue whose handler keeps failing, instead of spending the retries of its messages."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Mapping
from typing import Any

from sagas.events.services import Subscription

__all__ = ["CircuitBreaker", "BreakerState", "CircuitBreakers"]


class BreakerState(enum.StrEnum):
    """What a circuit breaker lets through: everything, nothing, or one message at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Counts one queue's consecutive failures in this process and decides how long to pause the queue.

    The consumer calls `wait` before each message, and `succeeded` or `failed` after it. After `failures` consecutive
    failures the breaker opens for `pause` seconds. It then lets through one message at a time: the first success closes
    the breaker, the first failure opens it again. Safe to use from any thread.

    Unlike most circuit breakers, this one does not wrap a call: a paused queue is not read at all, so no message is
    fetched only to be returned.

    >>> breaker = CircuitBreaker(failures=2, pause=30)
    >>> breaker.failed(), breaker.wait(), breaker.failed(), breaker.wait() > 29
    (None, 0.0, None, True)
    >>> breaker.state
    <BreakerState.OPEN: 'open'>
    """

    def __init__(self, *, failures: int | None, pause: float) -> None:
        self.openings = 0  #: how often it has opened, for metrics
        self._most = failures  # None: it never opens
        self._pause = pause
        self._failures = 0
        self._until: float | None = None  # when to try again; None: closed
        self._trial: tuple[int, float] | None = None  # the thread that may try, and until when it is trusted
        self._lock = threading.Lock()

    def wait(self) -> float:
        """Return how many seconds to pause the queue; 0 to continue."""
        if self._until is None:
            return 0.0
        with self._lock:
            now, me = time.monotonic(), threading.get_ident()
            if self._until is None:
                return 0.0
            if now < self._until:
                return self._until - now
            # A trial thread that found the queue empty has no result to report, so it may ask again. A trial thread
            # that never reports must not block the others forever.
            if self._trial is not None and self._trial[0] != me and now < self._trial[1]:
                return self._trial[1] - now
            self._trial = (me, now + self._pause)
            return 0.0

    def succeeded(self) -> None:
        """Record that a message was handled."""
        if self._failures == 0 and self._until is None:
            return
        with self._lock:
            if self._until is not None and time.monotonic() < self._until:
                return  # its handler started before the breaker opened
            self._failures, self._until = 0, None

    def failed(self) -> None:
        """Record that handling a message failed."""
        if self._most is None:
            return
        with self._lock:
            now = time.monotonic()
            self._failures += 1
            if self._until is None:
                if self._failures < self._most:
                    return
            elif now < self._until:
                return  # its handler started before the breaker opened
            self._until = now + self._pause
            self.openings += 1

    @property
    def state(self) -> BreakerState:
        until = self._until
        if until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if time.monotonic() < until else BreakerState.HALF_OPEN


class CircuitBreakers:
    """The circuit breakers of this process, one for each queue, as the subscriptions declare them.

    A subscription without `breaker` gets one that never opens. So does a subscription that compensates: compensations
    are never paused.
    """

    def __init__(self) -> None:
        self._breakers: dict[str, CircuitBreaker] = {}
        self._lock = threading.Lock()

    def of(self, subscription: Subscription) -> CircuitBreaker:
        """Return the circuit breaker of a subscription: the same object for each call."""
        with self._lock:
            if subscription.queue not in self._breakers:
                failures = None if subscription.compensates else subscription.breaker
                self._breakers[subscription.queue] = CircuitBreaker(failures=failures, pause=subscription.breaker_pause)
            return self._breakers[subscription.queue]

    def snapshot(self) -> Mapping[str, Mapping[str, Any]]:
        """Return `state` and `openings` for each queue, for metrics exporters."""
        with self._lock:
            breakers = dict(self._breakers)
        return {
            queue: {"state": breaker.state.value, "openings": breaker.openings} for queue, breaker in breakers.items()
        }
