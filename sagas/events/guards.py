"""Storm guards: stop events that multiply from overwhelming the system.

Rate limits need the package `limits`: `pip install celery-sagas[events]`. The limits on message chains need nothing.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sagas.durations import whole_number
from sagas.errors import ConfigurationError
from sagas.events.breakers import BreakerState, CircuitBreaker, CircuitBreakers
from sagas.events.envelope import Envelope
from sagas.events.services import Subscription
from sagas.rates import Rate, Rates

__all__ = ["Admission", "CircuitBreaker", "BreakerState", "CircuitBreakers", "StormGuard", "Decision", "default_guards"]

_log = logging.getLogger(__name__)


class Decision(enum.StrEnum):
    """What to do with a message before its handler is called."""

    ADMIT = "admit"
    THROTTLE = "throttle"
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True, slots=True)
class Admission:
    """A decision on one message."""

    decision: Decision
    seconds: float = 0.0  #: THROTTLE: how long to wait before asking again
    reason: str = ""  #: DEAD_LETTER: the error of the dead letter


_ADMITTED = Admission(Decision.ADMIT)


class StormGuard:
    """Decides for each message whether it may be handled now.

    `rate`: how many messages of one type and source a queue accepts, such as "100/second" or "1000/minute". A burst of
        that size is accepted at once; further messages wait until the oldest leave the window. None: any number.
    `max_hops`: a message with more ancestors than this becomes a dead letter.
    `max_repeats`: a message with more ancestors of its own type than this, among the last 32, becomes a dead letter.
        This stops events that lead to several events of the same type, which `max_hops` alone lets multiply for too
        long. None: any number.
    `on_repeat`: what to do with a message that has an ancestor of its own type, which is how storms begin and rarely
        intended. "report" logs and counts it, "dead_letter" dead-letters it.
    `storage`: where the rates are counted. "memory://" counts in this process; "redis://host:6379/0" is shared by all.
        While the storage does not answer, messages are admitted: a failed guard must not stop what it guards.

    A subscription that compensates has no rate limit, because compensations must get through. The other limits apply
    to it, because otherwise a storm of compensations would never end.

    Raises `ConfigurationError` for invalid settings. Safe to use from any thread.

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
            why = 'use on_repeat="dead_letter" to let none through'
            whole_number(max_repeats, "StormGuard: max_repeats", ConfigurationError, why=why)
        whole_number(max_hops, "StormGuard: max_hops", ConfigurationError, why="an event that an event led to has 1")
        if on_repeat not in ("report", "dead_letter"):
            raise ConfigurationError(f'StormGuard(on_repeat={on_repeat!r}): it is "report" or "dead_letter"')
        self.max_hops = max_hops
        self.on_repeat = on_repeat
        self.max_repeats = max_repeats
        self._rate = None if rate is None else Rate(rate, "StormGuard: rate")
        self._rates = Rates(storage, "StormGuard: storage")
        self._counts: dict[str, Counter[str]] = {}
        self._lock = threading.Lock()

    def admit(self, envelope: Envelope, subscription: Subscription) -> Admission:
        """Return what to do with a message. Call it once each time the message is about to be handled."""
        queue = subscription.queue
        if envelope.hops > self.max_hops:
            return self._dead_letter(
                queue,
                f"{envelope.hops} messages led to this one, more than max_hops={self.max_hops}: {_chain(envelope)}. "
                "This looks like a storm: find the handlers that answer each other. If the flow is meant to be this "
                "long, raise max_hops and replay the message",
            )
        if (before := envelope.path.count(envelope.event_type)) > 0:
            self._count(queue, "repeated")
            if self.on_repeat == "dead_letter":
                return self._dead_letter(queue, f"a message of the same type led to this one: {_chain(envelope)}")
            if self.max_repeats is not None and before > self.max_repeats:
                return self._dead_letter(
                    queue,
                    f"{before} messages of the same type led to this one, more than max_repeats={self.max_repeats}: "
                    f"{_chain(envelope)}. This looks like a storm: find the handlers that answer each other. If they "
                    "are meant to, raise max_repeats and replay the message",
                )
            if before == 1:  # once per chain and type: a storm must not flood the log too
                _log.warning(
                    "%s: a message of the same type led to %s %s: %s",
                    queue, envelope.event_type, envelope.event_id, _chain(envelope),
                )  # fmt: skip
        if self._rate is not None and not subscription.compensates:
            seconds = self._rates.over(self._rate, queue, envelope.event_type, envelope.source)
            if seconds > 0:
                self._count(queue, "throttled")
                return Admission(Decision.THROTTLE, seconds=seconds)
        self._count(queue, "admitted")
        return _ADMITTED

    def snapshot(self) -> Mapping[str, Mapping[str, int]]:
        """Return, per queue, how many were `admitted`, `throttled`, `dead_lettered` and `repeated` in this process.

        Metrics exporters read this together with `CircuitBreakers.snapshot`.
        """
        with self._lock:
            names = ("admitted", "throttled", "dead_lettered", "repeated")
            return {queue: {name: counts[name] for name in names} for queue, counts in self._counts.items()}

    def _dead_letter(self, queue: str, reason: str) -> Admission:
        self._count(queue, "dead_lettered")
        return Admission(Decision.DEAD_LETTER, reason=reason)

    def _count(self, queue: str, what: str) -> None:
        with self._lock:
            self._counts.setdefault(queue, Counter())[what] += 1


def default_guards() -> StormGuard:
    """Return the guard that `Events` uses by default.

    Its limits leave room for a request and its answer, twelve services in a row, and a failed payment with eight
    retries. Two handlers that answer each other are stopped after eighteen messages.
    """
    return StormGuard(max_hops=32, max_repeats=8)


def _chain(envelope: Envelope) -> str:
    return " -> ".join([*envelope.path, envelope.event_type])
