"""The interface for metrics, traces and logs. Nothing that an observer does changes a saga."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

from sagas.checkpoints import Direction, HistoryEntry, SagaRecord
from sagas.endings import ends_process
from sagas.redaction import Redaction

__all__ = ["NOT_YET", "SUCCEEDED", "Attempt", "Handling", "Observer", "Observers", "Start"]

logger = logging.getLogger(__name__)

W = TypeVar("W")

#: The outcome of an attempt whose function returned.
SUCCEEDED = "succeeded"

#: The outcome of an attempt that polls, and found that it has to ask again.
NOT_YET = "not yet"


@dataclass(slots=True)
class Start:
    """A saga is about to be stored."""

    record: SagaRecord
    traceparent: str | None = None  #: set by an observer and stored with the saga: the W3C name of the starting span


@dataclass(slots=True)
class Attempt:
    """One attempt of an action or a compensation, including the checkpoint of its outcome."""

    record: SagaRecord  #: as it was claimed
    step: str
    begun: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0  #: how long the function took
    outcome: str | None = (
        None  #: succeeded, not yet, terminal, failed or in doubt; None while it runs, and if it was cut off
    )
    error: BaseException | None = None
    redaction: Redaction | None = None  #: removes from texts about `error` the values that `Sagas(redact=[...])` names

    @property
    def number(self) -> int:
        """The number of the attempt, from 1. Lost attempts count."""
        return self.record.step(self.step).attempt

    @property
    def undoes(self) -> bool:
        return self.record.direction is Direction.BACKWARD

    def end(self, outcome: str, error: BaseException | None = None, redaction: Redaction | None = None) -> None:
        """Record how the function ended. Only the first call counts."""
        if self.outcome is None:
            self.seconds = time.perf_counter() - self.begun
            self.outcome, self.error, self.redaction = outcome, error, redaction


@dataclass(slots=True)
class Handling:
    """A message is being handled in this process."""

    queue: str
    type: str
    event_id: str
    correlation_id: str
    attempt: int
    metadata: Mapping[str, Any]  #: of its envelope
    #: handled, skipped, parked, lost or rolled_back (its batch was, and it is handled again alone); None while it runs,
    #: and if it raised an error.
    outcome: str | None = None
    #: In a batch: how long its handler took, with its share of the transaction. Otherwise 0: as long as the block.
    seconds: float = 0.0


class Observer:
    """Receives notice of what the engine does. Override the methods you need; the others do nothing.

    All methods are called in the thread that does the work, so they must be fast. An exception they raise is logged
    once and not propagated. With the prefork pool, `during` and `signalled` are called in the child processes,
    `recovered`, `delivered` and `relayed` in the worker's main process, and `changed` in both.
    """

    def during(self, work: Start | Attempt | Handling) -> AbstractContextManager[object]:  # noqa: ARG002
        """Return a context manager to surround a piece of work. At its end, `work` contains the outcome."""
        return nullcontext()

    def changed(self, before: SagaRecord | None, after: SagaRecord, history: Sequence[HistoryEntry]) -> None:
        """A saga was stored and committed: a new one (`before` is None), or a new state of an existing one.

        `history`: the entries that this change adds.
        """

    def recovered(self, dispatched: Sequence[SagaRecord]) -> None:
        """Recovery completed a pass, and dispatched these sagas."""

    def recovery_failed(self, saga: str) -> None:
        """Recovery failed to process a saga of this name: no broker accepts it, or this worker cannot read it."""

    def delivered(self, queue: str, end: str) -> None:
        """The delivery of a message ended: with `end` is a value of `sagas.events.inbox.End`."""

    def relayed(self, count: int) -> None:
        """The relay has sent this many messages."""

    def signalled(self, saga: str, wait: str, outcome: str) -> None:
        """An event arrived for a `Wait` of sagas of this name: it was delivered, refused, or its saga is unknown."""

    def carry(self) -> Mapping[str, str]:
        """Return metadata for a message that is published now: `traceparent`, `tracestate`."""
        return {}


class Observers:
    """The observers of an app. Without observers, calls cost almost nothing."""

    __slots__ = ("_all", "_blamed")

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._all = tuple(observers)
        self._blamed: set[tuple[int, str]] = set()

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, *observers: Observer) -> None:
        """Add observers. Call it before the worker forks its pool, so that all processes have them."""
        self._all += observers

    def during(self, work: W) -> AbstractContextManager[W]:
        return _During(self, self._all, work) if self._all else nullcontext(work)

    def changed(self, before: SagaRecord | None, after: SagaRecord, history: Sequence[HistoryEntry] = ()) -> None:
        self._notify("changed", before, after, history)

    def recovered(self, dispatched: Sequence[SagaRecord]) -> None:
        self._notify("recovered", dispatched)

    def recovery_failed(self, saga: str) -> None:
        self._notify("recovery_failed", saga)

    def delivered(self, queue: str, end: str) -> None:
        self._notify("delivered", queue, end)

    def relayed(self, count: int) -> None:
        self._notify("relayed", count)

    def signalled(self, saga: str, wait: str, outcome: str) -> None:
        self._notify("signalled", saga, wait, outcome)

    def carry(self) -> dict[str, str]:
        return {name: value for answer in self._notify("carry") for name, value in answer.items()}

    def _notify(self, what: str, *about: Any) -> list[Any]:
        answers = []
        for observer in self._all:
            try:
                answers.append(getattr(observer, what)(*about))
            except BaseException as error:
                if ends_process(error):
                    raise
                # An observer must not break what it observes.
                self.blame(observer, what, error)
        return answers

    def blame(self, observer: Observer, what: str, error: BaseException) -> None:
        """Log an observer's exception, but only once: it may raise at every step."""
        if (id(observer), what) not in self._blamed:
            self._blamed.add((id(observer), what))
            logger.error(
                "observer %s failed in %s (logged once). Sagas are not affected, but its output may be wrong",
                type(observer).__qualname__,
                what,
                exc_info=error,
            )


class _During(AbstractContextManager[W]):
    """Surrounds work with each observer's context manager. Exceptions of the work propagate unchanged."""

    __slots__ = ("_all", "_entered", "_observers", "_work")

    def __init__(self, observers: Observers, all_: Sequence[Observer], work: W) -> None:
        self._observers = observers
        self._all = all_
        self._work = work
        self._entered: list[tuple[Observer, AbstractContextManager[object]]] = []

    def __enter__(self) -> W:
        for observer in self._all:
            try:
                manager = observer.during(self._work)  # type: ignore[arg-type]
                manager.__enter__()
            except BaseException as error:
                if ends_process(error):
                    raise
                self._observers.blame(observer, "during", error)
            else:
                self._entered.append((observer, manager))
        return self._work

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for observer, manager in reversed(self._entered):
            try:
                manager.__exit__(kind, raised, traceback)
            except BaseException as error:
                if error is not raised and ends_process(error):
                    raise
                if error is not raised:
                    self._observers.blame(observer, "during", error)
