"""Where the handlers of messages run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Protocol

from sagas.events.inbox import Call, Outcome

__all__ = ["InProcess", "InThread", "Runner"]


class Runner(Protocol):
    """Where handlers run."""

    def submit(self, call: Call) -> Future[Outcome]:
        """Handle a delivery, now or as soon as there is room. The future fails if the handler was cut off."""


class InProcess:
    """Runs handlers in threads of this process."""

    def __init__(self, handle: Callable[[Call], Outcome], executor: Executor) -> None:
        self._handle = handle
        self._executor = executor

    def submit(self, call: Call) -> Future[Outcome]:
        return self._executor.submit(self._handle, call)


class InThread:
    """Runs handlers in the thread that reads their queue, one at a time."""

    def __init__(self, handle: Callable[[Call], Outcome]) -> None:
        self._handle = handle

    def submit(self, call: Call) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        future.set_result(self._handle(call))
        return future
