"""The metrics that a process counts while it works: an observer with counters and histograms."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.utils import INF

from sagas.checkpoints import AT_REST, Direction, HistoryEntry, HistoryKind, SagaRecord
from sagas.observers import Attempt, Handling, Observer, Start

__all__ = ["Metrics"]

#: Seconds.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, INF)

#: History entries of recovery, and the labels they are counted under.
_RECOVERED: Mapping[str, str] = {
    HistoryKind.LOST: "takeover",
    HistoryKind.NOT_STARTED: "not_started",
    HistoryKind.LATE_OUTCOME: "late_outcome",
}

#: prometheus_client's locks do not survive forks: a child that is forked while another thread of the worker's main
#: process counts would find them locked forever. Therefore no thread counts during a fork.
_GATE = threading.Lock()
os.register_at_fork(before=_GATE.acquire, after_in_parent=_GATE.release, after_in_child=_GATE.release)


class Metrics(Observer):
    """Counts what happens to sagas and messages in this process. Labels are names from the code, never data.

    `registry`: the registry for the metrics; by default prometheus_client's. A registry can hold only one `Metrics`.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=_BUCKETS)

        self._started = counter("sagas_started_total", "Sagas that were stored.", "saga")
        self._ended = counter("sagas_ended_total", "Sagas that reached this status.", "saga", "status")
        self._compensations_started = counter(
            "sagas_compensations_started_total", "Sagas that started compensating.", "saga"
        )
        self._attempts = histogram(
            "sagas_attempt_seconds",
            "How long an action (FORWARD) or a compensation (BACKWARD) took, without its checkpoint.",
            "saga", "step", "direction", "outcome",
        )  # fmt: skip
        self._retries = counter(
            "sagas_retries_total", "Attempts that were not the first.", "saga", "step", "direction"
        )  # fmt: skip
        self._recovery = counter("sagas_recovery_total", "Actions of recovery.", "saga", "action")
        self._failures = counter("sagas_recovery_failures_total", "Sagas that recovery failed to process.", "saga")
        self._passes = counter("sagas_recovery_passes_total", "Recovery passes.")
        self._deliveries = counter("sagas_event_deliveries_total", "How deliveries of messages ended.", "queue", "end")
        self._handling = histogram(
            "sagas_event_handling_seconds", "How long a handler took, including its transaction.", "queue", "outcome"
        )
        self._relayed = counter("sagas_events_relayed_total", "Messages that the relay sent.")
        self._signalled = counter(
            "sagas_event_signals_total", "Events that arrived for sagas that wait for them.", "saga", "wait", "outcome"
        )

    def during(self, work: Start | Attempt | Handling) -> AbstractContextManager[object]:
        match work:
            case Attempt():
                return self._attempt(work)
            case Handling():
                return self._timed(work)
            case _:
                return nullcontext()

    @contextmanager
    def _attempt(self, attempt: Attempt) -> Iterator[None]:
        labels = attempt.record.name, attempt.step, attempt.record.direction.value
        if attempt.number > 1:
            with _GATE:
                self._retries.labels(*labels).inc()
        try:
            yield
        finally:
            outcome = (attempt.outcome or "cut off").replace(" ", "_")
            with _GATE:
                self._attempts.labels(*labels, outcome).observe(attempt.seconds or time.perf_counter() - attempt.begun)

    @contextmanager
    def _timed(self, work: Handling) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            with _GATE:
                seconds = work.seconds or time.perf_counter() - begun
                self._handling.labels(work.queue, work.outcome or "failed").observe(seconds)

    def changed(self, before: SagaRecord | None, after: SagaRecord, history: Sequence[HistoryEntry]) -> None:
        name = after.name
        with _GATE:
            if before is None:
                self._started.labels(name).inc()
                return
            if after.status in AT_REST and before.status is not after.status:
                self._ended.labels(name, after.status.value).inc()
            if before.direction is Direction.FORWARD and after.direction is Direction.BACKWARD:
                self._compensations_started.labels(name).inc()
            for entry in history:
                if entry.what in _RECOVERED:
                    self._recovery.labels(name, _RECOVERED[entry.what]).inc()
            for step, state in before.steps.items():
                if state.deadline is not None and state.deadline <= after.updated_at:
                    ended = after.step(step)
                    if ended.owner != state.owner and ended.failures > state.failures:
                        self._recovery.labels(name, "timeout").inc()

    def recovered(self, dispatched: Sequence[SagaRecord]) -> None:
        with _GATE:
            self._passes.inc()
            for record in dispatched:
                self._recovery.labels(record.name, "redispatch").inc()

    def recovery_failed(self, saga: str) -> None:
        with _GATE:
            self._failures.labels(saga).inc()

    def delivered(self, queue: str, end: str) -> None:
        with _GATE:
            self._deliveries.labels(queue, end).inc()

    def relayed(self, count: int) -> None:
        with _GATE:
            self._relayed.inc(count)

    def signalled(self, saga: str, wait: str, outcome: str) -> None:
        with _GATE:
            self._signalled.labels(saga, wait, outcome).inc()
