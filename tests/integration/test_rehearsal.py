"""The shop's orders, rehearsed: whatever fails, in whichever step, the books are as they were."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from sagas import Retry, Saga, SagaRecord, SqlStore, Step, StepContext
from sagas.errors import NotAllowed
from sagas.events import Events, Service, event
from sagas.events.brokers.memory import MemoryBroker
from sagas.stores import schema
from sagas.testing import Inline, assert_compensated, rehearse
from tasks import inventory, ledger, tables
from tasks.orders import PlaceOrder, place_order
from tasks.wholesale import Line, WholesaleOrder, credit_line, wholesale_order
from tests import forks
from tests.integration.test_cli import run
from tests.rig import ROOT
from tests.servers import Postgres, wait_for

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


@pytest.fixture(params=["sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shop.db'}"
    server: Postgres = request.getfixturevalue(request.param)
    return server.database()


@pytest.fixture
def shop(url: str) -> Iterator[SqlStore]:
    bound = tables.ShopSession.kw["bind"]
    store = open_shop(url)
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


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
@pytest.mark.parametrize("business", [True, False], ids=["business", "card"])
def test_an_order_with_lines_can_fail_anywhere(shop: SqlStore, business: bool) -> None:
    """On PostgreSQL: SQLite has one writer, so a callback cannot come while an action holds its transaction."""
    with tables.ShopSession.begin() as session:
        inventory.stock_up(session, "cup", 1000)
        session.add(tables.Account(name=credit_line("acme"), balance=10_000_000))
    numbers = itertools.count()

    def order() -> WholesaleOrder:
        lines = [Line(sku="tea", quantity=4), Line(sku="cup", quantity=2)]
        return WholesaleOrder(
            order_id=f"w-{next(numbers)}", customer="acme", is_business=business, lines=lines, amount=Decimal(80),
            address="1 Main St",
        )  # fmt: skip

    answers = {"create_shipment": "parcel-7"}
    rehearsal = rehearse(wholesale_order, order, state=all_books, store=shop, answers=answers)
    assert rehearsal.ok, rehearsal.table()
    assert {row.step.partition(":")[0] for row in rehearsal.rows} == {"-", *wholesale_order.steps}
    assert not rehearsal.not_rehearsed


def all_books() -> object:
    """The ledger, the shelves, the accounts and what the carrier was asked to collect."""
    with tables.ShopSession() as session:
        shelves = {stock.sku: stock.available for stock in session.scalars(select(tables.Stock))}
        accounts = {account.name: account.balance for account in session.scalars(select(tables.Account))}
        return ledger.net(session), shelves, accounts, session.scalars(select(tables.CarrierRequest.reference)).all()


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
    words = ["rehearse", "place_order", "--input", str(order), "--yes"]

    done = run("config", *words, "--state", "tests.integration.test_rehearsal:books", SAGAS_DATABASE_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "This calls the real actions" in done.stderr
    assert "it is unknown whether workers are running" in done.stderr  # the broker does not answer
    assert "saga 'place_order' version 1: 40 runs, all ok" in done.stdout
    assert "create_shipment    effect after compensation  COMPENSATED  ok" in done.stdout

    # A ledger only grows: by the number of its lines nothing was ever undone.
    done = run("config", *words, "--state", "tests.integration.test_rehearsal:lines", SAGAS_DATABASE_URL=url)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT COVERED: reserve_stock, compensated twice: compensated, but the state was" in done.stdout

    store = SqlStore(url)
    assert left(store) == []
    waiting = in_flight(store)
    done = run("config", *words, SAGAS_DATABASE_URL=url)
    assert (done.returncode, "has 1 unfinished sagas" in done.stderr) == (2, True)
    done = run("config", *words[:-1], "--live", SAGAS_DATABASE_URL=url)
    assert (done.returncode, "Add --yes" in done.stderr) == (2, True)
    done = run("config", *words, "--live", SAGAS_DATABASE_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Without --state, nothing has checked" in done.stdout
    assert [record.id for record in store.queries.select()] == [waiting]
    store.engine.dispose()


def left(store: SqlStore) -> list[str]:
    """Return the tables of the library in which anything is left."""
    tables_ = [table for table in schema.metadata.sorted_tables if table is not schema.relay_shards]
    with store.engine.connect() as connection:
        counts = {table.name: connection.execute(select(func.count()).select_from(table)).scalar() for table in tables_}
    return [name for name, count in counts.items() if count]


def in_flight(store: SqlStore) -> str:
    """Put a saga into a database that nobody carries on."""
    at, saga_id = store.now(), "0198aaaa"
    store.insert(
        SagaRecord(
            id=saga_id, name="place_order", version=1, key="o-1", outline='[{"step": "reserve"}]', correlation_id="c", input="{}", created_at=at,
            updated_at=at, stage_ready_at=at,
        )
    )  # fmt: skip
    return saga_id


@event("rehearsed.order.placed")
class Placed:
    number: int


def emitting(world: set[str], stop: Callable[[], None] = lambda: None) -> Saga:
    """Return a saga that emits, publishes its life, and can be stopped in the midst of its second step."""

    def take(step: StepContext) -> None:
        world.add(step.idempotency_key)
        step.emit(Placed(number=1))

    def put_back(step: StepContext) -> None:
        world.discard(step.idempotency_key)

    def wait() -> None:
        stop()

    return Saga(
        "emitting",
        Step("take", take, compensation=put_back),
        Step("wait", wait, compensation=None, retry=Retry(max_attempts=1)),
        publish_lifecycle=True,
    )


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[tuple[SqlStore, Events]]:
    store = SqlStore(f"sqlite:///{tmp_path / 'kept.db'}")
    store.upgrade()
    yield store, Events([Service("rehearsed", publishes=[Placed])], engine=store.engine, broker=MemoryBroker())
    store.engine.dispose()


def test_nothing_is_left_and_nobody_is_told(kept: tuple[SqlStore, Events]) -> None:
    store, events = kept
    unsent: list[int] = []
    rehearsal = rehearse(
        emitting(set(), lambda: unsent.append(events.outbox_unsent())), store=store, events=events, state=lambda: None
    )
    assert {row.status.value for row in rehearsal.rows} == {"COMPLETED", "COMPENSATED"}
    assert set(unsent) == {0}  # a relay that runs beside it finds nothing
    assert left(store) == []


def test_a_database_in_use_is_refused(kept: tuple[SqlStore, Events]) -> None:
    store, events = kept
    waiting, world = in_flight(store), set[str]()
    with pytest.raises(NotAllowed, match="has 1 unfinished sagas"):
        rehearse(emitting(world), store=store, events=events)
    assert world == set()
    rehearse(emitting(world), store=store, events=events, live=True)
    assert [record.id for record in store.queries.select()] == [waiting]


def test_an_interrupted_run_is_compensated_and_deleted(kept: tuple[SqlStore, Events]) -> None:
    store, events = kept
    world, told = set[str](), list[int]()

    def press() -> None:
        told.append(len(store.queries.select()))
        if len(told) == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        rehearse(emitting(world, press), store=store, events=events)
    assert told[-1] > 1
    assert len(world) == len(told) - 1  # what the runs that completed did is real, and stays
    assert left(store) == []


def test_the_command_cleans_up_when_it_is_told_to_end(tmp_path: Path) -> None:
    """The step that is at work is cut off, and what it had begun is undone."""
    (tmp_path / "slow.py").write_text(
        textwrap.dedent(f"""
        import time
        from pathlib import Path
        from celery import Celery
        from sagas import Saga, Sagas, SqlStore, Step

        here = Path({str(tmp_path)!r})
        store = SqlStore(f"sqlite:///{{here / 'slow.db'}}")
        app = Celery("slow", broker="memory://")

        def take():
            (here / "taken").touch()

        def put_back():
            (here / "taken").unlink(missing_ok=True)

        def wait():
            if not (here / "waits").exists():
                (here / "waits").touch()
                time.sleep(60)

        saga = Saga("slow", Step("take", take, compensation=put_back), Step("wait", wait, compensation=None))
        Sagas(app, store, [saga])
        store.upgrade()
        """)
    )
    command = [sys.executable, "-m", "celery", "-A", "slow", "sagas", "rehearse", "slow", "--yes"]
    process = forks.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: (tmp_path / "waits").exists(), 60, "the step is at work")
    assert (tmp_path / "taken").exists()
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert (process.returncode, "interrupted; the sagas of the rehearsal were deleted" in said) == (143, True), said
    assert not (tmp_path / "taken").exists()
    store = SqlStore(f"sqlite:///{tmp_path / 'slow.db'}")
    assert left(store) == []
    store.engine.dispose()


def lines() -> int:
    with tables.ShopSession() as session:
        return session.query(tables.Entry).count()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["no_such"],
            (
                "no saga named 'no_such' is registered. Registered are: bill_all, book_car, book_flights, book_hotel, "
                "book_stay, book_trip, pay_expense, place_order, transfer_money, wholesale_order"
            ),
        ),
        (["place_order", "--input", "{folder}/none.json"], "none.json"),
        (["place_order", "--input", "{folder}/broken.json"], "broken.json is not JSON"),
        (["place_order", "--input", "{folder}/list.json"], "list.json must contain a JSON object"),
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
    url = f"sqlite:///{tmp_path / 'none.db'}"
    open_shop(url).engine.dispose()
    done = run("config", "rehearse", *words, "--yes", SAGAS_DATABASE_URL=url)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
