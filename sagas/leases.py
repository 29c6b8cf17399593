"""Keeps the claims of this process alive while their steps run."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Leases"]

logger = logging.getLogger(__name__)


class Leases:
    """Renews every claim that has been held for a third of its lease, from one thread per process.

    `renew(saga_id, step, owner)` returns whether the claim is still ours. Most steps are faster than a third of the
    lease, and cost only an entry in a dictionary.
    """

    def __init__(self, lease: float, renew: Callable[[str, str, str], bool]) -> None:
        self._pause = lease / 3
        self._renew = renew
        self.reset()
        _ALL.add(self)

    def reset(self) -> None:
        """Drop all claims."""
        self._claims: dict[str, tuple[str, str, float]] = {}
        self._changed = threading.Condition()
        self._idle = False  # whether the thread waits for a notification only
        self._thread: threading.Thread | None = None

    @contextmanager
    def held(self, saga_id: str, step: str, owner: str) -> Iterator[None]:
        """Keep a claim alive for as long as the block runs."""
        with self._changed:
            self._claims[owner] = (saga_id, step, time.monotonic() + self._pause)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sagas-leases", daemon=True)
                self._thread.start()
            if self._idle:  # otherwise it wakes before this claim is due, because all leases have the same length
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._claims.pop(owner, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                due = [(owner, *claim) for owner, claim in self._claims.items() if claim[2] <= now]
                if not due:
                    next_due = min((claim[2] for claim in self._claims.values()), default=None)
                    self._idle = next_due is None
                    self._changed.wait(None if next_due is None else next_due - now)
                    self._idle = False
                    continue
            for owner, saga_id, step, _ in due:
                self._renew_one(saga_id, step, owner)

    def _renew_one(self, saga_id: str, step: str, owner: str) -> None:
        try:
            alive = self._renew(saga_id, step, owner)
        except Exception as error:  # noqa: BLE001 - the database is unavailable: the lease may last until it is back
            logger.warning("saga %s, step %s: the claim could not be renewed: %r", saga_id, step, error)
            alive = True
        with self._changed:
            if owner not in self._claims:
                return
            if alive:
                self._claims[owner] = (saga_id, step, time.monotonic() + self._pause)
            else:
                del self._claims[owner]


_ALL: weakref.WeakSet[Leases] = weakref.WeakSet()


def _after_fork() -> None:
    for leases in _ALL:
        leases.reset()  # a child inherits the claims, but not the thread that renews them


os.register_at_fork(after_in_child=_after_fork)
