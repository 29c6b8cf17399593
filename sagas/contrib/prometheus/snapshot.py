"""What the database says: gauges that are read from it when somebody looks, at most so often."""

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
from sagas.stores import SqlStore

__all__ = ["Snapshot"]

logger = logging.getLogger(__name__)

_UNFINISHED = tuple(status.value for status in SagaStatus if status not in FINISHED)


class Snapshot(Collector):
    """Gauges of all sagas in the database, whoever runs them. Register it in one process, such as Flower, or in many.

    `every`: seconds for which a reading is good; in between the database is not asked. `patience`: seconds that a
    scrape waits for a new reading. After that, and while the database is away, it gets the last one, and
    `sagas_snapshot_up` is 0.

    Finished sagas are not among them: to count them takes a look at every row. Workers count them as they end.
    Raises `ConfigurationError` where the sagas are kept in something else than a `SqlStore`.

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
        self._thread = threading.Thread()  # that reads; at first none does
        self._lock = threading.Lock()

    def describe(self) -> Iterator[Metric]:
        """Return the metrics without values, so that the database is not asked when this is registered."""
        return iter([*_families(_Reading()), *self._here(), *self._self()])

    def collect(self) -> Iterator[Metric]:
        self._refresh()
        return iter([*_families(self._last), *self._here(), *self._self()])

    def _refresh(self) -> None:
        """Read anew, in a thread of its own, where the last reading is too old. Waits for it, but not for long."""
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
        except Exception as error:  # noqa: BLE001 - that is what `up` tells
            if self._up:
                logger.warning("the metrics of the database are old: %s", error)
            self._up = False

    def _self(self) -> Iterator[Metric]:
        yield _gauge("sagas_snapshot_up", "Whether the last reading of the database succeeded.", float(self._up))
        age = self._last.age
        if age < float("inf"):
            yield _gauge("sagas_snapshot_age_seconds", "How old the reading is that the other gauges show.", age)

    def _here(self) -> Iterator[Metric]:
        """What only the process knows that reads queues of events."""
        events = self._sagas.events
        if events is None:
            return
        open_ = GaugeMetricFamily("sagas_breaker_open", "1 while a breaker holds its queue back.", labels=["queue"])
        openings = CounterMetricFamily("sagas_breaker_openings", "How often it has opened.", labels=["queue"])
        for queue, state in events.breakers.snapshot().items():
            open_.add_metric([queue], float(state["state"] != BreakerState.CLOSED))
            openings.add_metric([queue], state["openings"])
        yield from (open_, openings)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the database said. By saga and status, by saga, by queue."""

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


def _read(sagas: Sagas, store: SqlStore) -> _Reading:
    begun, now, events = time.monotonic(), store.now(), sagas.events
    names = {name for name, _ in sagas.orchestrator.sagas}
    # Zeros for what there is none of: an alert that watches a series which is not there says nothing.
    unfinished: dict[tuple[str, ...], float] = {(name, status): 0.0 for name in names for status in _UNFINISHED}
    oldest = dict(unfinished)
    for group in store.in_flight():
        key = group.name, group.status.value
        unfinished[key] = unfinished.get(key, 0.0) + group.count
        oldest[key] = max(oldest.get(key, 0.0), (now - group.oldest).total_seconds())
    none = dict.fromkeys(names, 0.0)
    return _Reading(
        at=begun,
        unfinished=unfinished,
        oldest=oldest,
        not_progressing={**none, **store.standing_still()},
        letters={**none, **store.open_dead_letters()},
        overdue=store.overdue(),
        event_letters=None if events is None else events.open_dead_letters(),
        unsent=None if events is None else events.outbox_unsent(),
        unsent_age=None if events is None else events.outbox_age(),
        unheard=None if events is None else sum(events.outbox_unheard().values()),
    )


def _families(reading: _Reading) -> Iterator[Metric]:
    actor = ["saga", "status"]
    yield _gauges("sagas_unfinished", "Sagas that are not finished.", actor, reading.unfinished)
    yield _gauges("sagas_oldest_seconds", "Since when the oldest of them was started.", actor, reading.oldest)
    yield _gauges(
        "sagas_not_progressing",
        "Sagas whose next step has not started for a long time.",
        ["saga"],
        _keyed(reading.not_progressing),
    )
    yield _gauges("sagas_dead_letters", "Steps that wait for a person.", ["saga"], _keyed(reading.letters))
    if reading.overdue is not None:
        yield _gauge("sagas_overdue_seconds", "For how long a saga has waited for recovery.", reading.overdue)
    if reading.event_letters is not None:
        text = "Messages that wait for a person."
        yield _gauges("sagas_event_dead_letters", text, ["queue"], _keyed(reading.event_letters))
    if reading.unsent is not None:
        yield _gauge("sagas_outbox_unsent", "Messages that wait for a relay.", reading.unsent)
    if reading.unheard is not None:
        yield _gauge("sagas_outbox_unheard", "Messages that were sent and reached nobody.", reading.unheard)
    if reading.unsent_age is not None:
        yield _gauge("sagas_outbox_oldest_seconds", "For how long the oldest of them has waited.", reading.unsent_age)


def _keyed(values: Mapping[str, float]) -> Mapping[tuple[str, ...], float]:
    return {(name,): value for name, value in values.items()}


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _gauges(name: str, text: str, labels: list[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
