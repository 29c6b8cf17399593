"""Rate limits. They need the package `limits`: `pip install celery-sagas[events]`, or `[webhooks]`."""

from __future__ import annotations

import logging
import time

from sagas.errors import ConfigurationError

try:
    import limits
    from limits.errors import StorageError
    from limits.storage import storage_from_string
    from limits.strategies import MovingWindowRateLimiter
except ImportError:  # only rates need it
    _HAS_LIMITS = False
else:
    _HAS_LIMITS = True

__all__ = ["Rate", "Rates"]

logger = logging.getLogger(__name__)

#: Seconds for which a storage that did not answer is not used again.
_STORAGE_PAUSE = 5.0


class Rate:
    """How often something may happen, such as "100/second" or "1000/minute". `what`: names the setting in errors.

    Raises `ConfigurationError` for a text that is no rate, and without the package `limits`.
    """

    def __init__(self, text: str, what: str) -> None:
        if not _HAS_LIMITS:
            raise ConfigurationError(
                f"{what}={text!r} needs the package limits: pip install celery-sagas[events], or [webhooks]"
            )
        try:
            self.item = limits.parse(text)
        except (ValueError, TypeError) as error:  # a TypeError if it is not text
            raise ConfigurationError(f'{what}={text!r}: {error}. A rate looks like "100/second"') from error


class Rates:
    """Counts what happens, in a moving window.

    `storage`: where it is counted. "memory://" counts in this process; "redis://host:6379/0" is shared by all. While
    the storage does not answer, nothing is over its rate: a failed guard must not stop what it guards.
    """

    def __init__(self, storage: str, what: str) -> None:
        self._limiter = MovingWindowRateLimiter(_storage(storage, what)) if _HAS_LIMITS else None
        self._storage_again = 0.0  # when it may be asked again, by the monotonic clock

    def over(self, rate: Rate, *whose: str) -> float:
        """Take one from the allowance and return 0, or return the seconds until one is available."""
        if time.monotonic() < self._storage_again:
            return 0.0
        assert self._limiter is not None  # a rate implies a limiter
        try:
            if self._limiter.hit(rate.item, *whose):
                return 0.0
            # Never 0, even if the window has moved on meanwhile: the allowance was not taken.
            return max(self._limiter.get_window_stats(rate.item, *whose).reset_time - time.time(), 0.001)
        except StorageError as error:
            self._storage_again = time.monotonic() + _STORAGE_PAUSE
            logger.warning(
                "the storage of rate limits did not answer; nothing is limited for %g s: %s",
                _STORAGE_PAUSE, error.storage_error,
            )  # fmt: skip
            return 0.0


def _storage(url: str, what: str) -> limits.storage.Storage:
    try:
        storage = storage_from_string(url, wrap_exceptions=True)
    except (limits.errors.ConfigurationError, ValueError) as error:
        # Without the URL: it may hold a password.
        raise ConfigurationError(f'{what}: {error}. Use a URL like "redis://host:6379/0"') from error
    assert isinstance(storage, limits.storage.Storage)
    return storage
