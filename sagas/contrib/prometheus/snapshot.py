"""Gauges of the database, read on request and cached for a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sagas.app import Sagas
from sagas.checkpoints import FINISHED, SagaStatus
from sagas.events.breakers import BreakerState
from sagas.operations import Operations
from sagas.stores import OperatorStore

__all__ = ["Snapshot"]

logger = logging.getLogger(__name__)

_UNFINISHED = tuple(status.value for status in SagaStatus if status not in FINISHED)


class Snapshot(Collector):
    """Gauges of all sagas in the database, whichever process runs them. Register it in one or more processes.

    `every`: seconds for which a reading is reused before the database is queried again. `patience`: seconds that a
    scrape waits for a new reading. After that, and while the database is unavailable, the scrape gets the last reading,
    and `sagas_snapshot_up` is 0.

    Finished sagas are not included, because counting them reads every row. Workers count them as they end.
    Raises `ConfigurationError` if the store is not a `SqlStore`.

    >>> from prometheus_client import REGISTRY
    >>> REGISTRY.register(Snapshot(sagas))  # doctest: +SKIP
    """

    def __init__(self, sagas: Sagas, *, every: float = 15.0, patience: float = 2.0) -> None:
        self._sagas = sagas
        self._store = Operations(sagas).store
        self._every = every
        self._patience = patience
        self._last = _Reading()
        self._up = False
        self._asked_at = float("-inf")
        self._thread = threading.Thread()  # reads the database; not started at first
        self._lock = threading.Lock()

    def describe(self) -> Iterator[Metric]:
        """Return the metrics without values, so that registering does not query the database."""
        return iter([*_families(_Reading()), *self._here(), *self._self()])

    def collect(self) -> Iterator[Metric]:
        self._refresh()
        return iter([*_families(self._last), *self._here(), *self._self()])

    def _refresh(self) -> None:
        """Read again, in a thread, if the last reading is too old. Waits for the thread at most `patience` seconds."""
        with self._lock:
            thread = self._thread
            if not thread.is_alive():
                if time.monotonic() - self._asked_at < self._every:
                    return
                self._asked_at = time.monotonic()
                thread = self._thread = threading.Thread(target=self._read, name="sagas-snapshot", daemon=True)
                thread.start()
        thread.join(self._patience)
        if thread.is_alive():
            self._up = False

    def _read(self) -> None:
        try:
            self._last = _read(self._sagas, self._store)
            self._up = True
        except Exception as error:  # noqa: BLE001 - `up` reports it
            if self._up:
                logger.warning("metrics of the database could not be updated: %s", error)
            self._up = False

    def _self(self) -> Iterator[Metric]:
        yield _gauge("sagas_snapshot_up", "Whether the last reading of the database succeeded.", float(self._up))
        age = self._last.age
        if age < float("inf"):
            yield _gauge("sagas_snapshot_age_seconds", "The age of the reading behind the other gauges.", age)

    def _here(self) -> Iterator[Metric]:
        """Yield what only a process that reads event queues knows."""
        events = self._sagas.events
        if events is None:
            return
        open_ = GaugeMetricFamily("sagas_breaker_open", "1 while a circuit breaker pauses its queue.", labels=["queue"])
        openings = CounterMetricFamily("sagas_breaker_openings", "How often the breaker opened.", labels=["queue"])
        for queue, state in events.breakers.snapshot().items():
            open_.add_metric([queue], float(state["state"] != BreakerState.CLOSED))
            openings.add_metric([queue], state["openings"])
        yield from (open_, openings)


@dataclass(frozen=True, slots=True)
class _Reading:
    """A reading of the database: by saga and status, by saga, or by queue."""

    at: float | None = None  #: by the monotonic clock
    unfinished: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    oldest: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    not_progressing: Mapping[str, float] = field(default_factory=dict)
    letters: Mapping[str, float] = field(default_factory=dict)
    overdue: float | None = None
    event_letters: Mapping[str, float] | None = None
    unsent: float | None = None
    unsent_age: float | None = None
    unheard: float | None = None

    @property
    def age(self) -> float:
        return float("inf") if self.at is None else time.monotonic() - self.at


def _read(sagas: Sagas, store: OperatorStore) -> _Reading:
    begun, now, events = time.monotonic(), store.now(), sagas.events
    names = {name for name, _ in sagas.orchestrator.sagas}
    # Zeros for missing groups: an alert on a series that does not exist never fires.
    unfinished: dict[tuple[str, ...], float] = {(name, status): 0.0 for name in names for status in _UNFINISHED}
    oldest = dict(unfinished)
    for group in store.queries.in_flight():
        key = group.name, group.status.value
        unfinished[key] = unfinished.get(key, 0.0) + group.count
        oldest[key] = max(oldest.get(key, 0.0), (now - group.oldest).total_seconds())
    none = dict.fromkeys(names, 0.0)
    return _Reading(
        at=begun,
        unfinished=unfinished,
        oldest=oldest,
        not_progressing={**none, **store.queries.not_progressing()},
        letters={**none, **store.queries.open_dead_letters()},
        overdue=store.queries.overdue(),
        event_letters=None if events is None else events.open_dead_letters(),
        unsent=None if events is None else events.outbox_unsent(),
        unsent_age=None if events is None else events.outbox_age(),
        unheard=None if events is None else sum(events.outbox_unheard().values()),
    )


def _families(reading: _Reading) -> Iterator[Metric]:
    labels = ["saga", "status"]
    yield _gauges("sagas_unfinished", "Sagas that are not finished.", labels, reading.unfinished)
    yield _gauges("sagas_oldest_seconds", "Seconds since the oldest of them was started.", labels, reading.oldest)
    yield _gauges(
        "sagas_not_progressing",
        "Sagas whose next step has not started for a long time.",
        ["saga"],
        _keyed(reading.not_progressing),
    )
    yield _gauges("sagas_dead_letters", "Steps that need a person.", ["saga"], _keyed(reading.letters))
    if reading.overdue is not None:
        yield _gauge("sagas_overdue_seconds", "How long a saga has waited for recovery.", reading.overdue)
    if reading.event_letters is not None:
        text = "Messages that need a person."
        yield _gauges("sagas_event_dead_letters", text, ["queue"], _keyed(reading.event_letters))
    if reading.unsent is not None:
        yield _gauge("sagas_outbox_unsent", "Messages that await a relay.", reading.unsent)
    if reading.unheard is not None:
        yield _gauge("sagas_outbox_unheard", "Messages that reached nobody.", reading.unheard)
    if reading.unsent_age is not None:
        yield _gauge("sagas_outbox_oldest_seconds", "How long the oldest of them has waited.", reading.unsent_age)


def _keyed(values: Mapping[str, float]) -> Mapping[tuple[str, ...], float]:
    return {(name,): value for name, value in values.items()}


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _gauges(name: str, text: str, labels: list[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
