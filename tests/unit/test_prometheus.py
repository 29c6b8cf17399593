"""What is counted, and what is read from the database; in one process."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from celery import Celery
from prometheus_client import CollectorRegistry
from sqlalchemy import update
from sqlalchemy.orm import Session

from sagas import Parallel, Pivot, Retry, Saga, Sagas, SqlStore, Step, StepContext, TerminalError
from sagas.contrib.prometheus import Metrics, Snapshot
from sagas.contrib.prometheus.serving import _address
from sagas.errors import ConfigurationError, StoreUnavailable
from sagas.events import Events, Service, event
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.envelope import Envelope
from sagas.events.inbox import Call
from sagas.starts import start
from sagas.stores import schema
from sagas.testing import Inline
from sagas.testing.memory import MemoryStore

ONCE = Retry(max_attempts=1)


@event("stock.stock.reserved")
class StockReserved:
    sku: str


def nothing() -> None:
    pass


def decline() -> None:
    raise TerminalError("declined")


def refuse() -> None:
    raise ValueError("the bank is away")


def order() -> Saga:
    return Saga("order", Step("reserve", nothing, compensation=nothing), Step("pay", decline, compensation=None))


def stuck() -> Saga:
    return Saga("stuck", Step("reserve", nothing, compensation=nothing), Pivot("pay", refuse, retry=ONCE))


class Registry(CollectorRegistry):
    def value(self, name: str, **labels: str) -> float | None:
        return self.get_sample_value(name, labels)


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def sagas(store: SqlStore) -> Iterator[Sagas]:
    app = Celery("x", broker="memory://", set_as_current=False)
    stock, billing = Service("stock", publishes=[StockReserved]), Service("billing")

    @billing.on(StockReserved, breaker=1, breaker_pause=60)
    def bill(event: StockReserved) -> None:
        if event.sku == "gold":
            raise TerminalError("too dear")

    events = Events([stock, billing], engine=store.engine, broker=MemoryBroker())
    yield Sagas(app, store, [order(), stuck()], events=events)
    app.close()


# -- counters -------------------------------------------------------------------------------------------------------


def counted(registry: Registry, store: SqlStore | MemoryStore | None = None) -> Inline:
    inline = Inline(store)
    inline.orchestrator.observers.add(Metrics(registry))
    return inline


def test_a_saga_that_turns_back_is_counted(registry: Registry) -> None:
    counted(registry).start(order())
    assert registry.value("sagas_started_total", saga="order") == 1
    assert registry.value("sagas_compensations_started_total", saga="order") == 1
    assert registry.value("sagas_ended_total", saga="order", status="COMPENSATED") == 1

    def attempts(step: str, direction: str, outcome: str) -> float | None:
        labels = {"saga": "order", "step": step, "direction": direction, "outcome": outcome}
        return registry.value("sagas_attempt_seconds_count", **labels)

    assert attempts("reserve", "FORWARD", "succeeded") == 1
    assert attempts("pay", "FORWARD", "terminal") == 1
    assert attempts("reserve", "BACKWARD", "succeeded") == 1
    assert attempts("pay", "BACKWARD", "succeeded") is None


def test_retries_and_the_time_that_attempts_take(registry: Registry) -> None:
    inline = counted(registry)
    inline.fail_at("a", ValueError("broken"), times=2)
    inline.start(Saga("s", Step("a", lambda: threading.Event().wait(0.03), compensation=None)))
    labels = {"saga": "s", "step": "a", "direction": "FORWARD"}
    assert registry.value("sagas_retries_total", **labels) == 2
    assert registry.value("sagas_attempt_seconds_count", **labels, outcome="failed") == 2
    took = registry.value("sagas_attempt_seconds_sum", **labels, outcome="succeeded")
    assert took is not None
    assert 0.03 < took < 2


def test_what_recovery_does_is_counted(registry: Registry) -> None:
    inline = counted(registry)
    inline.crash_before("a")
    inline.start(Saga("s", Step("a", nothing, compensation=None)))
    assert registry.value("sagas_recovery_total", saga="s", action="takeover") == 1
    inline.crash_before("a")  # not to be told from one that does not answer: its time is up before its lease
    inline.start(Saga("t", Step("a", nothing, compensation=None, timeout=1)))
    assert registry.value("sagas_recovery_total", saga="t", action="timeout") == 1


def test_a_step_that_fails_in_time_is_no_timeout(registry: Registry) -> None:
    inline = counted(registry)
    inline.start(
        Saga("s", Parallel(Step("a", refuse, compensation=None, retry=ONCE), Step("b", nothing, compensation=None)))
    )
    assert registry.value("sagas_recovery_total", saga="s", action="timeout") is None


def test_labels_are_names_from_the_code(registry: Registry, store: SqlStore) -> None:
    """Never a key, an id or an error: each would be a series of its own."""

    def fail(step: StepContext) -> None:
        raise ValueError("payload-in-error")

    inline = counted(registry, store)
    saga_id = inline.start(Saga("s", Step("a", fail, compensation=None)), key="the-key", correlation_id="the-story").id
    values = {value for family in registry.collect() for sample in family.samples for value in sample.labels.values()}
    assert not {text for text in values for secret in ("payload", "the-", saga_id) if secret in text}


def test_messages_are_counted(registry: Registry, sagas: Sagas) -> None:
    sagas.observers.add(Metrics(registry))
    assert sagas.events is not None
    for sku in ("tea", "gold"):
        envelope = Envelope.wrap(StockReserved(sku=sku), source="stock")
        sagas.events.handle(Call("billing.bill", envelope.topic, envelope.encode(), attempt=1, redelivered=False))
    for outcome in ("handled", "failed"):
        assert registry.value("sagas_event_handling_seconds_count", queue="billing.bill", outcome=outcome) == 1
    with Session(sagas.events.engine) as session:
        sagas.events.publish(StockReserved(sku="tea"), session)
        session.commit()
    sagas.events.relay.send()
    assert registry.value("sagas_events_relayed_total") == 1
    sagas.recovery.run_once()
    assert registry.value("sagas_recovery_passes_total") == 1


# -- the snapshot ---------------------------------------------------------------------------------------------------


def test_what_the_database_says(registry: Registry, sagas: Sagas, store: SqlStore) -> None:
    inline = Inline(store)
    handle = inline.start(stuck())
    inline.start(order())
    registry.register(Snapshot(sagas))
    assert registry.value("sagas_unfinished", saga="stuck", status="STUCK") == 1
    assert registry.value("sagas_unfinished", saga="order", status="RUNNING") == 0  # a series that an alert can watch
    assert registry.value("sagas_dead_letters", saga="stuck") == 1
    assert registry.value("sagas_dead_letters", saga="order") == 0
    assert registry.value("sagas_overdue_seconds") == 0
    age = registry.value("sagas_oldest_seconds", saga="stuck", status="STUCK")
    created = store.load(handle.id).created_at
    assert age == pytest.approx((store.now() - created).total_seconds(), abs=5)
    assert registry.value("sagas_snapshot_up") == 1


def test_overdue_and_not_progressing(registry: Registry, sagas: Sagas, store: SqlStore) -> None:
    orchestrator = sagas.orchestrator
    saga = orchestrator.sagas["order", 1]
    saga_id = start(orchestrator, saga, None, key=None, correlation_id=None, session=None).record.id
    with store.engine.begin() as connection:
        late = update(schema.sagas).where(schema.sagas.c.id == saga_id)
        connection.execute(late.values(next_check_at=store.now().replace(year=2020), idle_checks=3))
    registry.register(Snapshot(sagas))
    assert (registry.value("sagas_overdue_seconds") or 0) > 1e7
    assert registry.value("sagas_not_progressing", saga="order") == 1
    assert registry.value("sagas_unfinished", saga="order", status="PENDING") == 1


def test_events_in_the_database(registry: Registry, sagas: Sagas) -> None:
    events = sagas.events
    assert events is not None
    with Session(events.engine) as session:
        envelope = events.publish(StockReserved(sku="gold"), session)
        session.commit()
    events._letters.file("billing.bill", envelope, error="broken", attempts=1)
    breaker = events.breakers.of(events.subscriptions[0])
    breaker.failed()
    registry.register(Snapshot(sagas))
    assert registry.value("sagas_outbox_unsent") == 1
    assert (registry.value("sagas_outbox_oldest_seconds") or 0) > 0
    assert registry.value("sagas_event_dead_letters", queue="billing.bill") == 1
    assert registry.value("sagas_breaker_open", queue="billing.bill") == 1
    assert registry.value("sagas_breaker_openings_total", queue="billing.bill") == 1


def test_the_database_is_asked_so_often_and_not_when_registered(
    registry: Registry, sagas: Sagas, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, in_flight = [], store.queries.in_flight

    def count() -> object:
        asked.append(1)
        return in_flight()

    monkeypatch.setattr(store.queries, "in_flight", count)
    registry.register(Snapshot(sagas, every=3600))
    assert asked == []
    for _ in range(3):
        assert registry.value("sagas_snapshot_up") == 1
    assert asked == [1]


def test_a_database_that_is_away_leaves_the_last_reading(
    registry: Registry, sagas: Sagas, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    Inline(store).start(stuck())
    registry.register(Snapshot(sagas, every=0))
    assert registry.value("sagas_unfinished", saga="stuck", status="STUCK") == 1

    def away() -> None:
        raise StoreUnavailable("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(store.queries, "in_flight", away)
        assert registry.value("sagas_snapshot_up") == 0
        assert registry.value("sagas_unfinished", saga="stuck", status="STUCK") == 1
    assert registry.value("sagas_snapshot_up") == 1


def test_a_database_that_hangs_does_not_hold_a_scrape_up(
    registry: Registry, sagas: Sagas, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, asked = threading.Event(), []
    in_flight = store.queries.in_flight

    def hang() -> object:
        asked.append(1)
        hangs.wait(30)
        return in_flight()

    monkeypatch.setattr(store.queries, "in_flight", hang)
    registry.register(Snapshot(sagas, every=0, patience=0.05))
    for _ in range(3):
        assert registry.value("sagas_snapshot_up") == 0
    assert asked == [1]  # one at a time waits for it
    assert registry.value("sagas_snapshot_age_seconds") is None
    hangs.set()


def test_only_sql_has_a_snapshot() -> None:
    app = Celery("x", broker="memory://", set_as_current=False)
    with pytest.raises(ConfigurationError, match="SqlStore"):
        Snapshot(Sagas(app, MemoryStore(), [order()]))


def test_addresses() -> None:
    assert _address("9101") == ("127.0.0.1", 9101)
    assert _address("0.0.0.0:9101") == ("0.0.0.0", 9101)
    assert _address("[::1]:9101") == ("::1", 9101)
    for wrong in ("", "here", "here:", "1:99999"):
        with pytest.raises(ConfigurationError, match="use a port or an address"):
            _address(wrong)
