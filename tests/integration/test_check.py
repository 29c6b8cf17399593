"""Which sagas in flight a deployment would strand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from sagas import Parallel, Pivot, Saga, Sagas, SagaStatus, SqlStore, Step, Wait, transitions
from sagas.check import Flight, check, differences
from sagas.errors import ConfigurationError
from sagas.stores.encryption import AesGcm
from sagas.testing.memory import MemoryStore
from tests import forks
from tests.rig import ROOT

APP = """
from celery import Celery
from sagas import *
app = Celery("new", broker="memory://")
Sagas(app, SqlStore("sqlite:///{path}"), [Saga("order", Step("a", lambda: 1, compensation=None), version=2)])
"""


@dataclass
class Old:
    sku: str
    note: str = ""


@dataclass
class New:
    sku: int


@dataclass
class Receipt:
    number: int


def plain() -> int:
    return 7


def receipt() -> Receipt:
    return Receipt(7)


def nothing() -> None: ...


def order(action: Callable[..., Any] = plain, given: Any = Old) -> Saga:
    return Saga("order", Step("a", action, compensation=None), Step("b", nothing, compensation=None), input=given)


def code(store: Any, *sagas: Saga) -> Sagas:
    return Sagas(Celery("code", broker="memory://", set_as_current=False), store, sagas)


def started(store: SqlStore, saga: Saga, *, begun: bool = True) -> str:
    old = code(store, saga)
    handle = old.start(saga, {"sku": "tea"} if saga.input is Old else None)
    if begun:
        old.orchestrator.perform(handle.id, next(iter(saga.steps)), 1)
    return handle.id


def only(flights: Any) -> Flight:
    [flight] = flights
    return flight  # type: ignore[no-any-return]


def test_nothing_in_flight(store: SqlStore) -> None:
    assert check(code(store, order())) == []


def test_the_same_code_goes_on(store: SqlStore) -> None:
    first = started(store, order())
    started(store, order(), begun=False)
    flight = only(check(code(store, order())))
    assert (flight.ok, flight.count, flight.read, flight.example) == (True, 2, 2, first)
    assert flight.statuses == (SagaStatus.PENDING, SagaStatus.RUNNING)
    assert only(check(code(store, order()), values=1)).read == 1
    assert only(check(code(store, order()), values=0)).read == 0


@pytest.mark.parametrize("cancel", [False, True])
def test_a_signal_that_came_early_leaves_the_saga_where_it_is(store: SqlStore, cancel: bool) -> None:
    def waits(*later: str) -> Saga:
        steps = (Step(name, nothing, compensation=nothing) for name in later)
        return Saga("order", Step("a", nothing, compensation=nothing), *steps, Wait("w", int, timeout=60))

    saga = waits()
    old = code(store, saga)
    handle = old.start(saga)
    handle.signal("w", 1)
    old.orchestrator.change(handle.id, lambda case: transitions.claim(case, "a", 1, "worker"))
    if cancel:
        old.cancel(handle.id, "no")
    new = code(store, waits("b"))
    assert only(check(new)).ok
    assert new.orchestrator.definition(store.load(handle.id)).outline == new.orchestrator.sagas["order", 1].outline


@pytest.mark.parametrize(
    ("saga", "says"),
    [
        (Saga("other", Step("a", plain, compensation=None)), "no saga of this name"),
        (Saga("order", Step("a", plain, compensation=None), version=2), "only version 2: keep version 1"),
        (Saga("order", Step("a", plain, compensation=None)), "step 'b' is gone"),
    ],
)
def test_definitions_that_are_missing(store: SqlStore, saga: Saga, says: str) -> None:
    started(store, order())
    flight = only(check(code(store, saga)))
    assert says in flight.problems[0]
    assert not flight.ok


@pytest.mark.parametrize(
    ("running", "says"),
    [
        ('[{"step": "a"}, {"step": "x"}, {"step": "b"}]', ["step 'x' is new"]),
        ('[{"step": "b"}, {"step": "a"}]', ["the order was a, b and is b, a"]),
        (
            '[[{"step": "a"}, {"step": "b"}]]',
            ["step 'a' ran alone and runs beside b", "step 'b' ran alone and runs beside a"],
        ),
        ('[{"step": "a", "compensation": false}, {"step": "b"}]', ["step 'a' had a compensation and has none"]),
        ('[{"step": "a"}, {"pivot": "b"}]', ["step 'b' is now the pivot"]),
        ('[{"step": "a"}, {"step": "b"}]', []),
    ],
)
def test_differences_read_well(running: str, says: list[str]) -> None:
    found = differences('[{"step": "a"}, {"step": "b"}]', running)
    assert [each.partition(":")[0] for each in found] == says


def test_every_change_of_the_outline_is_told() -> None:
    step = {name: Step(name, plain, compensation=nothing) for name in "abc"}
    outlines = {
        saga.outline
        for saga in (
            Saga("s", step["a"], step["b"], step["c"]),
            Saga("s", step["b"], step["a"], step["c"]),
            Saga("s", Parallel(step["a"], step["b"]), step["c"]),
            Saga("s", step["a"], Parallel(step["b"], step["c"])),
            Saga("s", Parallel(step["b"], step["a"]), step["c"]),
            Saga("s", step["a"], Pivot("b", plain), Step("c", plain)),
            Saga("s", step["a"], step["b"]),
        )
    }
    for one in outlines:
        for other in outlines:
            assert bool(differences(one, other)) == (one != other), (one, other)


@pytest.mark.parametrize(
    ("saga", "says"),
    [
        (order(given=New), "its input does not read as New"),
        (order(receipt), "the result of step 'a' does not read as Receipt"),
    ],
)
def test_values_that_do_not_read(store: SqlStore, saga: Saga, says: str) -> None:
    saga_id = started(store, order())
    sagas = code(store, saga)
    assert only(check(sagas)).problems[0].startswith(f"saga {saga_id}: {says}")
    assert only(check(sagas, values=0)).ok


def test_a_result_without_a_type_is_read_as_what_asks_for_it(store: SqlStore) -> None:
    def asks(a: Receipt) -> None: ...

    untyped = lambda: 7  # noqa: E731
    old = Saga("order", Step("a", untyped, compensation=None), Step("b", nothing, compensation=None))
    started(store, old)
    new = Saga("order", Step("a", untyped, compensation=None), Step("b", asks, compensation=None))
    assert "does not read as Receipt" in only(check(code(store, new))).problems[0]


def test_a_key_that_is_missing(store: SqlStore) -> None:
    sealed = SqlStore(store.engine, codec=AesGcm({"k": bytes(32)}, current="k"))
    started(sealed, order())
    assert "has no codec" in only(check(code(store, order()))).problems[0]
    assert only(check(code(sealed, order()))).ok


def test_a_store_without_lists() -> None:
    with pytest.raises(ConfigurationError, match="has no lists"):
        check(code(MemoryStore()))


def test_in_ci(store: SqlStore, tmp_path: Path) -> None:
    (tmp_path / "newcode.py").write_text(APP.format(path=tmp_path / "sagas.db"))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "celery", "-A", "newcode", "sagas", "check-deploy", *words]
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        return forks.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)

    assert run().returncode == 0
    saga_id = started(store, order())
    done = run("--values", "all")
    assert done.returncode == 1
    assert f"order 1, for example {saga_id}: this code has only version 2: keep version 1" in done.stdout
    found = json.loads(run("--json").stdout)
    assert (found[0]["ok"], found[0]["example"]) == (False, saga_id)
    (tmp_path / "newcode.py").write_text(APP.format(path="/no/such/folder/x.db"))
    away = run()
    assert away.returncode == 2
    assert "Error: the database did not answer" in away.stderr
