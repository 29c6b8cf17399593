"""What the tables tell of a choreography: edges that were seen, and whole stories, on every database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, insert, update

from sagas import SagaRecord, SagaStatus, SqlStore, StepRecord, StepStatus
from sagas.checkpoints import HistoryEntry, HistoryKind
from sagas.events import Envelope, command, event, outbox
from sagas.events.choreography import Heard, observed
from sagas.events.trace import Entry, trace
from sagas.stores import schema
from tests.databases import migrated_store

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture(scope="module", params=["sqlite", "postgres", "mariadb"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlStore]:
    with migrated_store(request, request.param, tmp_path_factory.mktemp("story")) as store:
        yield store


@event("orders.order.placed")
class Placed: ...


@event("stock.item.reserved")
class Reserved: ...


@event("pay.payment.declined", failure=True)
class Declined: ...


@command("stock.release")
class Release: ...


class Tables:
    """Writes what the flow of events would have written, a second apart."""

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self.seconds = 0

    def _next(self) -> datetime:
        self.seconds += 1
        return START + timedelta(seconds=self.seconds)

    def publish(
        self, cls: type, source: str, cause: Envelope | None = None, *, kept: bool = True, **options: Any
    ) -> Envelope:
        envelope = Envelope.wrap(cls(), source=source, cause=cause, **options)
        queue = f"{envelope.event_type.partition('.')[0]}.commands" if envelope.kind == "command" else None
        if kept:
            row = {**outbox.outbox_row(envelope, queue), "created_at": self._next(), "sent_at": START}
            with self.store.engine.begin() as connection:
                connection.execute(insert(schema.outbox), row)
        return envelope

    def handle(self, envelope: Envelope, queue: str) -> None:
        row = {
            "queue": queue, "event_id": envelope.event_id, "type": envelope.event_type, "version": envelope.version,
            "source": envelope.source, "correlation_id": envelope.correlation_id,
            "causation_id": envelope.causation_id, "handled_at": self._next(),
        }  # fmt: skip
        with self.store.engine.begin() as connection:
            connection.execute(insert(schema.inbox), row)

    def bury(self, envelope: Envelope, queue: str, error: str) -> None:
        row = {
            "queue": queue, "event_id": envelope.event_id, "type": envelope.event_type, "version": envelope.version,
            "correlation_id": envelope.correlation_id, "headers": "{}", "body": envelope.encode().decode(),
            "error": error, "attempts": 1, "created_at": self._next(),
        }  # fmt: skip
        with self.store.engine.begin() as connection:
            connection.execute(insert(schema.event_dead_letters), row)


@pytest.fixture
def tables(store: SqlStore) -> Tables:
    with store.engine.begin() as connection:
        for table in (schema.outbox, schema.inbox, schema.event_dead_letters, schema.sagas):
            connection.execute(delete(table))
    return Tables(store)


def _lines(entries: Sequence[Entry], depth: int = 0) -> list[str]:
    lines = []
    for entry in entries:
        lines.append(f"{'  ' * depth}{entry.kind} {entry.who} {entry.what}")
        lines += _lines(entry.children, depth + 1)
    return lines


def test_edges_that_were_seen(store: SqlStore, tables: Tables) -> None:
    for _ in range(2):
        placed = tables.publish(Placed, "orders")
        tables.handle(placed, "stock.reserve")
        reserved = tables.publish(Reserved, "stock", placed)
        tables.handle(reserved, "pay.take")
    tables.handle(placed, "mail.thank")
    release = tables.publish(Release, "pay", reserved)
    tables.handle(release, "stock.commands")
    elsewhere = tables.publish(Declined, "pay", kept=False)
    tables.handle(elsewhere, "stock.watch")
    assert observed(store.engine) == {
        Heard("orders.order.placed", "stock.reserve"): 2,
        Heard("orders.order.placed", "mail.thank"): 1,
        Heard("orders.order.placed", "stock.reserve", "stock.item.reserved"): 2,
        Heard("stock.item.reserved", "pay.take"): 2,
        Heard("stock.item.reserved", "pay.take", "stock.release"): 1,
        Heard("stock.release", "stock.commands"): 1,
        Heard("pay.payment.declined", "stock.watch"): 1,
    }


def test_a_story_across_services(store: SqlStore, tables: Tables) -> None:
    placed = tables.publish(Placed, "orders", correlation_id="o-1", key="o-1")
    tables.publish(Placed, "orders", correlation_id="O-1")  # another story, also on MySQL
    tables.handle(placed, "mail.thank")
    tables.handle(placed, "stock.reserve")
    reserved = tables.publish(Reserved, "stock", placed)
    declined = tables.publish(Declined, "pay", reserved, kept=False)  # pay has a database of its own
    tables.handle(declined, "stock.watch")
    tables.bury(declined, "stock.give_back", "ValueError: no shelf")
    tables.publish(Release, "stock", declined)
    assert _lines(trace(store.engine, "o-1")) == [
        "message orders orders.order.placed",
        "  handled mail.thank orders.order.placed",
        "  handled stock.reserve orders.order.placed",
        "    message stock stock.item.reserved",
        "      message pay pay.payment.declined",
        "        handled stock.watch pay.payment.declined",
        "          message stock stock.release",
        "        dead letter stock.give_back ValueError: no shelf",
    ]
    assert trace(store.engine, "o-2") == []
    [root] = trace(store.engine, "o-1")
    assert root.at == START + timedelta(seconds=1)
    assert root.as_json()["children"][1]["children"][0]["id"] == reserved.event_id
    assert root.children[1].children[0].children[0].detail == "published elsewhere, or purged"


def test_a_story_with_a_saga_in_it(store: SqlStore, tables: Tables) -> None:
    record = SagaRecord(
        id="saga-1", name="place_order", version=1, key="o-1", outline='[{"step": "pay"}]', correlation_id="o-1", input="{}",
        created_at=START, updated_at=START, stage_ready_at=START,
    )  # fmt: skip
    step = StepRecord(node="pay", seq=1, status=StepStatus.DONE, started_seq=0, started_at=START + timedelta(seconds=1))
    failed = HistoryEntry(
        at=START + timedelta(seconds=9), what=HistoryKind.COMPENSATION_STARTED, epoch=1, detail="late", step=None
    )
    saved = store.insert(record)
    store.save(saved, replace(saved, status=SagaStatus.RUNNING, steps={"pay": step}), [failed])
    paid = tables.publish(Reserved, "stock", correlation_id="o-1", metadata={"causationId": "saga-1:pay"})
    tables.handle(paid, "mail.thank")
    tables.publish(Placed, "sagas", correlation_id="o-1", metadata={"causationId": "saga-1"})
    unsent = update(schema.outbox).where(schema.outbox.c.event_id == paid.event_id).values(sent_at=None)
    with store.engine.begin() as connection:
        connection.execute(unsent)
    story = trace(store.engine, "o-1")
    assert _lines(story) == [
        "saga place_order RUNNING",
        "  step pay DONE",
        "    message stock stock.item.reserved",
        "      handled mail.thank stock.item.reserved",
        "  message sagas orders.order.placed",
        "  history place_order compensation started",
    ]
    assert story[0].children[0].children[0].detail == "NOT SENT YET"


def test_a_replay_is_no_second_message(store: SqlStore, tables: Tables) -> None:
    placed = tables.publish(Placed, "orders", correlation_id="o-1")
    again = {**outbox.outbox_row(placed, "mail.thank"), "created_at": tables._next()}
    with store.engine.begin() as connection:
        connection.execute(insert(schema.outbox), again)
    tables.handle(placed, "mail.thank")
    story = trace(store.engine, "o-1")
    assert _lines(story) == ["message orders orders.order.placed", "  handled mail.thank orders.order.placed"]
    assert story[0].at == START + timedelta(seconds=1)
