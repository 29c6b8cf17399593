"""Keeps the claims of this process alive while their steps run."""

from __future__ import annotations

import enum
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sagas.heartbeats import Heartbeats, Report

__all__ = ["ClaimStatus", "Leases", "Unrenewed"]

logger = logging.getLogger(__name__)


class ClaimStatus(enum.Enum):
    """How a claim stands."""

    WANTED = "wanted"  #: it is alive, and the saga waits for what comes of it
    UNWANTED = "unwanted"  #: it is alive, and the saga compensates: whatever comes of it is undone
    LOST = "lost"  #: another attempt has taken over, or the step was given up


#: What a step learns of a claim that does not stand well.
_CANCELLED = {
    ClaimStatus.UNWANTED: "the saga compensates, so what this attempt does is undone. Stop",
    ClaimStatus.LOST: "this attempt was given up: it took too long, or was silent for too long, or its worker could "
    "not reach the database. Stop: what it does is done again, or undone",
}


@dataclass(slots=True)
class _Claim:
    """A claim that is held here."""

    saga_id: str
    step: str
    owner: str
    heartbeats: Heartbeats | None  #: of a function that may report; None of one that cannot
    renew_at: float  #: on the monotonic clock, as `look_at`
    look_at: float  #: when to see whether there is something to store
    stored: int = 0  #: reports that are stored, or are history with those that are

    @property
    def report(self) -> Report | None:
        """What has been reported and is not stored."""
        latest = self.heartbeats.latest if self.heartbeats is not None else None
        return latest if latest is not None and latest.count > self.stored else None

    def rest(self) -> None:
        """Look at it again after a while."""
        self.look_at = self.renew_at
        if self.heartbeats is not None:
            self.look_at = min(time.monotonic() + self.heartbeats.pause, self.renew_at)


class Leases:
    """Renews every claim that has been held for a third of its lease, from one thread per process.

    The same thread stores what functions report meanwhile. `renew(saga_id, step, owner, report)` returns how the claim
    stands. Most steps are faster than a third of the lease, and cost only an entry in a dictionary.
    """

    def __init__(self, lease: float, renew: Callable[[str, str, str, Report | None], ClaimStatus]) -> None:
        self._pause = lease / 3
        self._renew = renew
        self.reset()
        _ALL.add(self)

    def reset(self) -> None:
        """Drop all claims."""
        self._claims: dict[str, _Claim] = {}
        self._changed = threading.Condition()
        self._wakes_at: float | None = None  # when the thread looks by itself; None while it waits for a notification
        self._thread: threading.Thread | None = None

    @contextmanager
    def held(self, saga_id: str, step: str, owner: str, heartbeats: Heartbeats | None = None) -> Iterator[None]:
        """Keep a claim alive for as long as the block runs. `heartbeats`: what its function may report."""
        renew_at = time.monotonic() + self._pause
        claim = _Claim(saga_id, step, owner, heartbeats, renew_at, renew_at)
        claim.rest()
        with self._changed:
            self._claims[owner] = claim
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sagas-leases", daemon=True)
                self._thread.start()
            elif self._wakes_at is None or claim.look_at < self._wakes_at:
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
                due = [claim for claim in self._claims.values() if claim.look_at <= now]
                if not due:
                    self._wakes_at = min((claim.look_at for claim in self._claims.values()), default=None)
                    self._changed.wait(None if self._wakes_at is None else self._wakes_at - now)
                    self._wakes_at = now
                    continue
            for claim in due:
                self._look_at(claim)

    def _look_at(self, claim: _Claim) -> None:
        report = claim.report
        if report is None and claim.renew_at > time.monotonic():
            claim.rest()
            return
        try:
            status = self._renew(claim.saga_id, claim.step, claim.owner, report)
        except Exception as error:  # noqa: BLE001 - the database is unavailable: the lease may last until it is back
            logger.warning("saga %s, step %s: the claim could not be renewed: %r", claim.saga_id, claim.step, error)
            status, report = ClaimStatus.WANTED, None
        if report is not None:
            claim.stored = report.count
        if claim.heartbeats is not None and status is not ClaimStatus.WANTED:
            claim.heartbeats.cancel(_CANCELLED[status])
        claim.renew_at = time.monotonic() + self._pause
        claim.rest()
        if status is ClaimStatus.LOST:
            with self._changed:
                self._claims.pop(claim.owner, None)


class Unrenewed(Leases):
    """Holds claims that no thread renews, where nobody is there who could take one over."""

    @contextmanager
    def held(self, saga_id: str, step: str, owner: str, heartbeats: Heartbeats | None = None) -> Iterator[None]:  # noqa: ARG002
        yield


_ALL: weakref.WeakSet[Leases] = weakref.WeakSet()


def _after_fork() -> None:
    for leases in _ALL:
        leases.reset()  # a child inherits the claims, but not the thread that renews them


os.register_at_fork(after_in_child=_after_fork)
