"""Whoever waits for the database, or for the broker, at the same moment shares one request to it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from sagas.errors import StoreUnavailable

__all__ = ["Gathering"]

ItemT = TypeVar("ItemT")
AnswerT = TypeVar("AnswerT")


def closed() -> threading.Lock:
    """Return a lock that waits to be released: an `Event` does the same for ten times the cost."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class _Caller(Generic[ItemT, AnswerT]):
    """Somebody who has asked, and waits for the answer or for the turn to fetch it."""

    __slots__ = ("answer", "error", "has_turn", "is_served", "item", "waiting")

    def __init__(self, item: ItemT) -> None:
        self.item = item
        self.answer: AnswerT | None = None
        self.error: BaseException | None = None
        self.is_served = False
        self.has_turn = False
        self.waiting: threading.Lock | None = None

    def wake(self) -> None:
        """Tell the caller, which has to wait at most once, that it is served or has its turn."""
        if self.waiting is not None:
            self.waiting.release()


class Gathering(Generic[ItemT, AnswerT]):
    """Calls `serve` with the items of all callers that came while the call before it was under way.

    A caller who finds nobody else waits for nothing: the batch is what has gathered, and is never waited for. The
    caller whose turn it is serves the others in its own thread; then the first of those who came meanwhile takes over.

    `serve` returns the answer to each item, in the order of the items. When it raises `StoreUnavailable`, all of its
    callers get that. Anything else only the caller gets in whose thread it was raised, and the others ask again.
    `most`: how many items one call has at most.

    >>> doubled = Gathering(lambda numbers: [2 * number for number in numbers], most=100)
    >>> doubled.ask(21)
    42
    """

    def __init__(self, serve: Callable[[Sequence[ItemT]], Sequence[AnswerT]], *, most: int) -> None:
        self._serve = serve
        self._most = most
        self.reset()
        _ALL.add(self)

    def reset(self) -> None:
        """Forget all callers: in a forked child they are not there."""
        self._lock = threading.Lock()
        self._callers: list[_Caller[ItemT, AnswerT]] = []
        self._is_serving = False

    def ask(self, item: ItemT) -> AnswerT:
        """Return the answer to an item."""
        return self._asked(item, -1)  # type: ignore[return-value]

    def ask_within(self, seconds: float, item: ItemT) -> AnswerT | None:
        """Do as `ask`. Return None if another caller's request takes longer than this, though it may serve the item."""
        return self._asked(item, seconds)

    def _asked(self, item: ItemT, patience: float) -> AnswerT | None:
        caller: _Caller[ItemT, AnswerT] = _Caller(item)
        with self._lock:
            self._callers.append(caller)
            if self._is_serving:
                caller.waiting = closed()
            else:
                self._is_serving = caller.has_turn = True
        try:
            if caller.waiting is not None and not caller.waiting.acquire(timeout=patience):
                self._leave(caller)
                return None
        except BaseException:  # a soft time limit, a killed greenlet: nobody may wait for its turn
            self._leave(caller)
            raise
        if not caller.is_served:
            self._serve_all()
        if caller.error is not None:
            raise caller.error
        return caller.answer

    def _serve_all(self) -> None:
        with self._lock:
            batch, self._callers = self._callers[: self._most], self._callers[self._most :]
        try:
            for caller, answer in zip(batch, self._serve([caller.item for caller in batch]), strict=True):
                caller.answer = answer
        except StoreUnavailable as error:
            for caller in batch:
                caller.error = error
        except BaseException:  # such as a time limit of this caller's: it is none of the others' business
            with self._lock:
                self._callers[:0] = batch[1:]
            batch = batch[:1]
            raise
        finally:
            self._pass_on()
            for caller in batch:
                caller.is_served = True
                if not caller.has_turn:
                    caller.wake()

    def _pass_on(self) -> None:
        """Give the turn to the first who waits."""
        with self._lock:
            self._is_serving = bool(self._callers)
            if self._callers:
                self._callers[0].has_turn = True
                self._callers[0].wake()

    def _leave(self, caller: _Caller[ItemT, AnswerT]) -> None:
        with self._lock:
            if caller not in self._callers:
                return  # somebody serves it at this moment, and is not told
            self._callers.remove(caller)
        if caller.has_turn:
            self._pass_on()


_ALL: weakref.WeakSet[Gathering[Any, Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for gathering in _ALL:
        gathering.reset()


os.register_at_fork(after_in_child=_after_fork)
