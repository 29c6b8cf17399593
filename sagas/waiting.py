"""Waiting for the ends of sagas in an event loop: one query for all that wait, however many they are."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sagas.checkpoints import AT_REST, SagaStatus
from sagas.errors import SagaNotFound, StoreUnavailable, WaitTimeout

__all__ = ["FIRST_LOOK", "LAST_LOOK", "Waiters"]

T = TypeVar("T")

#: Seconds between two looks at the same saga: quick at first, then gentle.
FIRST_LOOK, LAST_LOOK = 0.01, 0.5

#: How much longer each pause is than the one before it.
_FACTOR = 1.5

#: The share of its pause that a waiter gives up to be asked about together with others.
_TOGETHER = 0.25

#: Seconds from the end of one query to the next at least, however many come to wait.
_BREATH = 0.01


class _Store(Protocol):
    def statuses(self, saga_ids: Collection[str]) -> Mapping[str, SagaStatus]: ...
    async def to_thread(self, function: Callable[[], T]) -> T: ...


@dataclass(slots=True, eq=False)
class _Waiter:
    saga_id: str
    end: asyncio.Future[SagaStatus]
    looked: asyncio.Future[SagaStatus]  #: done when it has been asked for once
    next_look: float
    patient: bool  #: whether it has a timeout, and so may outwait a database that does not answer
    pause: float = FIRST_LOOK
    why: str = "the database has not answered yet"

    def again(self, now: float, why: str) -> None:
        self.why = why
        self.next_look = now + self.pause
        self.pause = min(self.pause * _FACTOR, LAST_LOOK)
        if not self.looked.done():
            self.looked.cancel()


class Waiters:
    """All who wait in the event loops of this process for sagas of one store. No one of them takes a thread."""

    def __init__(self, store: _Store) -> None:
        self._store = store
        self._pollers: dict[asyncio.AbstractEventLoop, _Poller] = {}

    async def end(self, saga_id: str, timeout: float | None) -> SagaStatus:  # noqa: ASYNC109 - its error says more
        """Wait until a saga is at rest. Raises `WaitTimeout`, and `SagaNotFound`."""
        loop = asyncio.get_running_loop()
        self._pollers = {each: poller for each, poller in self._pollers.items() if not each.is_closed()}
        poller = self._pollers.setdefault(loop, _Poller(self._store, loop))
        waiter = _Waiter(saga_id, loop.create_future(), loop.create_future(), loop.time(), patient=timeout is not None)
        poller.add(waiter)
        try:
            await asyncio.wait({waiter.end}, timeout=timeout)
            if not waiter.end.done() and not waiter.looked.done():  # it looks once, however short the timeout is
                await asyncio.wait({waiter.end, waiter.looked}, return_when=asyncio.FIRST_COMPLETED)
            if waiter.end.done():
                return waiter.end.result()
        finally:
            poller.remove(waiter)
        raise WaitTimeout(f"saga {saga_id} is not at its end after {timeout:g} s: {waiter.why}. It goes on without you")


class _Poller:
    """Asks for the sagas that the waiters of one event loop wait for, as long as there are any."""

    def __init__(self, store: _Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
        self._waiters: set[_Waiter] = set()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, waiter: _Waiter) -> None:
        self._waiters.add(waiter)
        self._changed.set()
        if self._task is None or self._task.done():
            # In a context of its own: it outlives the request that happened to be the first to wait.
            self._task = self._loop.create_task(self._run(), name="sagas-waiting", context=contextvars.Context())

    def remove(self, waiter: _Waiter) -> None:
        self._waiters.discard(waiter)
        if not waiter.end.cancel() and not waiter.end.cancelled():
            waiter.end.exception()  # it was cancelled itself: nobody will ask for it
        waiter.looked.cancel()

    async def _run(self) -> None:
        try:
            while self._waiters:
                await self._sleep(min(waiter.next_look for waiter in self._waiters))
                now = self._loop.time()
                if due := [each for each in self._waiters if each.next_look <= now + each.pause * _TOGETHER]:
                    await self._look(due)
                    await asyncio.sleep(_BREATH)
        finally:
            for waiter in self._waiters:  # somebody has cancelled all tasks of this loop
                waiter.end.cancel()

    async def _sleep(self, until: float) -> None:
        self._changed.clear()
        if (seconds := until - self._loop.time()) > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _look(self, due: Collection[_Waiter]) -> None:
        ids = {waiter.saga_id for waiter in due}
        try:
            found = await self._store.to_thread(lambda: self._store.statuses(ids))
        except Exception as error:  # noqa: BLE001 - it is the waiters' to hear of
            for waiter in due:
                if waiter.patient and isinstance(error, StoreUnavailable):
                    waiter.again(self._loop.time(), str(error))
                else:
                    _fail(waiter, error)
            return
        for waiter in due:
            status = found.get(waiter.saga_id)
            if status is None:
                _fail(waiter, SagaNotFound(f"there is no saga with the id {waiter.saga_id!r}"))
            elif status not in AT_REST:
                waiter.again(self._loop.time(), f"it is {status}")
            elif not waiter.end.done():
                waiter.end.set_result(status)


def _fail(waiter: _Waiter, error: Exception) -> None:
    if not waiter.end.done():
        waiter.end.set_exception(error)
