"""Threads for calls that block, so that an event loop does not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

__all__ = ["THREADS", "Threads", "is_in_loop"]

T = TypeVar("T")


class Threads:
    """A few threads of this process, started when they are needed. A forked child starts its own.

    `most`: how many calls may run at the same time; more of them queue.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._pool: ThreadPoolExecutor | None = None
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._pool = None

    @property
    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._most, "sagas-blocking")
        return self._pool

    async def call(self, function: Callable[[], T]) -> T:
        """Call a function in a thread, with the context variables of the caller, and return what it returns."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, copy_context().run, function)

    def submit(self, function: Callable[[], object]) -> None:
        """Have a function called in a thread, and do not wait for it. It must not raise."""
        self._executor.submit(copy_context().run, function)


#: Those of this process. Each may hold a connection to the database, of which pools have few.
THREADS = Threads(4)


def is_in_loop() -> bool:
    """Tell whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
