"""The numbers of sagas. They are counted once for all viewers, because counting takes too long for a page."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sagas.checkpoints import SagaStatus
from sagas.stores import Filter, OperatorStore, StatusCount

__all__ = ["Counts", "Snapshot"]

#: Seconds for which a snapshot is reused.
_FRESH = 5.0

#: It is reused for at least so many times as long as it took: to count millions of sagas reads all of them.
_RESTS = 20

#: How many of the latest sagas are examined for the rate.
_AMONG = 1000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counts at one time."""

    tallies: Sequence[StatusCount]
    attention: int  #: how many need a person
    ended_per_minute: int
    at_least: bool  #: whether more may have ended than were examined

    @property
    def statuses(self) -> Mapping[SagaStatus, int]:
        counter: Counter[SagaStatus] = Counter()
        for tally in self.tallies:
            counter[tally.status] += tally.count
        return {status: counter[status] for status in SagaStatus}

    @property
    def names(self) -> Sequence[str]:
        return sorted({tally.name for tally in self.tallies})


class Counts:
    """Queries the store at most every 5 s, however many pages are open, and for at most a twentieth of the time."""

    def __init__(self, store: OperatorStore) -> None:
        self._store = store
        self._lock = asyncio.Lock()
        self._snapshot: Snapshot | None = None
        self._fresh_until = 0.0

    async def get(self) -> Snapshot:
        """Return counts that are at most 5 s old, or older where it takes long to count. Raises `StoreUnavailable`."""
        async with self._lock:
            began = time.monotonic()
            if self._snapshot is None or began > self._fresh_until:
                self._snapshot = await asyncio.get_running_loop().run_in_executor(None, self._count)
                ended = time.monotonic()
                self._fresh_until = ended + max(_FRESH, _RESTS * (ended - began))
            return self._snapshot

    def _count(self) -> Snapshot:
        ended = self._store.queries.ended(self._store.now() - timedelta(minutes=1), among=_AMONG)
        attention = self._store.queries.count(Filter(attention=True))
        return Snapshot(self._store.queries.tally(), attention, ended, at_least=ended >= _AMONG)
