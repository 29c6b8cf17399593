"""Where the handlers of messages run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Protocol

from sagas.events.inbox import Batch, Call, Outcome

__all__ = ["InProcess", "InThread", "Runner"]

#: `Events.handle`.
Handle = Callable[[Call | Batch], Outcome | Sequence[Outcome]]


class Runner(Protocol):
    """Where handlers run."""

    def submit(self, work: Call | Batch) -> Future[Outcome | Sequence[Outcome]]:
        """Pass work to `Events.handle`, now or as soon as there is room; return the future of what that returns.

        The future fails if the handler was cut off.
        """


class InProcess:
    """Runs handlers in threads of this process."""

    def __init__(self, handle: Handle, executor: Executor) -> None:
        self._handle = handle
        self._executor = executor

    def submit(self, work: Call | Batch) -> Future[Outcome | Sequence[Outcome]]:
        return self._executor.submit(self._handle, work)


class InThread:
    """Runs handlers in the thread that reads their queue, one at a time."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def submit(self, work: Call | Batch) -> Future[Outcome | Sequence[Outcome]]:
        future: Future[Outcome | Sequence[Outcome]] = Future()
        future.set_result(self._handle(work))
        return future
