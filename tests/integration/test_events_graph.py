"""`celery -A app sagas events graph` and `trace`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from click.testing import Result
from sqlalchemy.orm import Session

from sagas import SqlStore
from sagas.cli.events import events as group
from sagas.events import Events, Service
from tasks import choreography
from tasks.choreography import SERVICES
from tasks.orders import PlaceOrder
from tests import forks
from tests.rig import ROOT
from tests.terminal import invoke

APP = """
from celery import Celery
from sagas import Sagas, SqlStore
from sagas.events import Events
from tasks.choreography import SERVICES

store = SqlStore("sqlite:///shop.db")
app = Celery("shop", broker="memory://")
Sagas(app, store, events=Events(SERVICES, engine=store.engine, broker=None))
"""


def run(store: SqlStore, *words: str, services: Sequence[Service] = SERVICES) -> Result:
    app: Any = SimpleNamespace(sagas=SimpleNamespace(events=_events(store, services)))
    return invoke(group, words, SimpleNamespace(app=app))


def _events(store: SqlStore, services: Sequence[Service] = SERVICES) -> Events:
    nobody: Any = None  # neither drawing nor telling asks the broker
    return Events(services, engine=store.engine, broker=nobody)


def test_as_typed(tmp_path: Path) -> None:
    (tmp_path / "shop_app.py").write_text(APP)
    celery = [sys.executable, "-m", "celery", "--workdir", str(tmp_path), "-A", "shop_app", "sagas", "events", "graph"]
    drawn = forks.run(celery, cwd=ROOT, capture_output=True, text=True)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.startswith("flowchart TD\n")


def test_the_graph_is_drawn(store: SqlStore) -> None:
    assert run(store, "graph", "--format", "dot").output.startswith("digraph")
    # After a change: celery -A config.choreography sagas events graph --format svg > docs/choreography.svg
    assert run(store, "graph", "--format", "svg").output == (ROOT / "docs" / "choreography.svg").read_text()


def test_the_graph_is_checked(store: SqlStore) -> None:
    whole = run(store, "graph", "--check")
    assert (whole.exit_code, whole.output) == (0, "")
    part = run(store, "graph", "--check", services=SERVICES[1:3])
    assert part.exit_code == 1
    assert "problem: unhandled: no service handles the failure event payments.payment.failed\n" in part.output
    only_advice = run(store, "graph", "--check", services=SERVICES[:1])
    assert only_advice.exit_code == 0
    assert "advice: unhandled: no service here handles event orders.order.placed\n" in only_advice.output


def test_a_story_is_told(store: SqlStore) -> None:
    values: dict[str, Any] = {"customer": "Ann", "sku": "tea", "quantity": 1, "amount": Decimal(2), "address": "1 Main"}
    with Session(store.engine) as session:
        envelope = choreography.place(_events(store), session, PlaceOrder(order_id="o-1", **values))
        session.commit()
    assert "orders.order.placed from orders  [NOT SENT YET]" in run(store, "trace", "o-1").output
    [entry] = json.loads(run(store, "trace", "o-1", "--json").output)
    assert (entry["kind"], entry["id"]) == ("message", envelope.event_id)
    unknown = run(store, "trace", "o-2")
    assert unknown.exit_code == 2
    assert "there is no correlation id, business key, saga or message 'o-2'" in unknown.output
    compared = run(store, "graph", "--observed")
    assert compared.exit_code == 0
    assert "declared, not observed: orders.order.placed -> payments.process_payment\n" in compared.output


def test_a_database_that_is_away() -> None:
    store = SqlStore("postgresql+psycopg://x@127.0.0.1:1/x")
    for words in (["trace", "o-1"], ["graph", "--observed"]):
        done = run(store, *words)
        assert done.exit_code == 2
        assert "Error: the database did not answer" in done.output
