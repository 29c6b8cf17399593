"""The page on event sourcing, as typed; and the commands that look after projections."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sagas import SqlStore
from sagas.cli.projection import projection as cli
from sagas.events import ANY, Events, EventStore, Projection, StoredEvent, event
from sagas.events.brokers.memory import MemoryBroker
from tests import forks
from tests.pages import fences
from tests.rig import ROOT
from tests.servers import wait_for
from tests.terminal import invoke

APP = """
import balances
from account import database, store
from celery import Celery
from sagas import Sagas
from sagas.events import Events

app = Celery("bank", broker="memory://")
events = Events([], engine=database.engine, broker=None, store=store, projections=[balances.projection])
Sagas(app, database, events=events)
"""


#: In one process: each takes a second to begin. The last withdrawal is left for the commands.
ALL = """
import runpy
from decimal import Decimal
for name in ("use_account", "balances", "newer"):
    runpy.run_path(f"{name}.py", run_name="__main__")
import account
account.withdraw("account-ann", Decimal(50), "t-3")
"""


def python(folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = forks.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_the_page_runs(tmp_path: Path) -> None:
    for fence in fences(ROOT / "docs" / "event-sourcing.md", "python"):
        assert fence.title, fence.line
        (tmp_path / fence.title).write_text(fence.source)
    (tmp_path / "all.py").write_text(ALL)
    said = python(tmp_path, "all.py").splitlines()
    assert said[0] == "70"
    assert said[3].startswith("3 ")
    assert said[3].endswith("MoneyWithdrawn(amount=Decimal('30'), transfer_id='t-2')")
    assert said[4] == "[('account-ann', Decimal('70.00'))]"

    *story, today, before = python(tmp_path, "use_order_history.py").splitlines()
    assert [line.split(" ", 2)[2].partition("(")[0] for line in story] == [
        "OrderPlaced",
        "QuantityChanged",
        "OrderShipped",
    ]
    assert today == "Order(sku='tea', quantity=3, status='shipped')"
    assert before == "Order(sku='', quantity=0, status='unknown')"

    # The commands, for real.
    (tmp_path / "app.py").write_text(APP)
    celery = ("-m", "celery", "-A", "app", "sagas", "events", "projection")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTHONUNBUFFERED": "1"}
    with (tmp_path / "log").open("wb") as log:
        running = forks.Popen(
            [sys.executable, *celery, "run"], cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        with closing(sqlite3.connect(tmp_path / "bank.db")) as database:
            wait_for(lambda: database.execute("select balance from balances_v1").fetchone() == (20,), 30, "it runs")
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0, (tmp_path / "log").read_text()
        assert "Running balances 1" in (tmp_path / "log").read_text()
    finally:
        running.kill()
        running.wait(20)
    assert "balances 1, live, at position 4" in python(tmp_path, *celery, "list")


# -- in this process --------------------------------------------------------------------------------------------------


@event("tests.thing.counted")
class Counted:
    number: int


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EventStore]:
    kept = SqlStore(f"sqlite:///{tmp_path / 'events.db'}")
    kept.upgrade()
    yield EventStore(kept.engine, [Counted])
    kept.engine.dispose()


class Commands:
    """Runs commands on an app of these projections."""

    def __init__(self, store: EventStore | None, *projections: Projection) -> None:
        engine = store.engine if store else create_engine("sqlite://")
        events = Events([], engine=engine, broker=MemoryBroker(), store=store, projections=projections)
        self.obj = SimpleNamespace(app=SimpleNamespace(sagas=SimpleNamespace(events=events)))

    def __call__(self, *words: str) -> Result:
        return invoke(cli, words, self.obj)


def counting(version: int, seen: list[int], *, broken: bool = False) -> Projection:
    projection = Projection("counts", version=version, clear=lambda _: seen.clear())

    @projection.on(Counted)
    def count(stored: StoredEvent[Counted], session: Session) -> None:
        if broken:
            raise ZeroDivisionError("no number")
        seen.append(stored.event.number)

    return projection


def test_a_new_version_is_built_and_swapped_in(store: EventStore) -> None:
    store.append(None, "a", [Counted(number=number) for number in range(3)], expected=ANY)
    old: list[int] = []
    new: list[int] = []
    one, two = counting(1, old), counting(2, new)
    command = Commands(store, one, two)
    assert command("list").output == "counts 1, has never run\ncounts 2, has never run\n"
    assert command("promote", "counts", "--version", "1").output == "counts 1 was already live\n"
    assert old == [0, 1, 2]
    assert command("rebuild", "counts").output == (
        "counts 2 has processed 3 events. Readers use version 1; to change that: promote counts\n"
    )
    assert new == [0, 1, 2]
    assert command("promote", "counts").output == "counts 2 is live and replaces version 1\n"
    listed = Commands(store, two)("list").output.splitlines()
    assert re.fullmatch(r"counts 1, not live, at position 3, since .* UTC, not in this code", listed[0])
    assert re.fullmatch(r"counts 2, live, at position 3, since .* UTC", listed[1])


def test_one_that_stopped_is_shown_and_resumed(store: EventStore) -> None:
    store.append(None, "a", [Counted(number=1)], expected=ANY)
    seen: list[int] = []
    broken = Commands(store, counting(1, seen, broken=True))
    done = broken("promote", "counts")
    assert done.exit_code == 2
    assert "Error: projection counts 1 stopped at position 1: ZeroDivisionError" in done.output
    assert "projection resume counts --version 1" in done.output
    assert re.search(r"\n    STOPPED at position 1: ZeroDivisionError at event .*: no number\n", broken("list").output)
    mended = Commands(store, counting(1, seen))
    assert mended("resume", "counts").output == "counts 1 continues the next time it runs\n"
    assert mended("promote", "counts").exit_code == 0
    assert seen == [1]


def test_what_cannot_be_done_is_told(store: EventStore) -> None:
    command = Commands(store, counting(1, []))
    assert "Error: this code has no projection sums. It has: counts 1" in command("promote", "sums").output
    assert "Error: this code has no projection counts 7" in command("rebuild", "counts", "--version", "7").output
    assert "Error: projection counts 1 is live" in command("rebuild", "counts").output
    assert "Error: this app has no projections. Pass them: Events(..., store=" in Commands(None)("list").output
