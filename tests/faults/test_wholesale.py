"""The shop's orders with lines: workers are killed in lines, in compensations and around the carrier's answer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from sagas import SagaHandle, Sagas, SagaStatus, SqlStore
from sagas.stores import schema
from tasks import faults, inventory, ledger, tables
from tasks.wholesale import PAYMENT_TERM, Line, WholesaleOrder, credit_line, settle_invoice, wholesale_order
from tests.faults.test_expenses import Bank
from tests.servers import Postgres, Redis, wait_for
from tests.shop import shop

QUEUES = "shop,accounts,inventory,notifications,payments,shipping"
LINES = [Line(sku="tea", quantity=4), Line(sku="cup", quantity=2), Line(sku="pot", quantity=1)]
SHELF, CREDIT = 1_000, 10_000_000
AMOUNT = Decimal("80.00")

#: Where the worker is killed, by the order that it works on.
KILLED = {
    "reminded": (
        "accounts.debit",
        "wholesale.reserve/cup",
        "shipping.book",
        "payments.invoice",
        "notifications.remind",
    ),
    "paid": ("wholesale.reserve/pot", "notifications.confirm"),
    "card": ("payments.authorize", "wholesale.reserve/tea", "payments.capture"),
    "sold-out": ("wholesale.release/tea", "wholesale.release/cup", "accounts.undo_debit"),
    "no-room": ("wholesale.release/pot", "payments.void"),
    "cancelled": ("shipping.call_off", "wholesale.release/cup"),
    "silent": ("shipping.call_off", "wholesale.release/tea"),
}
CARDS = ("card", "no-room")
COMPLETED = ("reminded", "paid", "card")


class Carrier(Bank):
    """Answers by HTTP what it was asked in a table. It keeps there what it has accepted."""

    def token(self, reference: str) -> str | None:
        with Session(self.sagas.store.engine) as session:
            query = select(tables.CarrierRequest.token).where(tables.CarrierRequest.reference == reference)
            return session.scalars(query).one_or_none()

    def refuse(self, token: str) -> object:
        return self.post(token, {"error": "no room this week"}).body["status"]

    def accept(self, reference: str, token: str) -> object:
        with Session(self.sagas.store.engine) as session, session.begin():
            request = tables.CarrierRequest(reference=reference, address="1 Main St", token=token, tracking="p-1")
            session.merge(request)  # also an order that it was told to forget
        return self.post(token, {"result": f"p-{reference}"}).body["status"]


@pytest.fixture
def sagas(redis_server: Redis, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sagas[SqlStore]]:
    store = SqlStore(postgres.database())
    store.upgrade()
    tables.create_all(store.engine)
    with Session(store.engine) as session, session.begin():
        for sku in ("tea", "cup", "pot", "rare"):
            inventory.stock_up(session, sku, SHELF)
        session.add(tables.Account(name=credit_line("acme"), balance=CREDIT))
    for saga in (wholesale_order, wholesale_order.steps["reserve_lines"].child):
        monkeypatch.setattr(saga, "_starter", None)
    app = Celery("shop", broker=redis_server.url, set_as_current=False)
    yield Sagas(app, store, [wholesale_order], lease=1, redispatch_after=1)
    store.engine.dispose()
    app.close()


def order(name: str, *, lines: list[Line] = LINES, business: bool = True) -> WholesaleOrder:
    return WholesaleOrder(
        order_id=name, customer="acme", is_business=business, lines=lines, amount=AMOUNT, address="1 Main St"
    )


def test_orders_with_lines(sagas: Sagas[SqlStore], redis_server: Redis, tmp_path: Path) -> None:
    store, carrier = sagas.store, Carrier(sagas)
    url = store.engine.url.render_as_string(hide_password=False)
    with Session(store.engine) as session, session.begin():
        for name, places in KILLED.items():
            for at in places:
                faults.plan(session, name, faults.Fault(at=at, kind="kill"))
    lines = {"sold-out": [*LINES, Line(sku="rare", quantity=SHELF + 1)]}
    handles = {
        name: wholesale_order.start(order(name, lines=lines.get(name, LINES), business=name not in CARDS), key=name)
        for name in KILLED
    }
    deaths = 0

    def until(met: Callable[[], bool], what: str) -> None:
        """Run workers, each of which may be killed, until a condition holds."""
        nonlocal deaths
        for _ in range(40):
            with shop(redis_server, url, tmp_path, queues=QUEUES) as worker:
                wait_for(lambda: met() or worker.poll() is not None, 90, what)
                deaths += worker.poll() is not None
            if met():
                return
        raise AssertionError(f"too many workers died before this: {what}")

    asked = handles.keys() - {"sold-out"}
    until(lambda: all(waits(handles[name], "create_shipment") for name in asked), "the carrier was asked for all")
    # No worker runs while the carrier answers, twice, and time passes.
    tokens = {name: carrier.token(name) or "" for name in asked}
    for name in COMPLETED:
        assert [carrier.accept(name, tokens[name]) for _ in range(2)] == ["accepted", "ended"]
    assert carrier.refuse(tokens["no-room"]) == "accepted"
    handles["cancelled"].cancel("the customer changed its mind")
    assert carrier.accept("cancelled", tokens["cancelled"]) == "late"
    pass_time(store, handles["silent"], "create_shipment", timedelta(days=2))
    ends = {
        name: "COMPLETED" if name == "card" else "COMPENSATED" for name in handles if name not in ("reminded", "paid")
    }
    until(
        lambda: (
            all(str(handles[name].status) == end for name, end in ends.items())
            and all(waits(handles[name], "payment_term") for name in ("reminded", "paid"))
        ),
        "two customers have three days to pay, and the other orders have ended",
    )
    assert carrier.accept("silent", tokens["silent"]) == "late", "it is too late, and the order is called off once more"
    with Session(store.engine) as session, session.begin():
        settle_invoice(session, order("paid"), "bank-1")
    for name in ("reminded", "paid"):
        pass_time(store, handles[name], "payment_term", PAYMENT_TERM)
    ends |= {"reminded": "COMPLETED", "paid": "COMPLETED"}
    until(lambda: {name: str(handle.status) for name, handle in handles.items()} == ends, "all have ended")
    assert deaths >= sum(map(len, KILLED.values())) - 2, "a death may be that of two orders"
    assert handles["reminded"].result["remind"] == "Dear acme, please pay 80.00 for reminded"
    assert handles["paid"].result["remind"] is None
    assert "there are no 1001 of rare" in (handles["sold-out"].error or "")
    assert_balanced(store, handles, paid={"paid"})


def test_orders_while_workers_are_killed_at_random(sagas: Sagas[SqlStore], redis_server: Redis, tmp_path: Path) -> None:
    dice, store, carrier = random.Random(14), sagas.store, Carrier(sagas)
    url = store.engine.url.render_as_string(hide_password=False)
    lines = [Line(sku=sku, quantity=1 + number) for number, sku in enumerate(["tea", "cup", "pot", "rare"])]
    handles = {
        f"o-{number}": wholesale_order.start(order(f"o-{number}", lines=lines, business=False), key=f"o-{number}")
        for number in range(8)
    }
    give_up = time.monotonic() + 240
    while any(handle.status not in (SagaStatus.COMPLETED, SagaStatus.COMPENSATED) for handle in handles.values()):
        assert time.monotonic() < give_up, {name: handle.record for name, handle in handles.items()}
        with shop(redis_server, url, tmp_path, queues=QUEUES) as worker:
            dies_at = time.monotonic() + dice.uniform(2.5, 6)  # it needs about two seconds to begin
            while time.monotonic() < dies_at:
                answer(carrier, handles)
                time.sleep(0.1)
            assert worker.poll() is None
    for number, handle in enumerate(handles.values()):
        assert handle.status is (SagaStatus.COMPLETED if number % 4 < 2 else SagaStatus.COMPENSATED), handle.record
    assert_balanced(store, handles, lines=lines)


def answer(carrier: Carrier, handles: Mapping[str, SagaHandle]) -> None:
    """Accept half of the orders that the carrier is asked for, refuse a quarter, and cancel a quarter."""
    for number, (name, handle) in enumerate(handles.items()):
        if waits(handle, "create_shipment") and handle.status is SagaStatus.RUNNING:
            token = carrier.token(name)
            assert token is not None
            if number % 4 < 2:
                assert carrier.accept(name, token) == "accepted"
            elif number % 4 == 2:
                assert carrier.refuse(token) == "accepted"
            else:
                handle.cancel("the customer changed its mind")


def waits(handle: SagaHandle, step: str) -> bool:
    found = handle.record.steps.get(step)
    return found is not None and found.status == "WAITING"


def pass_time(store: SqlStore, handle: SagaHandle, step: str, passed: timedelta) -> None:
    """Move what a step waits for as much closer as if so much time had passed."""
    due = handle.record.step(step).due_at
    assert due is not None
    assert passed - timedelta(minutes=10) < due - store.now() <= passed
    with store.engine.begin() as connection:
        mine = schema.steps.c.saga_id == handle.id, schema.steps.c.node == step
        connection.execute(update(schema.steps).where(*mine).values(due_at=due - passed))
        connection.execute(
            update(schema.sagas).where(schema.sagas.c.id == handle.id).values(next_check_at=due - passed)
        )


def assert_balanced(
    store: SqlStore, handles: Mapping[str, SagaHandle], *, paid: Collection[str] = (), lines: Sequence[Line] = LINES
) -> None:
    """What is left of each order is all of it or nothing; shelves, credit and the carrier agree with that."""
    completed = {name for name, handle in handles.items() if handle.status is SagaStatus.COMPLETED}
    cards = {name for name in completed if not handles[name].result["reserve_credit"]}
    owing = completed - cards - set(paid)
    with Session(store.engine) as session:
        nets = ledger.net(session)
        shelves = {stock.sku: stock.available for stock in session.scalars(select(tables.Stock))}
        credit = session.get_one(tables.Account, credit_line("acme")).balance
        carried = set(session.scalars(select(tables.CarrierRequest.reference)))
    cents = ledger.cents(AMOUNT)
    for name, handle in handles.items():
        expected: dict[str, Any] = {}
        if name in completed:
            expected = {f"inventory/{line.sku}": ledger.Net(0, -line.quantity) for line in lines}
            expected |= {"shipping/parcels": ledger.Net(0, 1), "notifications/messages": ledger.Net(0, 1)}
            expected |= (
                {"payments/till": ledger.Net(cents, 0)}
                if name not in owing
                else {
                    "payments/owed": ledger.Net(cents, 0),
                    "accounts/credit-acme": ledger.Net(-cents, 0),
                    "notifications/messages": ledger.Net(0, 2),
                }
            )
        assert dict(nets.get(name, {})) == expected, name
        items = store.items.page(handle.id, "reserve_lines", 0, 100)
        assert {item.status for item in items} <= {handle.status}, name
    sold = {line.sku: line.quantity * len(completed) for line in lines}
    assert shelves == {sku: SHELF - sold.get(sku, 0) for sku in shelves}
    assert credit == CREDIT - cents * len(owing)
    assert carried == completed
