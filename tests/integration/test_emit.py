"""What a step emits, in the outbox: with the checkpoint, and as part of the story of its saga."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import select
from sqlalchemy.orm import Session

from sagas import ConfigurationError, Saga, Sagas, SqlStore, Step, StepContext
from sagas.events import NO_STREAM, Envelope, Events, EventStore, Service, command, event, type_of
from sagas.events.brokers.memory import MemoryBroker
from sagas.stores import schema
from sagas.testing import Inline


@event("stock.stock.reserved")
class StockReserved:
    sku: str


@event("billing.invoice.sent")
class InvoiceSent:
    number: int


@command("mailing.send_mail")
class SendMail:
    to: str


def events_of(store: SqlStore) -> Events:
    return Events([Service("stock", publishes=[StockReserved])], engine=store.engine, broker=MemoryBroker())


def rows_of(store: SqlStore) -> list[Any]:
    with store.engine.connect() as connection:
        return list(connection.execute(select(schema.outbox).order_by(schema.outbox.c.id)).mappings())


def test_events_and_commands_of_a_step_carry_its_saga_along(store: SqlStore) -> None:
    def reserve(step: StepContext) -> None:
        step.emit(StockReserved(sku="tea"))
        step.emit(SendMail(to="ann"), key="ann")

    inline = Inline(store, events=events_of(store))
    saga = Saga("order", Step("reserve", reserve, compensation=None), publish_lifecycle=True)
    handle = inline.start(saga, key="o-1", correlation_id="story")
    rows = rows_of(store)
    told = [(row["type"], row["source"], row["key"], row["queue"]) for row in rows]
    assert told == [
        ("sagas.saga.started", "sagas", handle.id, None),
        ("stock.stock.reserved", "stock", "o-1", None),
        ("mailing.send_mail", "sagas", "ann", "mailing.commands"),
        ("sagas.step.completed", "sagas", handle.id, None),
        ("sagas.saga.completed", "sagas", handle.id, None),
    ]
    assert {row["correlation_id"] for row in rows} == {"story"}
    assert rows[1]["causation_id"] == f"{handle.id}:reserve"
    envelope = Envelope.decode(rows[1]["body"])
    assert envelope.open(type_of(StockReserved)) == StockReserved(sku="tea")


def test_a_step_cannot_publish_what_belongs_to_another_service(store: SqlStore) -> None:
    def bill(step: StepContext) -> None:
        step.emit(InvoiceSent(number=1))

    inline = Inline(store, events=events_of(store))
    handle = inline.start(Saga("order", Step("bill", bill, compensation=None)))
    assert "Only its owner publishes an event" in (handle.error or "")
    assert rows_of(store) == []


def test_a_saga_that_publishes_its_life_needs_events(store: SqlStore) -> None:
    saga = Saga("order", Step("a", lambda: None, compensation=None), publish_lifecycle=True)
    with pytest.raises(ConfigurationError, match="nothing to publish through"):
        Sagas(Celery("x", broker="memory://", set_as_current=False), store, [saga])


def test_events_and_sagas_must_share_a_database(store: SqlStore, tmp_path: Path) -> None:
    other = SqlStore(f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(ConfigurationError, match="one transaction"):
        Sagas(Celery("x", broker="memory://", set_as_current=False), store, events=events_of(other))


def test_an_event_is_kept_and_published_in_one_transaction(store: SqlStore) -> None:
    events, kept = events_of(store), EventStore(store.engine, types=[StockReserved])
    with Session(store.engine) as session:
        envelope = events.publish(StockReserved(sku="tea"), session, key="tea")
        kept.append(session, "stock-tea", [envelope], expected=NO_STREAM)
        session.commit()
    with Session(store.engine) as session:
        again = events.publish(StockReserved(sku="tea"), session, key="tea")
        kept.append(session, "stock-tea", [again], expected=1)
        session.rollback()
    [row], [stored] = rows_of(store), kept.read("stock-tea")
    assert row["event_id"] == stored.event_id == envelope.event_id
    assert stored.event == StockReserved(sku="tea")
