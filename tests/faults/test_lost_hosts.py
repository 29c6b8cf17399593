"""A process that vanishes in the middle of a transaction: the database ends that, and others go on.

The process is real, and frozen: its connections stay open and say nothing, as those of a host that lost its power.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from sagas import SqlStore
from sagas.events import Envelope, Events, EventStore, HandlerContext, Projection, Service, StoredEvent, event, relay
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.inbox import Call, End
from sagas.stores import transactions
from tests.servers import die_with_parent, wait_for

#: Seconds, instead of half a minute, after which the database ends what it hears nothing of.
QUICK = 2.0


@event("orders.order.placed")
class OrderPlaced:
    order_id: str


class Stops(MemoryBroker):
    """A broker at which its process is frozen."""

    def publish(self, messages: object) -> list[str]:
        freeze()
        return []


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def events_of(url: str, act: Callable[[], object], broker: MemoryBroker | None = None) -> Events:
    store = SqlStore(url)
    orders, stock = Service("orders", publishes=[OrderPlaced]), Service("stock")

    @stock.on(OrderPlaced, name="reserve")
    def reserve(_event: OrderPlaced, context: HandlerContext) -> None:
        context.session.execute(text("insert into effect values (1)"))
        act()

    counted = Projection("counted")

    @counted.on(OrderPlaced)
    def count(_stored: StoredEvent[OrderPlaced], session: object) -> None:
        act()

    return Events(
        [orders, stock],
        engine=store.engine,
        broker=broker or MemoryBroker(),
        store=EventStore(store.engine, types=[OrderPlaced]),
        projections=[counted],
    )


def handles(url: str, body: bytes, act: Callable[[], object]) -> End:
    call = Call(queue="stock.reserve", topic="orders.order.placed.v1", body=body, attempt=1, redelivered=False)
    return events_of(url, act).handle(call).end


def relays(url: str, act: Callable[[], object], broker: MemoryBroker) -> int:
    events = events_of(url, act, broker)
    events.apply_topology()
    return events.relay.send()


def projects(url: str, act: Callable[[], object]) -> int:
    events = events_of(url, act)
    assert events.projections is not None
    return events.projections.advance(events.projections.get("counted"))


def steps(url: str, act: Callable[[], object]) -> int:
    with SqlStore(url).transaction(limit=QUICK) as session:
        session.execute(text("insert into effect values (2)"))
        act()
        return 1


def _vanish(what: str, url: str, body: bytes) -> None:
    die_with_parent()
    hurry()
    match what:
        case "handler":
            handles(url, body, freeze)
        case "relay":
            relays(url, freeze, Stops())
        case "projection":
            projects(url, freeze)
        case "step":
            steps(url, freeze)


def hurry() -> None:
    transactions.IDLE = transactions.UNHEARD = relay._LONGEST_SEND = QUICK


@contextmanager
def frozen(what: str, url: str, body: bytes = b"") -> Iterator[None]:
    process = multiprocessing.get_context("forkserver").Process(target=_vanish, args=(what, url, body))
    process.start()
    try:
        pid = process.pid
        assert pid is not None

        def stopped() -> bool:
            with open(f"/proc/{pid}/stat") as stat:
                return stat.read().rpartition(")")[2].split()[0] == "T"

        wait_for(stopped, 30, "the process is frozen")
        yield
        assert stopped()
    finally:
        process.kill()
        process.join()


@pytest.fixture(scope="module", params=["postgres", "mariadb"])
def url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param).database()
    store = SqlStore(url)
    store.upgrade()
    with store.engine.begin() as connection:
        connection.execute(text("create table effect (n int primary key)"))
    store.engine.dispose()
    return url


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "IDLE", QUICK)
    monkeypatch.setattr(transactions, "UNHEARD", QUICK)


@pytest.fixture(autouse=True)
def _clean(url: str) -> None:
    engine = SqlStore(url).engine
    with engine.begin() as connection:
        for table in ("effect", "events_outbox", "events_inbox", "events_event", "events_stream", "events_projection"):
            connection.execute(text(f"delete from {table}"))
    engine.dispose()


def nothing() -> None: ...


def test_a_redelivered_event_is_handled_by_another(url: str) -> None:
    body = Envelope.wrap(OrderPlaced(order_id="o-1"), source="orders").encode()
    with frozen("handler", url, body):
        assert handles(url, body, nothing) is End.HANDLED  # it waits for the lost one's row, and no longer


def test_the_outbox_is_sent_by_another(url: str) -> None:
    events = events_of(url, nothing)
    with events.engine.begin() as connection:
        events.publish(OrderPlaced(order_id="o-1"), connection, key="o-1")
    with frozen("relay", url):
        wait_for(lambda: relays(url, nothing, MemoryBroker()) == 1, 4 * QUICK, "another relay has sent it")


def test_a_projection_is_brought_on_by_another(url: str) -> None:
    events = events_of(url, nothing)
    assert events.store is not None
    events.store.append(None, "order-1", [OrderPlaced(order_id="o-1")], expected=0)
    with frozen("projection", url):
        wait_for(lambda: projects(url, nothing) == 1, 4 * QUICK, "another process has brought it on")


def test_the_effect_of_a_step_is_free_for_another_attempt(url: str) -> None:
    with frozen("step", url):
        begun = time.monotonic()
        assert steps(url, nothing) == 1
        assert time.monotonic() - begun < 4 * QUICK


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
@pytest.mark.usefixtures("quick")
def test_code_that_computes_for_long_keeps_its_transaction(url: str) -> None:
    """A thread speaks for it, so that only silence ends a transaction."""
    body = Envelope.wrap(OrderPlaced(order_id="o-1"), source="orders").encode()
    assert handles(url, body, lambda: time.sleep(2.5 * QUICK)) is End.HANDLED


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
@pytest.mark.usefixtures("quick")
def test_nobody_speaks_for_a_step_that_is_out_of_time(url: str) -> None:
    with pytest.raises(Exception, match=r"idle-in-transaction|closed|lost|rolled back"):
        steps(url, lambda: time.sleep(3.5 * QUICK))
