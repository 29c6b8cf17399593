"""The shop's orders as choreography: every way that they can end, and the ledger that proves it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from sagas import SqlStore
from sagas.events import Events
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.brokers.rabbitmq import RabbitBroker
from sagas.events.choreography import compared, graph, observed
from sagas.events.guards import StormGuard
from sagas.events.runners import InProcess
from sagas.events.trace import Entry, trace
from sagas.stores import schema
from sagas.testing import Inline, rehearse
from tasks import faults, inventory, ledger, tables
from tasks.choreography import SERVICES, outcome, place
from tasks.faults import Fault
from tasks.fulfilment import fulfil_order
from tasks.ledger import Net
from tasks.orders import PlaceOrder
from tests import forks
from tests.rig import ROOT
from tests.servers import Postgres, RabbitMQ, wait_for

STOCK = 50


def order(order_id: str, quantity: int = 1) -> PlaceOrder:
    return PlaceOrder(
        order_id=order_id,
        customer="Ann",
        sku="tea",
        quantity=quantity,
        amount=Decimal("12.50"),
        address="1 Main Street",
    )


def prepare(store: SqlStore) -> None:
    store.upgrade()
    tables.create_all(store.engine)
    with Session(store.engine) as session:
        inventory.stock_up(session, "tea", STOCK)
        session.commit()


def begin(events: Events, placed: PlaceOrder, fault: Fault | None = None) -> None:
    with Session(events.engine) as session:
        if fault is not None:
            faults.plan(session, placed.order_id, fault)
        place(events, session, placed)
        session.commit()


def outcomes(engine: Engine, *order_ids: str) -> dict[str, str | None]:
    with Session(engine) as session:
        return {order_id: outcome(session, order_id) for order_id in order_ids}


def settled(engine: Engine) -> bool:
    """Tell whether every event was sent, and everything that came was handled and told of."""
    with Session(engine) as session:
        unsent = session.scalar(select(func.count()).where(schema.outbox.c.sent_at.is_(None)))
        told = session.scalar(
            select(func.count())
            .select_from(schema.inbox)
            .where(schema.inbox.c.queue.in_(["notifications.send_confirmation", "notifications.send_apology"]))
        )
        placed = session.scalar(select(func.count()).where(schema.outbox.c.type == "orders.order.placed"))
        closed = session.scalar(
            select(func.count())
            .select_from(schema.inbox)
            .where(schema.inbox.c.queue.in_(["orders.confirm_order", "orders.cancel_order"]))
        )
    return unsent == 0 and told == placed == closed


def handled(engine: Engine, queue: str) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).where(schema.inbox.c.queue == queue)).scalar_one()


def assert_books_are_right(engine: Engine) -> None:
    """A confirmed order left what it should, a cancelled one nothing, and the shelf has the rest."""
    with Session(engine) as session:
        left = ledger.net(session)
        half_done = select(tables.Operation.key).where(tables.Operation.answer.is_(None), ~tables.Operation.undone)
        assert session.scalars(half_done).all() == []
        on_the_shelf = session.get_one(tables.Stock, "tea").available
        placed = set(session.scalars(select(schema.outbox.c.key).where(schema.outbox.c.type == "orders.order.placed")))
    ends = outcomes(engine, *map(str, placed))
    sold = {order_id for order_id, end in ends.items() if end == "confirmed"}
    assert all(end is not None for end in ends.values()), ends
    assert set(left) == sold
    for order_id in sold:
        assert left[order_id] == {
            "inventory/tea": Net(0, -1),
            "payments/till": Net(1250, 0),
            "shipping/parcels": Net(0, 1),
            "notifications/messages": Net(0, 1),
        }
    assert on_the_shelf == STOCK - len(sold)


def _told(entries: list[Entry]) -> list[str]:
    return [line for entry in entries for line in (f"{entry.kind} {entry.who}", *_told(entry.children))]


# -- in one process -----------------------------------------------------------------------------------------------


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Events]:
    store = SqlStore(f"sqlite:///{tmp_path / 'shop.db'}")
    prepare(store)
    tables.ShopSession.configure(bind=store.engine)
    events = Events(
        SERVICES, engine=store.engine, broker=MemoryBroker(), guards=StormGuard(max_hops=16), relay_interval=0.02
    )
    events.apply_topology()
    with ThreadPoolExecutor(4) as executor:
        consumers = events.consumers(InProcess(events.handle, executor))
        consumers.start()
        events.relay.start()
        yield events
        consumers.stop(grace=5)
        events.relay.stop()
        consumers.join(10)
    store.engine.dispose()


def test_every_way_that_an_order_can_end(events: Events) -> None:
    begin(events, order("good"))
    begin(events, order("too-many", quantity=STOCK + 1))
    begin(events, order("declined"), Fault(at="payments.process", kind="decline"))
    begin(events, order("refused"), Fault(at="shipping.create", kind="decline"))
    begin(events, order("bumpy"), Fault(at="inventory.reserve", kind="fail"))
    wait_for(lambda: settled(events.engine), 30, "every order has ended", 0.02)
    assert outcomes(events.engine, "good", "bumpy", "too-many", "declined", "refused") == {
        "good": "confirmed",
        "bumpy": "confirmed",
        "too-many": "cancelled: there are no 51 of tea on the shelf",
        "declined": "cancelled: payments.process declined declined",
        "refused": "cancelled: shipping.create declined refused",
    }
    assert_books_are_right(events.engine)
    assert events.dead_letters() == []
    # What was declared is what happened: all of it, and nothing else.
    difference = compared(graph(SERVICES), observed(events.engine))
    assert (difference.undeclared, difference.unseen) == ((), ())
    # In reverse: the stock first, then the money, then the order itself.
    assert _told(trace(events.engine, "refused")) == [
        "message orders",
        "handled payments.process_payment",
        "message payments",
        "handled inventory.reserve_stock",
        "message inventory",
        "handled shipping.create_shipment",
        "message shipping",
        "handled inventory.release_stock",
        "message inventory",
        "handled payments.refund_payment",
        "message payments",
        "handled orders.cancel_order",
        "message orders",
        "handled notifications.send_apology",
    ]
    # Nothing left the shelf, so the money is given back and the order is cancelled.
    assert [line for line in _told(trace(events.engine, "too-many")) if line.startswith("handled")] == [
        "handled payments.process_payment",
        "handled inventory.reserve_stock",
        "handled payments.refund_payment",
        "handled orders.cancel_order",
        "handled notifications.send_apology",
    ]


def test_the_same_flow_with_a_conductor(tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'shop.db'}")
    prepare(store)
    tables.ShopSession.configure(bind=store.engine)
    inline = Inline(store)
    with Session(store.engine) as session:
        faults.plan(session, "refused", Fault(at="shipping.create", kind="decline"))
        faults.plan(session, "mute", Fault(at="notifications.confirm", kind="fail"))
        session.commit()
    ends = {
        placed.order_id: inline.start(fulfil_order, placed, key=placed.order_id)
        for placed in (order("good"), order("too-many", quantity=STOCK + 1), order("refused"), order("mute"))
    }
    assert {name: handle.status.value for name, handle in ends.items()} == {
        "good": "COMPLETED",
        "too-many": "COMPENSATED",
        "refused": "COMPENSATED",
        "mute": "COMPLETED",
    }
    assert list(fulfil_order.steps) == ["process_payment", "reserve_inventory", "create_shipment", "send_confirmation"]
    with Session(store.engine) as session:
        assert set(ledger.net(session)) == {"good", "mute"}
        assert session.get_one(tables.Stock, "tea").available == STOCK - 2
    rehearse(fulfil_order, order("rehearsed"), store=store)
    store.engine.dispose()


# -- in processes of their own ------------------------------------------------------------------------------------


class Processes:
    """The shop's services, as they would be deployed."""

    def __init__(self, rabbitmq: RabbitMQ, database: str, folder: Path) -> None:
        self.environment = {**os.environ, "BROKER_URL": rabbitmq.url, "SAGAS_DATABASE_URL": database}
        self.log = folder / "log"
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, *services: str) -> subprocess.Popen[bytes]:
        queues = [s.queue for service in SERVICES if service.name in services for s in service.subscriptions]
        command = ["sagas", "events", "consume", "--queues", ",".join(queues)]
        with self.log.open("ab") as log:
            process = forks.Popen(
                [sys.executable, "-m", "celery", "-A", "config.choreography", *command],
                cwd=ROOT, env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
        self.running.append(process)
        return process

    def stop(self) -> None:
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            process.wait(20)


def test_services_in_processes_of_which_one_dies(rabbitmq: RabbitMQ, postgres: Postgres, tmp_path: Path) -> None:
    """Payments and shipping are killed amid the orders. What they had in hand is done by those that come after them."""
    database = postgres.database()
    store = SqlStore(database)
    prepare(store)
    for service in SERVICES:
        for subscription in service.subscriptions:
            rabbitmq.forget(subscription.queue)
    events = Events(SERVICES, engine=store.engine, broker=RabbitBroker(rabbitmq.url), exchange="shop.events")
    events.apply_topology()
    processes = Processes(rabbitmq, database, tmp_path)
    try:
        processes.start("orders", "inventory", "notifications")
        doomed = processes.start("payments", "shipping")
        for number in range(20):
            fault = {
                3: Fault(at="payments.process", kind="decline"),
                7: Fault(at="shipping.create", kind="decline"),
                # Killed inside of a handler, with others at work beside it.
                11: Fault(at="shipping.create", kind="hang", times=1, seconds=600),
            }.get(number % 20)
            begin(events, order(f"o-{number}"), fault)
        wait_for(lambda: handled(store.engine, "shipping.create_shipment") >= 3, 60, "some parcels are shipped", 0.01)
        doomed.kill()
        doomed.wait(10)
        with Session(store.engine) as session:
            faults.plan(session, "o-11", Fault(at="shipping.create", kind="slow", times=1))
            session.commit()
        processes.start("payments", "shipping")
        wait_for(lambda: settled(store.engine), 60, "every order has ended")
        ends = list(outcomes(store.engine, *(f"o-{number}" for number in range(20))).values())
        assert ends.count("confirmed") == 18
        assert_books_are_right(store.engine)
        assert events.dead_letters() == []
        difference = compared(graph(SERVICES), observed(store.engine))
        assert difference.undeclared == ()
    finally:
        processes.stop()
        events.broker.close()
        store.engine.dispose()
