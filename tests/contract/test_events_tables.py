"""Outbox, inbox, dead letters and leases, on every database that they run on."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from sagas import Retry, SqlStore, TerminalError
from sagas.events import Envelope, Events, HandlerContext, Service, event, leases
from sagas.events.brokers import Outgoing
from sagas.events.inbox import Call, End
from sagas.stores import schema
from tests.databases import database_url


@event("books.page.turned")
class PageTurned:
    number: int


books = Service("books", publishes=[PageTurned])
readers = Service("readers")
barrier = threading.Event()
begun = threading.Semaphore(0)


@readers.on(PageTurned, retry=Retry(max_attempts=1), ordered=True)
def read_page(page: PageTurned, context: HandlerContext) -> None:
    context.session.execute(text("insert into effect values (:n)"), {"n": page.number})
    begun.release()
    if page.number < 0:
        barrier.wait(10)
    if page.number == -2:
        raise TerminalError("torn")


QUEUE = "readers.read_page"


class Recording:
    """A broker that keeps what it is given, and how it was put together."""

    def __init__(self) -> None:
        self.messages: list[Outgoing] = []
        self.lock = threading.Lock()

    def declare(self, _: Any) -> Sequence[str]:
        return []

    def publish(self, messages: Sequence[Outgoing]) -> Collection[str]:
        for message in messages:
            with self.lock:
                self.messages.append(message)
        return ()

    def unbind(self, exchange: str, queue: str, topics: Iterable[str]) -> None: ...


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def events(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Events]:
    store = SqlStore(database_url(request, request.param, tmp_path))
    store.upgrade()
    with store.engine.begin() as connection:
        connection.execute(text("create table effect (n integer)"))
    barrier.clear()
    while begun.acquire(blocking=False):
        pass
    yield Events([books, readers], engine=store.engine, broker=Recording())  # type: ignore[arg-type]
    store.engine.dispose()


def publish(events: Events, *numbers: int, key: str | None = None) -> list[Envelope]:
    with Session(events.engine) as session, session.begin():
        return [events.publish(PageTurned(number=n), session, key=key) for n in numbers]


def call(envelope: Envelope, **changes: Any) -> Call:
    values = {"queue": QUEUE, "topic": envelope.topic, "body": envelope.encode(), "attempt": 1, "redelivered": False}
    return Call(**{**values, **changes})


def effects(engine: Engine) -> list[int]:
    with Session(engine) as session:
        return list(session.execute(text("select n from effect")).scalars())


def test_relays_beside_each_other_send_all_and_keep_each_key_in_order(events: Events) -> None:
    keys = [f"key {n}" for n in range(10)]

    def write(some: list[str]) -> None:
        for key in some:
            for number in range(40):
                publish(events, number, key=key)

    def relay() -> None:
        mine = Events([books, readers], engine=events.engine, broker=events.broker).relay
        while not done.is_set() or events.outbox_unsent():
            mine.send()

    done = threading.Event()
    with ThreadPoolExecutor(6) as threads:
        relays = [threads.submit(relay) for _ in range(3)]
        writers = [threads.submit(write, some) for some in (keys[:3], keys[3:6], keys[6:])]
        for writer in writers:
            writer.result()
        done.set()
        for each in relays:
            each.result()
    sent: dict[str | None, list[int]] = defaultdict(list)
    for message in events.broker.messages:  # type: ignore[attr-defined]
        sent[message.key].append(Envelope.decode(message.body).open(read_type()).number)
    assert sent == {key: list(range(40)) for key in keys}


def read_type() -> Any:
    return books.publishes[0]


def test_a_locked_shard_is_left_to_its_relay(events: Events) -> None:
    if events.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one lock for all: another relay waits for it")
    publish(events, 1, key="a")
    with events.engine.begin() as other:
        other.execute(select(schema.relay_shards).with_for_update())
        assert events.relay._look() == (0, None)
    assert events.relay.send() == 1


def test_of_two_deliveries_at_once_one_is_handled(events: Events) -> None:
    [envelope] = publish(events, -1)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(events.handle, call(envelope))
        assert begun.acquire(timeout=10)
        second = threads.submit(events.handle, call(envelope))
        barrier.set()
        ends = {first.result(40).end, second.result(40).end}
    assert ends == {End.HANDLED, End.SKIPPED}
    assert effects(events.engine) == [-1]


def test_the_second_is_handled_when_the_first_fails(events: Events) -> None:
    [envelope] = publish(events, -2)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(events.handle, call(envelope))
        assert begun.acquire(timeout=10)
        second = threads.submit(events.handle, call(envelope))
        barrier.set()
        # Each of them had the chance to handle it, and nothing is left of either.
        assert (first.result(40).end, second.result(40).end) == (End.REJECTED, End.REJECTED)
    assert effects(events.engine) == []


def test_ids_that_differ_in_case_are_different(events: Events) -> None:
    [envelope] = publish(events, 1)
    for event_id in ("a", "A"):
        other = Envelope(**{**{f: getattr(envelope, f) for f in envelope.__struct_fields__}, "event_id": event_id})
        assert events.handle(call(other)).end is End.HANDLED


def test_dead_letters(events: Events) -> None:
    barrier.set()
    letters = events._letters
    first, second = publish(events, -2, 2, key="ü💶")
    assert events.handle(call(first)).end is End.REJECTED
    number = letters.file(QUEUE, first, error="torn \x00 \udc80", attempts=1)
    assert letters.file(QUEUE, first, error="torn again", attempts=1) == number
    assert events.handle(call(second)).end is End.PARKED
    assert events.handle(call(second)).end is End.PARKED  # delivered again
    [torn, parked] = events.dead_letters(key="ü💶")
    assert (torn.attempts, torn.error, parked.behind) == (2, "torn again", torn.id)
    assert Envelope.decode(torn.body) == first
    assert torn.created_at.tzinfo is UTC
    assert events.dead_letters(queue="other") == events.dead_letters(key="Ü💶") == []
    assert [letter.id for letter in events.discard([torn], reason="torn", actor="me")] == [torn.id]
    # What was parked is on its way, marked as what it is, and that resolves it.
    with Session(events.engine) as session:
        body = session.execute(select(schema.outbox.c.body).where(schema.outbox.c.queue == QUEUE)).scalar_one()
    assert events.handle(call(second, body=body.encode())).end is End.HANDLED
    assert events.dead_letters() == []
    assert {letter.resolution for letter in events.dead_letters(resolved=True)} == {"discarded", "replayed"}


def test_what_is_parked_while_the_first_is_discarded_is_not_forgotten(events: Events) -> None:
    """Whoever parks holds the first; who resolves that waits, and then sees what was parked."""
    if events.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    barrier.set()
    [first, second] = publish(events, -2, 2, key="k")
    letters = events._letters
    letters.file(QUEUE, first, error="torn", attempts=1)
    [torn] = events.dead_letters()
    with ThreadPoolExecutor(1) as threads, events.engine.connect() as parking:
        head = letters.first(parking, QUEUE, "k")
        assert head is not None
        discarding = threads.submit(events.discard, [torn], reason="x")
        assert not wait([discarding], timeout=0.5).done  # it waits, however long one looks
        letters.file_in(parking, QUEUE, second, error="parked", attempts=0, behind=head.id)
        parking.commit()
        discarding.result(20)
    [parked] = events.dead_letters()
    assert parked.resolution == "replaying"


def test_leases(events: Events) -> None:
    engine = events.engine
    assert leases.take(engine, QUEUE, "a", 30)
    assert leases.take(engine, QUEUE, "a", 30)
    assert not leases.take(engine, QUEUE, "b", 30)
    leases.release(engine, QUEUE, "b")
    assert not leases.take(engine, QUEUE, "b", 30)
    with engine.begin() as connection:
        assert leases.is_mine(connection, QUEUE, "a")
        past = datetime.now(UTC) - timedelta(seconds=1)
        connection.execute(update(schema.consumer_leases).values(lease_until=past))
    assert leases.take(engine, QUEUE, "b", 30)
    leases.release(engine, QUEUE, "b")
    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(lambda n: leases.take(engine, QUEUE, str(n), 30), range(8))) == 1


def test_who_lost_the_lease_changes_nothing(events: Events) -> None:
    leases.take(events.engine, QUEUE, "b", 30)
    [envelope] = publish(events, 1, key="k")
    assert events.handle(call(envelope, owner="a")).end is End.LOST
    assert effects(events.engine) == []
    assert events.handle(call(envelope, owner="b")).end is End.HANDLED


def test_forgetting_takes_more_than_one_batch(events: Events) -> None:
    old = datetime.now(UTC) - timedelta(days=2)
    publish(events, *range(1500))
    with events.engine.begin() as connection:
        connection.execute(update(schema.outbox).values(sent_at=old))
        rows = [
            {
                "queue": QUEUE, "event_id": str(n), "type": "t", "version": 1, "source": "s", "correlation_id": "c",
                "handled_at": old,
            }
            for n in range(1500)
        ]  # fmt: skip
        connection.execute(schema.inbox.insert(), rows)
    assert events.purge(timedelta(days=1)) == 3000
    with Session(events.engine) as session:
        assert session.execute(select(func.count()).select_from(schema.outbox)).scalar_one() == 0
