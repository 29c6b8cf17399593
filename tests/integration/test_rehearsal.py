"""The shop's orders, rehearsed: whatever fails, in whichever step, the books are as they were."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sagas import SqlStore
from sagas.testing import Inline, assert_compensated, rehearse
from tasks import inventory, ledger, tables
from tasks.orders import PlaceOrder, place_order
from tests.integration.test_cli import run

ORDER: dict[str, Any] = {"order_id": "o-0", "customer": "Ann", "sku": "tea", "quantity": 2, "amount": "4.50", "address": "1 Main St"}  # fmt: skip


def books() -> object:
    """Everything that the ledger says was done and not undone, and what is on the shelf."""
    with tables.ShopSession() as session:
        tea = session.get(tables.Stock, "tea")
        assert tea is not None
        return ledger.net(session), tea.available


def open_shop(url: str) -> SqlStore:
    store = SqlStore(url)
    store.upgrade()
    tables.create_all(store.engine)
    with tables.ShopSession(bind=store.engine) as session:
        inventory.stock_up(session, "tea", 1000)
        session.commit()
    return store


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[SqlStore]:
    bound = tables.ShopSession.kw["bind"]
    store = open_shop(f"sqlite:///{tmp_path / 'shop.db'}")
    tables.ShopSession.configure(bind=store.engine)
    yield store
    tables.ShopSession.configure(bind=bound)
    store.engine.dispose()


def test_an_order_can_fail_anywhere(shop: SqlStore) -> None:
    numbers = itertools.count()

    def order() -> PlaceOrder:
        return PlaceOrder(**{**ORDER, "order_id": f"o-{next(numbers)}", "amount": Decimal("4.50")})

    rehearsal = rehearse(place_order, order, state=books, store=shop)
    assert rehearsal.ok, rehearsal.table()
    assert {row.step for row in rehearsal.rows} == {"-", *place_order.steps}


def test_a_declined_card(shop: SqlStore) -> None:
    before = books()
    inline = Inline(shop)
    inline.fail_at("authorize_card", times=None)
    handle = inline.start(place_order, ORDER, key="o-1")
    assert_compensated(handle)
    assert "authorize_card" in (handle.error or "")
    assert books() == before


def test_the_command(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    open_shop(url).engine.dispose()
    order = tmp_path / "order.json"
    order.write_text(json.dumps(ORDER))
    words = ["rehearse", "place_order", "--input", str(order)]

    done = run("config", *words, "--state", "tests.integration.test_rehearsal:books", SAGAS_DATABASE_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Calling the real actions" in done.stderr
    assert "saga 'place_order' version 1: 40 runs, all ok" in done.stdout
    assert "create_shipment    effect after its undo    COMPENSATED  ok" in done.stdout

    # A ledger only grows: by the number of its lines nothing was ever undone.
    done = run("config", *words, "--state", "tests.integration.test_rehearsal:lines", SAGAS_DATABASE_URL=url)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT COVERED: reserve_stock, undone twice: undone, but the state was" in done.stdout

    done = run("config", *words, SAGAS_DATABASE_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Without --state nobody has looked" in done.stdout


def lines() -> int:
    with tables.ShopSession() as session:
        return session.query(tables.Entry).count()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no_such"], "no saga 'no_such' is registered; there is: book_stay, place_order, transfer_money"),
        (["place_order", "--input", "{folder}/none.json"], "none.json"),
        (["place_order", "--input", "{folder}/broken.json"], "broken.json is not JSON"),
        (["place_order", "--input", "{folder}/list.json"], "list.json holds no JSON object"),
        (["place_order", "--input", "{folder}/other.json"], "unknown field 'colour'"),
        (["place_order", "--state", "no.such:thing"], "--state no.such:thing cannot be imported"),
        (["place_order", "--state", "tests.integration.test_rehearsal:nothing"], "cannot be imported"),
        (["place_order", "--state", "tests.integration.test_rehearsal:ORDER"], "is not a function"),
    ],
)
def test_what_cannot_be_rehearsed_is_explained(tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "other.json").write_text('{"colour": "red"}')
    words = [word.replace("{folder}", str(tmp_path)) for word in words]
    done = run("config", "rehearse", *words, SAGAS_DATABASE_URL=f"sqlite:///{tmp_path / 'none.db'}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
