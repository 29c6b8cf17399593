"""How often, and how soon, a step is tried again."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from sagas.durations import finite_number, seconds, whole_number
from sagas.errors import DefinitionError, TerminalError

__all__ = ["NEVER", "UNTIL_DONE", "Retry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often, and how soon after a failure, a step is tried again.

    `delay` seconds (or a timedelta) before the second attempt, `factor` times longer before each one after that, never
    more than `max_delay`; each spread by up to `jitter` (0.1 = 10 %) so that sagas that failed together do not return
    together.

    `on`: other policies for some errors, by their class: `on={RateLimited: Retry(max_attempts=20), Expired: NEVER}`.
    The class that is nearest to that of the error counts, and all failures of the step count, whatever their class. A
    step that takes longer than its `timeout` fails with a `TimeoutError`.

    >>> Retry(max_attempts=4, delay=2, jitter=0).delay_after(2)
    4.0
    >>> Retry(on={OSError: NEVER}).policy_for(ConnectionError()).max_attempts
    1
    """

    max_attempts: int = 3
    delay: float | timedelta = 1.0
    factor: float = 2.0
    max_delay: float | timedelta = 60.0
    jitter: float = 0.1
    on: Mapping[type[BaseException], Retry] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        whole_number(self.max_attempts, "Retry: max_attempts", DefinitionError, why="the first attempt counts")
        for name in ("delay", "max_delay"):
            # Set past `frozen`, so that a timedelta is a number from here on.
            object.__setattr__(self, name, seconds(getattr(self, name), f"Retry: {name}", DefinitionError, zero=True))
        for name in ("factor", "jitter"):
            finite_number(getattr(self, name), f"Retry: {name}", DefinitionError)
        if self.factor < 1 or not 0 <= self.jitter <= 1:
            raise DefinitionError(f"{self}: delays are seconds >= 0, factor >= 1 and jitter from 0 to 1")
        for kind, policy in self.on.items():
            _check_policy(kind, policy)

    def policy_for(self, error: BaseException) -> Retry:
        """Return the policy for an error: that of the class nearest to its own, else this one."""
        return next((self.on[kind] for kind in type(error).__mro__ if kind in self.on), self)

    def delay_after(self, failures: int, seed: str = "") -> float:
        """Return the seconds to wait after that many failures. The same seed gives the same spread."""
        assert isinstance(self.delay, float)
        assert isinstance(self.max_delay, float)
        try:
            delay = min(self.delay * self.factor ** (failures - 1), self.max_delay)
        except OverflowError:  # a large factor and a long history
            delay = self.max_delay if self.delay else 0.0
        return delay * (1 + self.jitter * random.Random(seed).random()) if self.jitter else delay  # noqa: S311


def _check_policy(kind: object, policy: object) -> None:
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise DefinitionError(f"Retry: on has {kind!r}, which is not a class of exceptions")
    if issubclass(kind, TerminalError):
        raise DefinitionError(f"Retry: on has {kind.__name__}, but a TerminalError is never tried again")
    if not isinstance(policy, Retry) or policy.on:
        raise DefinitionError(
            f"Retry: on[{kind.__name__}] is {policy!r}; it must be NEVER, or a Retry without an `on` of its own"
        )


#: For `Retry(on=...)`: an error after which a step is not tried again. Whether it had an effect is not known, so the
#: step is in doubt; an action that knows that it had none raises `TerminalError`.
NEVER = Retry(max_attempts=1)

#: Where only success will do (a compensation, a step after the pivot), a step is tried for longer.
UNTIL_DONE = Retry(max_attempts=10, max_delay=300.0)
