"""Storm guards: what keeps events that breed events from taking everything with them.

Rates need the package `limits`: `pip install celery-sagas[events]`. The limits on chains of messages need nothing.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sagas.durations import whole_number
from sagas.errors import ConfigurationError
from sagas.events.breakers import BreakerState, CircuitBreaker, CircuitBreakers
from sagas.events.envelope import Envelope
from sagas.events.services import Subscription

try:
    import limits
    from limits.errors import StorageError
    from limits.storage import storage_from_string
    from limits.strategies import MovingWindowRateLimiter
except ImportError:  # only rates need it
    _HAS_LIMITS = False
else:
    _HAS_LIMITS = True

__all__ = ["Admission", "CircuitBreaker", "BreakerState", "CircuitBreakers", "StormGuard", "Decision", "default_guards"]

_log = logging.getLogger(__name__)

#: Seconds for which a storage that did not answer is not asked again.
_STORAGE_PAUSE = 5.0


class Decision(enum.StrEnum):
    """What is to be done with a message before its handler is called."""

    ADMIT = "admit"
    THROTTLE = "throttle"
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True, slots=True)
class Admission:
    """A decision on one message."""

    decision: Decision
    seconds: float = 0.0  #: THROTTLE: for how long; ask again then
    reason: str = ""  #: DEAD_LETTER: for the dead letter


_ADMITTED = Admission(Decision.ADMIT)


class StormGuard:
    """Decides of each message whether it may be handled now.

    `rate`: how many messages of one type and one source a queue takes, such as "100/second" or "1000/minute": so many
        may come at once, and more as the oldest leave the window. What is over it waits. None: any number.
    `max_hops`: a message that more messages than this led to becomes a dead letter.
    `max_repeats`: a message becomes a dead letter when more messages of its own type than this led to it, among the
        last 32 of its chain. This stops events that lead to several of themselves, which `max_hops` alone lets
        multiply for too long. None: any number.
    `on_repeat`: what is done with a message that one of its own type led to, which is how storms begin, and rarely
        wanted. "report" logs and counts it, "dead_letter" makes a dead letter of it.
    `storage`: where the rates are counted. "memory://" is of this process alone; "redis://host:6379/0" is shared by
        all. While it does not answer, messages are admitted: a guard that is down must not stop what it guards.

    A subscription that compensates is not held to a rate: what undoes things must come through. The other limits
    are for it too, for else a storm of compensations would never end.

    Raises `ConfigurationError` for settings that make no sense. Safe to use from any thread.

    >>> guards = StormGuard(max_hops=16, max_repeats=4)
    >>> guards.snapshot()
    {}
    """

    def __init__(
        self,
        rate: str | None = None,
        max_hops: int = 32,
        on_repeat: Literal["report", "dead_letter"] = "report",
        storage: str = "memory://",
        max_repeats: int | None = None,
    ) -> None:
        if max_repeats is not None:
            why = 'on_repeat="dead_letter" lets none through'
            whole_number(max_repeats, "StormGuard: max_repeats", ConfigurationError, why=why)
        if rate is not None and not _HAS_LIMITS:
            raise ConfigurationError(
                f"StormGuard(rate={rate!r}) needs the package limits: pip install celery-sagas[events]"
            )
        whole_number(max_hops, "StormGuard: max_hops", ConfigurationError, why="an event that an event led to has 1")
        if on_repeat not in ("report", "dead_letter"):
            raise ConfigurationError(f'StormGuard(on_repeat={on_repeat!r}): it is "report" or "dead_letter"')
        self.max_hops = max_hops
        self.on_repeat = on_repeat
        self.max_repeats = max_repeats
        self._rate = None if rate is None else _rate(rate)
        self._limiter = MovingWindowRateLimiter(_storage(storage)) if _HAS_LIMITS else None
        self._storage_again = 0.0  # when it may be asked again, by the monotonic clock
        self._counts: dict[str, Counter[str]] = {}
        self._lock = threading.Lock()

    def admit(self, envelope: Envelope, subscription: Subscription) -> Admission:
        """Return what is to be done with a message. Ask once for each time that it would be handled."""
        queue = subscription.queue
        if envelope.hops > self.max_hops:
            return self._dead_letter(
                queue,
                f"{envelope.hops} messages led to it, more than max_hops={self.max_hops}: {_chain(envelope)}. This "
                "looks like a storm: find the handlers that answer each other. If the flow is as long as this, raise "
                "max_hops, then replay it",
            )
        if (before := envelope.path.count(envelope.event_type)) > 0:
            self._count(queue, "repeated")
            if self.on_repeat == "dead_letter":
                return self._dead_letter(queue, f"one of its own type led to it: {_chain(envelope)}")
            if self.max_repeats is not None and before > self.max_repeats:
                return self._dead_letter(
                    queue,
                    f"{before} messages of its own type led to it, more than max_repeats={self.max_repeats}: "
                    f"{_chain(envelope)}. This looks like a storm: find the handlers that answer each other. If they "
                    "are meant to, raise max_repeats, then replay it",
                )
            if before == 1:  # once a chain and type: a storm must not flood the log too
                _log.warning(
                    "%s: %s %s was led to by one of its own type: %s",
                    queue, envelope.event_type, envelope.event_id, _chain(envelope),
                )  # fmt: skip
        if self._rate is not None and not subscription.compensates:
            seconds = self._over(self._rate, queue, envelope.event_type, envelope.source)
            if seconds > 0:
                self._count(queue, "throttled")
                return Admission(Decision.THROTTLE, seconds=seconds)
        self._count(queue, "admitted")
        return _ADMITTED

    def snapshot(self) -> Mapping[str, Mapping[str, int]]:
        """Return, per queue, how many were `admitted`, `held`, `dead-lettered` and `repeated` since this process began.

        This is what an exporter of metrics reads, together with `Breakers.snapshot`.
        """
        with self._lock:
            names = ("admitted", "throttled", "dead_lettered", "repeated")
            return {queue: {name: counts[name] for name in names} for queue, counts in self._counts.items()}

    def _over(self, rate: limits.RateLimitItem, *whose: str) -> float:
        """Take one from the allowance, or return after how many seconds there will be one."""
        if time.monotonic() < self._storage_again:
            return 0.0
        assert self._limiter is not None  # there is a rate, so there is what counts it
        try:
            if self._limiter.hit(rate, *whose):
                return 0.0
            # Never 0, not even when the window has moved on meanwhile: it was not taken.
            return max(self._limiter.get_window_stats(rate, *whose).reset_time - time.time(), 0.001)
        except StorageError as error:
            self._storage_again = time.monotonic() + _STORAGE_PAUSE
            _log.warning(
                "the storage of the rates did not answer; all is admitted for %g s: %s",
                _STORAGE_PAUSE, error.storage_error,
            )  # fmt: skip
            return 0.0

    def _dead_letter(self, queue: str, reason: str) -> Admission:
        self._count(queue, "dead_lettered")
        return Admission(Decision.DEAD_LETTER, reason=reason)

    def _count(self, queue: str, what: str) -> None:
        with self._lock:
            self._counts.setdefault(queue, Counter())[what] += 1


def default_guards() -> StormGuard:
    """Return what `Events` uses unless it is told otherwise.

    A request and its answer, twelve services in a row, and a failed payment that is tried eight times stay far below
    these numbers. Two handlers that answer each other are stopped after eighteen messages.
    """
    return StormGuard(max_hops=32, max_repeats=8)


def _chain(envelope: Envelope) -> str:
    return " -> ".join([*envelope.path, envelope.event_type])


def _rate(text: str) -> limits.RateLimitItem:
    try:
        return limits.parse(text)
    except (ValueError, TypeError) as error:  # a TypeError of what is no text
        raise ConfigurationError(f'StormGuard(rate={text!r}): {error}; it looks like "100/second"') from error


def _storage(url: str) -> limits.storage.Storage:
    try:
        storage = storage_from_string(url, wrap_exceptions=True)
    except (limits.errors.ConfigurationError, ValueError) as error:
        # Without the URL: it may hold a password.
        raise ConfigurationError(f'StormGuard(storage=...): {error}; it looks like "redis://host:6379/0"') from error
    assert isinstance(storage, limits.storage.Storage)
    return storage
