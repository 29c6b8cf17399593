"""The reference shop: its demo, its participants, its sagas."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from celery import Celery
from rich.console import Console

from sagas import Sagas, SqlStore
from sagas.stores import schema
from tasks import tables
from tasks.orderfile import Order
from tasks.orders import PlaceOrder, place_order
from tasks.placing import UNDER_WAY, Batch
from tasks.screen import screen
from tests import forks
from tests.rig import ROOT
from tests.servers import wait_for

DEMO = [sys.executable, "-m", "tasks.demo"]


def test_the_demo() -> None:
    """One order completes, one is declined and undone in reverse, one times out, one loses its worker."""
    done = forks.run(DEMO, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed with SIGKILL" in done.stdout
    assert "no answer within" in done.stdout
    assert "declined" in done.stdout
    assert re.search(r"OK every order is complete or was undone", done.stdout)


def test_orders_of_ones_own(tmp_path: Path) -> None:
    orders = tmp_path / "mine.csv"
    orders.write_text(
        "order_id,customer,sku,quantity,amount,address\n"
        "mine-1,Ann,tea,2,12.50,1 Main Street\n"
        'mine-2,Bob,tea,1000,12.50,"2 Main Street, Rear"\n'
    )
    done = forks.run([*DEMO, str(orders)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 completed, 1 compensated" in done.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("order_id,customer,sku,quantity,amount,address\nx,Ann,tea,two,12.50,Main\n", "quantity"),
        ("order_id,customer\nx,Ann\n", "sku"),
    ],
)
def test_a_broken_file_is_explained(tmp_path: Path, text: str, says: str) -> None:
    orders = tmp_path / "broken.csv"
    orders.write_text(text)
    done = forks.run([*DEMO, str(orders)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "broken.csv" in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_can_be_interrupted(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with (tmp_path / "out").open("w") as out:
        process = forks.Popen([*DEMO, "--folder", str(folder)], cwd=ROOT, stdout=out, stderr=out)
    log = folder / "worker.log"
    wait_for(lambda: log.exists() and " ready." in log.read_text(), 60, "the worker is ready")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    worker = re.search(r"worker 1 started \(pid (\d+)\)", (tmp_path / "out").read_text())
    assert worker is not None
    with pytest.raises(ProcessLookupError):
        os.kill(int(worker[1]), 0)


@pytest.mark.parametrize(
    ("broker", "database", "says"),
    [
        ("redis://127.0.0.1:1/0", "sqlite:///{folder}/made.db", "@127.0.0.1:1/0 does not answer"),
        (
            "redis://127.0.0.1:1/0",
            "sqlite:///{folder}/none.db",
            "are older than this code. Run: python -m config.migrate",
        ),
        ("redis://127.0.0.1:1/0", "postgresql+psycopg://x@127.0.0.1:1/x", "the database did not answer"),
    ],
    ids=["broker", "tables", "database"],
)
def test_a_shop_that_takes_no_orders(tmp_path: Path, broker: str, database: str, says: str) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'made.db'}")
    store.upgrade()
    tables.create_all(store.engine)
    store.engine.dispose()
    environment = {
        **os.environ,
        "BROKER_URL": broker,
        "SAGAS_DATABASE_URL": database.replace("{folder}", str(tmp_path)),
    }
    command = [sys.executable, "-m", "tasks.place", "tasks/data/orders.json"]
    done = forks.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert says in done.stderr


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    """A shop whose sagas only this process can carry on; its messages reach nobody."""
    store = SqlStore(f"sqlite:///{tmp_path / 'shop.db'}")
    store.upgrade()
    tables.create_all(store.engine)
    bound, place_order._starter = place_order._starter, None
    app = Celery("shop", broker="memory://", set_as_current=False)
    Sagas(app, store, [place_order])
    yield store
    place_order._starter = bound
    app.close()
    store.engine.dispose()


def orders(number: int) -> list[Order]:
    order = PlaceOrder(order_id="", customer="A", sku="tea", quantity=1, amount=Decimal(1), address="x")
    return [Order(input=replace(order, order_id=f"o-{each}")) for each in range(number)]


def finish(batch: Batch, store: SqlStore, number: int) -> None:
    """Have some orders end, as workers would."""
    waiting = [it.saga.id for it in batch.placed if not it.is_over][:number]
    with store.engine.begin() as connection:
        ended = schema.sagas.update().where(schema.sagas.c.id.in_(waiting))
        connection.execute(ended.values(status="COMPLETED", revision=schema.sagas.c.revision + 1))


def test_many_orders_are_placed_some_at_a_time(store: SqlStore) -> None:
    batch, most = Batch(store, orders(UNDER_WAY + 20), patience=60), list[int]()

    def look() -> None:
        most.append(len(batch.placed) - batch.over)
        finish(batch, store, UNDER_WAY // 2)

    assert batch.until_over(look)
    assert (batch.over, max(most)) == (UNDER_WAY + 20, UNDER_WAY)


def test_patience_ends_without_progress_and_not_after_a_time(store: SqlStore) -> None:
    """Each order takes almost half of the patience; when nothing ends any more, it is over."""
    batch, began = Batch(store, orders(4), patience=3), time.monotonic()

    def look() -> None:
        if batch.idle > 1.3 and batch.over < 3:
            finish(batch, store, 1)

    assert not batch.until_over(look)
    assert batch.over == 3
    assert time.monotonic() - began > 3 * 1.3 + 3


def test_few_lines_for_many_orders(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log gets a line for each step of few orders, a number now and then of many; a terminal gets a table or a bar."""
    monkeypatch.setattr("tasks.screen.FEW", 40)

    def shown(number: int, *, terminal: bool) -> list[str]:
        file = io.StringIO()
        console = Console(file=file, width=100, height=30, force_terminal=terminal)
        batch = Batch(store, orders(number), patience=5)
        batch.fill()
        finish(batch, store, number)
        with screen(console, store, batch) as screen_:
            assert batch.until_over(screen_.update)
        return file.getvalue().splitlines()

    assert len(shown(3, terminal=False)) == 3
    assert shown(41, terminal=False) == ["41 of 41 orders have ended: 41 completed"]
    assert "reserve" in "\n".join(shown(3, terminal=True))
    assert "60/60" in "\n".join(shown(60, terminal=True))
