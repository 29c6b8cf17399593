"""`celery -A app sagas events schema ...`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from sagas import SqlStore
from sagas.cli.events import events as group
from sagas.events import Events, Service, event
from sagas.events.schema_registry import JSON
from sagas.events.schema_registry.avro import AVRO
from sagas.events.schema_registry.sql import SqlSchemaRegistry
from tests import forks
from tests.rig import ROOT
from tests.terminal import invoke

Run = Callable[..., Result]


def placed(version: int = 1, **fields: Any) -> type:
    return event("orders.order.placed", version=version)(type("Placed", (), {"__annotations__": fields}))


@pytest.fixture
def store() -> Iterator[SqlStore]:
    store = SqlStore("sqlite://")
    store.upgrade()
    yield store
    store.engine.dispose()


@pytest.fixture
def run(store: SqlStore) -> Run:
    def run(*words: str, types: list[type], service: str = "orders", registry: Any = "sql") -> Result:
        one = Service(service, publishes=types if service == "orders" else ())
        if service != "orders":

            @one.on(*types)
            def handle(message: Any) -> None:
                """Read it."""

        if registry == "sql":
            registry = SqlSchemaRegistry(store.engine, formats=[JSON, AVRO])
        broker: Any = None
        events = Events([one], engine=store.engine, broker=broker, registry=registry)
        app = SimpleNamespace(sagas=SimpleNamespace(events=events))
        return invoke(group, words, SimpleNamespace(app=app))

    return run


def test_from_the_first_registration_to_a_new_version(run: Run) -> None:
    first = placed(a=int)
    done = run("schema", "check", types=[first])
    assert (done.exit_code, done.stdout) == (0, "new        orders.order.placed.v1 (revision 1)\n")
    assert run("schema", "list", types=[first]).stdout == ""
    assert run("schema", "register", types=[first]).exit_code == 0
    done = run("schema", "check", types=[first])
    assert (done.exit_code, done.stdout) == (0, "unchanged  orders.order.placed.v1 (revision 1)\n")

    broken = placed(a=str)
    for command in ("check", "register"):
        done = run("schema", command, types=[broken])
        assert done.exit_code == 1
        assert "refused    orders.order.placed.v1 (revision 1)\n" in done.stdout
        assert "$.a: revision 1 may write an integer here; the new schema accepts a string" in done.stdout
        assert "1 of 1 are refused or unreadable" in done.stderr

    done = run("schema", "register", types=[placed(2, a=str)])
    assert done.exit_code == 0
    assert "new        orders.order.placed.v2 (revision 1)" in done.stdout
    assert "warning: no upcaster reads version 1" in done.stdout
    lines = run("schema", "list", types=[]).stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["orders.order.placed.v1", "1", "json"],
        ["orders.order.placed.v2", "1", "json"],
    ]


def test_show_and_diff(run: Run) -> None:
    run("schema", "register", types=[placed(a=int)])
    run("schema", "register", types=[placed(a=int, b=str | None)])  # refused: required
    more = event("orders.order.placed")(type("Placed", (), {"__annotations__": {"a": int, "b": str | None}, "b": None}))
    run("schema", "register", types=[more])
    shown = json.loads(run("schema", "show", "orders.order.placed.v1", types=[]).stdout)
    assert set(shown["$defs"]["Placed"]["properties"]) == {"a", "b"}
    shown = json.loads(run("schema", "show", "orders.order.placed.v1", "--revision", "1", types=[]).stdout)
    assert set(shown["$defs"]["Placed"]["properties"]) == {"a"}
    done = run("schema", "diff", "orders.order.placed.v1", "--from", "1", "--to", "2", types=[])
    assert done.stdout == "BACKWARD: compatible\nFORWARD: compatible\n"
    done = run("schema", "diff", "orders.order.placed.v1", types=[placed(a=float)])
    assert done.stdout.splitlines() == [
        "BACKWARD: compatible",
        "FORWARD:",
        "  $.a: this code may write a number here; revision 2 accepts an integer",
    ]


def test_what_is_not_there(run: Run) -> None:
    run("schema", "register", types=[placed(a=int)])
    for words, message in [
        (("show", "nope"), "there is no subject 'nope'. The subjects are: orders.order.placed.v1"),
        (("show", "orders.order.placed.v1", "--revision", "7"), "has no revision 7. It has: 1"),
        (("diff", "orders.order.placed.v1"), "declares no message for 'orders.order.placed.v1'"),
        (("check", "--format", "xml"), "has no format 'xml', only json, avro"),
    ]:
        done = run("schema", *words, types=[])
        assert done.exit_code == 2
        assert message in done.stderr


def test_a_consumer_only_checks(run: Run) -> None:
    run("schema", "register", types=[placed(a=int)])
    done = run("schema", "register", types=[placed(a=int)], service="billing")
    assert (done.exit_code, done.stdout) == (0, "readable   orders.order.placed.v1 (revision 1)\n")
    done = run("schema", "check", types=[placed(b=int)], service="billing")
    assert done.exit_code == 1
    assert "$.b: this code requires it; revision 1 may omit it" in done.stdout


def test_avro(run: Run) -> None:
    assert run("schema", "register", "--format", "avro", types=[placed(a=int)]).exit_code == 0
    done = run("schema", "check", "--format", "avro", types=[placed(a=str)])
    assert done.exit_code == 1
    assert "$.a: revision 1 writes long here; the new schema accepts string" in done.stdout
    assert '"long"' in run("schema", "show", "orders.order.placed.v1.avro", types=[]).stdout


def test_without_a_registry(run: Run) -> None:
    done = run("schema", "check", types=[placed(a=int)], registry=None)
    assert done.exit_code == 2
    assert "registry=SqlSchemaRegistry(store.engine)" in done.stderr


def test_a_registry_that_is_away(run: Run) -> None:
    gone = SqlStore("postgresql+psycopg://x@127.0.0.1:1/x")
    done = run("schema", "check", types=[placed(a=int)], registry=SqlSchemaRegistry(gone.engine))
    assert done.exit_code == 2
    assert "the database did not answer" in done.stderr
    gone.engine.dispose()


APP = """
from celery import Celery
from sagas import Sagas, SqlStore
from sagas.events import Events, Service, event
from sagas.events.schema_registry.sql import SqlSchemaRegistry

@event("orders.order.placed")
class OrderPlaced:
    order_id: str

app = Celery("shop", broker="memory://")
store = SqlStore("sqlite:///shop.db")
store.upgrade()
services = [Service("orders", publishes=[OrderPlaced])]
registry = SqlSchemaRegistry(store.engine)
Sagas(app, store, events=Events(services, engine=store.engine, broker=None, registry=registry))
"""


def test_as_typed(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    command = [sys.executable, "-m", "celery", "-A", "shop", "sagas", "events", "schema", "register"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = forks.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "new        orders.order.placed.v1 (revision 1)\n"), done.stderr
