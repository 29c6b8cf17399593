"""The shop's orders with lines, in the calling thread: a test clock passes the days that they wait."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from sagas import Completion, SagaHandle, SagaStatus, SqlStore, StepStatus, TerminalError
from sagas.checkpoints import SagaSummary
from sagas.testing import Inline, assert_compensated, assert_completed
from tasks import inventory, ledger, tables
from tasks.ledger import Net
from tasks.wholesale import Line, WholesaleOrder, credit_line, settle_invoice, wholesale_order

LINES = [Line(sku="tea", quantity=4), Line(sku="cup", quantity=2), Line(sku="pot", quantity=1)]
SHELF = 1_000
CREDIT = 10_000_000


def order(number: str = "w-1", *, business: bool = True, **changes: Any) -> WholesaleOrder:
    given: dict[str, Any] = {
        "order_id": number, "customer": "acme", "is_business": business, "lines": LINES, "amount": Decimal("80.00"),
        "address": "1 Main St",
    }  # fmt: skip
    return WholesaleOrder(**{**given, **changes})


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[SqlStore]:
    bound = tables.ShopSession.kw.get("bind")
    store = SqlStore(f"sqlite:///{tmp_path / 'shop.db'}")
    store.upgrade()
    tables.create_all(store.engine)
    tables.ShopSession.configure(bind=store.engine)
    with tables.ShopSession.begin() as session:
        for line in LINES:
            inventory.stock_up(session, line.sku, SHELF)
        session.add(tables.Account(name=credit_line("acme"), balance=CREDIT))
    yield store
    tables.ShopSession.configure(bind=bound)
    store.engine.dispose()


@pytest.fixture
def inline(shop: SqlStore) -> Inline:
    return Inline(shop)


def books() -> object:
    """Everything that was done and not undone: the ledger, the shelves, the credit line and the carrier's orders."""
    with tables.ShopSession() as session:
        shelves = {stock.sku: stock.available for stock in session.scalars(select(tables.Stock))}
        accounts = {account.name: account.balance for account in session.scalars(select(tables.Account))}
        return ledger.net(session), shelves, accounts, session.scalars(select(tables.CarrierRequest.reference)).all()


def net(number: str = "w-1") -> dict[str, Net]:
    with tables.ShopSession() as session:
        return dict(ledger.net(session, [number]).get(number, {}))


def token(number: str = "w-1") -> str:
    with tables.ShopSession() as session:
        return session.scalars(
            select(tables.CarrierRequest.token).where(tables.CarrierRequest.reference == number)
        ).one()


def days(handle: SagaHandle) -> int:
    """Return for how many days the saga waited for the customer to pay."""
    term = handle.record.step("payment_term")
    assert term.started_at is not None
    assert term.finished_at is not None
    return (term.finished_at - term.started_at).days


DELIVERED = {
    "inventory/tea": Net(0, -4), "inventory/cup": Net(0, -2), "inventory/pot": Net(0, -1), "shipping/parcels": Net(0, 1),
}  # fmt: skip


def test_a_business_that_does_not_pay_is_reminded_after_three_days(inline: Inline) -> None:
    handle = inline.start(wholesale_order, order())
    began = inline.now
    assert handle.record.step("create_shipment").status is StepStatus.WAITING
    assert inline.complete(token(), "parcel-7") is Completion.ACCEPTED
    assert_completed(handle)
    assert timedelta(days=3) < inline.now - began < timedelta(days=3, minutes=1)
    assert days(handle) == 3
    assert handle.result["remind"] == "Dear acme, please pay 80.00 for w-1"
    assert len(handle.result["reserve_lines"]) == 3
    assert handle.record.step("authorize_card").status is StepStatus.SKIPPED
    assert net() == {
        **DELIVERED,
        "accounts/credit-acme": Net(-8000, 0),
        "payments/owed": Net(8000, 0),
        "notifications/messages": Net(0, 2),
    }


def test_a_business_that_has_paid_is_not_reminded(inline: Inline) -> None:
    def pay(saga: SagaSummary) -> bool:
        """The clock is about to pass the days of the payment term."""
        term = saga.steps.get("payment_term")
        if term is not None and term.status is StepStatus.WAITING and "payments/till" not in net():
            with tables.ShopSession.begin() as session:
                settle_invoice(session, order(), "bank-1")
        return False

    inline.meanwhile = pay
    handle = inline.start(wholesale_order, order())
    inline.complete(token(), "parcel-7")
    assert_completed(handle)
    assert handle.record.step("remind").status is StepStatus.SKIPPED
    assert net() == {**DELIVERED, "payments/till": Net(8000, 0), "notifications/messages": Net(0, 1)}
    with tables.ShopSession() as session:
        assert session.get_one(tables.Account, credit_line("acme")).balance == CREDIT


def test_a_customer_with_a_card_pays_at_once_and_waits_for_nothing(inline: Inline) -> None:
    handle = inline.start(wholesale_order, order(business=False))
    began = inline.now
    inline.complete(token(), "parcel-7")
    assert_completed(handle)
    assert inline.now - began < timedelta(minutes=1)
    assert "receipt-" in handle.result["charge"]
    skipped = {step.node for step in handle.record.steps.values() if step.status is StepStatus.SKIPPED}
    assert skipped == {"reserve_credit", "payment_term", "remind"}
    assert net() == {**DELIVERED, "payments/till": Net(8000, 0), "notifications/messages": Net(0, 1)}


def test_a_business_without_enough_credit(inline: Inline) -> None:
    before = books()
    handle = inline.start(wholesale_order, order(amount=Decimal(100_001)))
    assert_compensated(handle)
    assert "less than 100001 in it" in (handle.error or "")
    assert "reserve_lines" not in handle.record.steps
    assert books() == before


@pytest.mark.parametrize("business", [True, False])
def test_one_line_is_sold_out_and_the_others_are_put_back(inline: Inline, business: bool) -> None:
    before = books()
    lines = [*LINES[:2], Line(sku="pot", quantity=SHELF + 1)]
    handle = inline.start(wholesale_order, order(business=business, lines=lines))
    assert_compensated(handle)
    assert "there are no 1001 of pot" in (handle.error or "")
    assert books() == before


def test_an_article_is_on_one_line(inline: Inline) -> None:
    handle = inline.start(wholesale_order, order(lines=[LINES[0], LINES[0]]))
    assert_compensated(handle)
    assert "two items have the key 'tea'" in (handle.error or "")


def test_a_carrier_without_room(inline: Inline) -> None:
    before = books()
    handle = inline.start(wholesale_order, order())
    inline.fail_deferred(token(), "no room this week")
    assert_compensated(handle)
    assert "no room this week" in (handle.error or "")
    assert books() == before


def test_a_carrier_that_answers_after_two_days_does_not_get_the_order(inline: Inline) -> None:
    before = books()
    handle = inline.start(wholesale_order, order())
    late = token()
    inline.advance(handle, timedelta(days=1, hours=23))
    assert handle.status is SagaStatus.RUNNING
    inline.advance(handle, timedelta(hours=1))
    assert_compensated(handle)
    with tables.ShopSession.begin() as session:  # it accepts all the same
        session.add(tables.CarrierRequest(reference="w-1", address="1 Main St", token=late, tracking="parcel-7"))
    assert inline.complete(late, "parcel-7") is Completion.LATE
    assert_compensated(handle)
    assert books() == before


def test_an_order_cancelled_while_the_carrier_thinks(inline: Inline) -> None:
    before = books()
    handle = inline.start(wholesale_order, order())
    handle.cancel("the customer changed its mind")
    assert_compensated(handle)
    assert books() == before


def test_each_line_is_undone_with_its_own_item(inline: Inline) -> None:
    before = books()
    inline.crash_after("reserve_lines", item=1)
    inline.crash_before("reserve_lines", item=0, undo=True)
    inline.crash_after("reserve_lines", item=2, undo=True)
    inline.fail_at("charge", TerminalError("the bank says no"))
    handle = inline.start(wholesale_order, order(business=False))
    inline.complete(token(), "parcel-7")
    assert_compensated(handle)
    assert books() == before
