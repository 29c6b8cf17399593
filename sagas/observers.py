"""The seam for those who watch: metrics, traces, logs. Nothing that an observer does changes a saga."""

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
    traceparent: str | None = None  #: what an observer has the saga keep: W3C's name of the span that started it


@dataclass(slots=True)
class Attempt:
    """One attempt at an action or a compensation, with the checkpoint of what came of it."""

    record: SagaRecord  #: as it was claimed
    step: str
    begun: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0  #: that the function took
    outcome: str | None = (
        None  #: succeeded, not yet, terminal, failed or in doubt; None while it runs, and when it was cut off
    )
    error: BaseException | None = None
    redaction: Redaction | None = None  #: takes out of texts about `error` what `Sagas(redact=[...])` names

    @property
    def number(self) -> int:
        """Which attempt it is, from 1. Those that were lost count."""
        return self.record.step(self.step).attempt

    @property
    def undoes(self) -> bool:
        return self.record.direction is Direction.BACKWARD

    def end(self, outcome: str, error: BaseException | None = None, redaction: Redaction | None = None) -> None:
        """Say how the function ended. The first word counts."""
        if self.outcome is None:
            self.seconds = time.perf_counter() - self.begun
            self.outcome, self.error, self.redaction = outcome, error, redaction


@dataclass(slots=True)
class Handling:
    """A message is being handled, in the process that runs its handler."""

    queue: str
    type: str
    event_id: str
    correlation_id: str
    attempt: int
    metadata: Mapping[str, Any]  #: of its envelope
    outcome: str | None = None  #: handled, skipped, parked or lost; None while it runs, and when an error came of it


class Observer:
    """Told what the engine has done. Take what you need; what is left out does nothing.

    Everything is called in the thread that does the work, so be quick. What you raise is logged, once, and goes no
    further. With the prefork pool `during` is called in the children, `swept`, `delivered` and `relayed` in the main
    process of the worker, and `changed` in both.
    """

    def during(self, work: Start | Attempt | Handling) -> AbstractContextManager[object]:  # noqa: ARG002
        """Return what surrounds a piece of work. At its end `work` tells how that went."""
        return nullcontext()

    def changed(self, before: SagaRecord | None, after: SagaRecord, history: Sequence[HistoryEntry]) -> None:
        """A saga was stored: a new one (`before` is None), or a new state of one. It has committed.

        `history`: what this change adds to its history.
        """

    def recovered(self, dispatched: Sequence[SagaRecord]) -> None:
        """Recovery has looked at what was due, and sent these to their queues."""

    def recovery_failed(self, saga: str) -> None:
        """Recovery could not deal with a saga of this name: no broker takes it, or this worker cannot read it."""

    def delivered(self, queue: str, end: str) -> None:
        """A delivery of a message came to an end: a value of `sagas.events.inbox.End`, or "dead_lettered"."""

    def relayed(self, count: int) -> None:
        """The relay has sent so many messages."""

    def carry(self) -> Mapping[str, str]:
        """Return what a message that is published now takes along in its metadata: `traceparent`, `tracestate`."""
        return {}


class Observers:
    """The observers of an app. Where there are none, telling them costs nothing to speak of."""

    __slots__ = ("_all", "_blamed")

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._all = tuple(observers)
        self._blamed: set[tuple[int, str]] = set()

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, *observers: Observer) -> None:
        """Have these told, too, from now on. Before the worker forks its pool, so that all of it knows them."""
        self._all += observers

    def during(self, work: W) -> AbstractContextManager[W]:
        return _During(self, self._all, work) if self._all else nullcontext(work)

    def changed(self, before: SagaRecord | None, after: SagaRecord, history: Sequence[HistoryEntry] = ()) -> None:
        self._tell("changed", before, after, history)

    def recovered(self, dispatched: Sequence[SagaRecord]) -> None:
        self._tell("recovered", dispatched)

    def recovery_failed(self, saga: str) -> None:
        self._tell("recovery_failed", saga)

    def delivered(self, queue: str, end: str) -> None:
        self._tell("delivered", queue, end)

    def relayed(self, count: int) -> None:
        self._tell("relayed", count)

    def carry(self) -> dict[str, str]:
        return {name: value for told in self._tell("carry") for name, value in told.items()}

    def _tell(self, what: str, *about: Any) -> list[Any]:
        answers = []
        for observer in self._all:
            try:
                answers.append(getattr(observer, what)(*about))
            except BaseException as error:
                if ends_process(error):
                    raise
                # Whoever watches must not break what is watched.
                self.blame(observer, what, error)
        return answers

    def blame(self, observer: Observer, what: str, error: BaseException) -> None:
        """Log what an observer raised: once, for it may do so at every step."""
        if (id(observer), what) not in self._blamed:
            self._blamed.add((id(observer), what))
            logger.error(
                "observer %s failed in %s; that is said once. No saga is the worse for it, but what it shows may be",
                type(observer).__qualname__,
                what,
                exc_info=error,
            )


class _During(AbstractContextManager[W]):
    """Surrounds work by what each observer wants around it. An error of the work passes through untouched."""

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
