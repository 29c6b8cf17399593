"""Breakers: a queue whose handler keeps failing is left alone for a while, instead of burning what is in it."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Mapping
from typing import Any

from sagas.events.services import Subscription

__all__ = ["CircuitBreaker", "BreakerState", "CircuitBreakers"]


class BreakerState(enum.StrEnum):
    """What a breaker lets through: everything, nothing, or one message at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Counts the failures in a row of one queue in this process, and says how long to leave the queue alone.

    Whoever reads the queue asks `wait` before each message, and tells of each message how it went. After `failures` in
    a row the breaker opens for `pause` seconds. Then it lets one message at a time through: the first success closes
    it, the first failure opens it again. Safe to use from any thread.

    Not a call that is wrapped, as with other breakers: a queue that must not be read is not read, so that nothing is
    fetched to be given back.

    >>> breaker = CircuitBreaker(failures=2, pause=30)
    >>> breaker.failed(), breaker.wait(), breaker.failed(), breaker.wait() > 29
    (None, 0.0, None, True)
    >>> breaker.state
    <BreakerState.OPEN: 'open'>
    """

    def __init__(self, *, failures: int | None, pause: float) -> None:
        self.openings = 0  #: how often it has opened, for metrics
        self._most = failures  # None: never opens
        self._pause = pause
        self._failures = 0
        self._until: float | None = None  # when it may be tried again; None: closed
        self._trial: tuple[int, float] | None = None  # the thread that may try, and until when that is believed
        self._lock = threading.Lock()

    def wait(self) -> float:
        """Return for how many seconds the queue is to be left alone; 0 to go on."""
        if self._until is None:
            return 0.0
        with self._lock:
            now, me = time.monotonic(), threading.get_ident()
            if self._until is None:
                return 0.0
            if now < self._until:
                return self._until - now
            # A thread that was let through and found the queue empty has nothing to tell, so it may ask again; and one
            # that is never heard of again must not keep the others away for ever.
            if self._trial is not None and self._trial[0] != me and now < self._trial[1]:
                return self._trial[1] - now
            self._trial = (me, now + self._pause)
            return 0.0

    def succeeded(self) -> None:
        """A message was handled."""
        if self._failures == 0 and self._until is None:
            return
        with self._lock:
            if self._until is not None and time.monotonic() < self._until:
                return  # it had begun before the breaker opened
            self._failures, self._until = 0, None

    def failed(self) -> None:
        """A message could not be handled."""
        if self._most is None:
            return
        with self._lock:
            now = time.monotonic()
            self._failures += 1
            if self._until is None:
                if self._failures < self._most:
                    return
            elif now < self._until:
                return  # it had begun before the breaker opened
            self._until = now + self._pause
            self.openings += 1

    @property
    def state(self) -> BreakerState:
        until = self._until
        if until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if time.monotonic() < until else BreakerState.HALF_OPEN


class CircuitBreakers:
    """The breakers of this process, one a queue, as the subscriptions declare them.

    A subscription without `breaker` gets one that never opens, and so does one that compensates: what undoes things is
    never held back.
    """

    def __init__(self) -> None:
        self._breakers: dict[str, CircuitBreaker] = {}
        self._lock = threading.Lock()

    def of(self, subscription: Subscription) -> CircuitBreaker:
        """Return the breaker of a subscription: always the same."""
        with self._lock:
            if subscription.queue not in self._breakers:
                failures = None if subscription.compensates else subscription.breaker
                self._breakers[subscription.queue] = CircuitBreaker(failures=failures, pause=subscription.breaker_pause)
            return self._breakers[subscription.queue]

    def snapshot(self) -> Mapping[str, Mapping[str, Any]]:
        """Return, per queue, `state` and `openings`. This is what an exporter of metrics reads."""
        with self._lock:
            breakers = dict(self._breakers)
        return {
            queue: {"state": breaker.state.value, "openings": breaker.openings} for queue, breaker in breakers.items()
        }
