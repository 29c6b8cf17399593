"""Child sagas in an app with a database: registration, eager mode, what operators see, and deployments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import click
import pytest
from celery import Celery
from click.testing import CliRunner, Result

from sagas import (
    COMPENSATE,
    Child,
    ConfigurationError,
    DuplicateName,
    Retry,
    Saga,
    SagaRecord,
    Sagas,
    SagaStatus,
    SqlStore,
    Step,
    StepContext,
    TerminalError,
    Wait,
)
from sagas.check import check
from sagas.cli.sagas import sagas as group
from sagas.doctor.work import check_backlog
from sagas.events.trace import trace, walk
from sagas.observers import Observer, Start
from sagas.stores.inspection import backlog
from sagas.testing import Inline

Run = Callable[..., Result]
QUICK = Retry(max_attempts=2, delay=0, jitter=0)


def _step(name: str, fails: bool = False, undo_fails: bool = False) -> Step:
    def do(step: StepContext) -> str:
        if fails:
            raise TerminalError(f"{name} is not to be had")
        return step.step

    def undo() -> None:
        if undo_fails:
            raise RuntimeError("the desk is closed")

    return Step(name, do, compensation=undo, retry=QUICK, compensation_retry=QUICK)


def hotel(**options: Any) -> Saga:
    return Saga("hotel", _step("room", **options))


def trip(child: Saga, *, fails: bool = False) -> Saga:
    return Saga("trip", _step("pack"), Child("stay", child), _step("leave", fails=fails))


def an_app(store: SqlStore, *sagas: Saga, **conf: Any) -> Sagas[SqlStore]:
    app = Celery("trips", broker="memory://", set_as_current=False)
    app.conf.update(**conf)
    return Sagas(app, store, sagas)


def runner(sagas: Sagas[SqlStore]) -> Run:
    celery = click.Group("celery", commands={"sagas": group})
    obj = SimpleNamespace(app=sagas.app, no_color=False)
    return lambda *words: CliRunner().invoke(celery, ("sagas", *words), obj=obj)


def stuck_tree(store: SqlStore) -> tuple[Sagas[SqlStore], str, str]:
    """Return an app, and the ids of a parent that compensates and of its child, which cannot."""
    saga = trip(hotel(undo_fails=True), fails=True)
    handle = Inline(store).start(saga, key="t-1", correlation_id="c-1")
    [child] = [each for each in store.family(handle.id) if each.parent_id]
    assert (handle.status, child.status) == (SagaStatus.COMPENSATING, SagaStatus.STUCK)
    return an_app(store, saga), handle.id, child.id


# -- registration -------------------------------------------------------------------------------------------------


def test_children_are_registered_with_their_parent(store: SqlStore) -> None:
    inner = hotel()
    sagas = an_app(store, trip(inner))
    assert set(sagas.orchestrator.sagas) == {("trip", 1), ("hotel", 1)}
    assert {"trip.stay", "trip.stay.compensate", "hotel.room"} <= set(sagas.app.tasks)
    assert inner.start().id  # it is a saga like any other
    sagas.register(inner)  # once more changes nothing
    with pytest.raises(DuplicateName, match="'hotel' of version 1"):
        sagas.register(Saga("other", Child("stay", hotel())))


def test_a_child_of_another_app(store: SqlStore) -> None:
    inner = hotel()
    an_app(store, inner)
    with pytest.raises(ConfigurationError, match="already registered with another Sagas app"):
        an_app(store, trip(inner))


# -- eager mode ---------------------------------------------------------------------------------------------------


def test_eager_mode_runs_the_whole_tree_within_start(store: SqlStore) -> None:
    saga = trip(hotel())
    an_app(store, saga, task_always_eager=True)
    handle = saga.start()
    assert handle.status is SagaStatus.COMPLETED
    assert handle.result["stay"] == {"room": "room"}
    failing = Saga("failing", Child("stay", Saga("full", _step("room"))), _step("leave", fails=True))
    an_app(store, failing, task_always_eager=True)
    handle = failing.start()
    assert handle.status is SagaStatus.COMPENSATED
    assert {each.status for each in store.family(handle.id)} == {SagaStatus.COMPENSATED}


def test_eager_mode_goes_on_with_the_parent_after_a_signal_to_the_child(store: SqlStore) -> None:
    asks = Saga("asks", Wait("answer", bool, timeout=60, on_timeout=COMPENSATE))
    saga = Saga("trip", Child("ask", asks), _step("leave"))
    sagas = an_app(store, saga, task_always_eager=True)
    handle = saga.start()
    assert handle.status is SagaStatus.RUNNING
    sagas.signal("asks", f"{handle.id}:ask", "answer", payload=True)
    assert sagas.load(handle.id).status is SagaStatus.COMPLETED


def test_observers_see_the_start_of_a_child(store: SqlStore) -> None:
    class Spans(Observer):
        started: ClassVar[list[str]] = []

        @contextmanager
        def during(self, work: Any) -> Iterator[None]:
            if isinstance(work, Start):
                work.traceparent = f"span of {work.record.name}"
            yield

        def changed(self, before: Any, after: SagaRecord, history: Any) -> None:
            if before is None:
                self.started.append(after.name)

    saga = trip(hotel())
    app = Celery("trips", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    Sagas(app, store, [saga], observers=[Spans()])
    handle = saga.start()
    assert [(each.name, each.traceparent) for each in store.family(handle.id)] == [
        ("trip", "span of trip"),
        ("hotel", "span of hotel"),
    ]
    assert Spans.started == ["trip", "hotel"]


# -- what operators see -------------------------------------------------------------------------------------------


def test_show_has_the_tree_and_says_which_child_is_stuck_and_why(store: SqlStore) -> None:
    sagas, parent, child = stuck_tree(store)
    run = runner(sagas)
    shown = json.loads(run("show", parent, "--json").stdout)
    assert [(each["id"], each["saga"], each["step"], each["status"]) for each in shown["children"]] == [
        (child, "hotel", "stay", "STUCK")
    ]
    assert "the desk is closed" in shown["children"][0]["error"]
    stay = next(step for step in shown["steps"] if step["step"] == "stay")
    assert (stay["status"], stay["error"]) == ("WAITING", stay["error"])
    assert f"its child saga 'hotel' ({child}) is STUCK" in stay["error"]
    shown = json.loads(run("show", child, "--json").stdout)
    assert (shown["parent"]["id"], shown["parent"]["step"], shown["children"]) == (parent, "stay", [])
    assert f"trip {parent}, step stay" in run("show", child).stdout
    assert (
        f"its parent 'trip' ({parent}) compensates" in json.loads(run("history", child, "--json").stdout)[0]["detail"]
    )
    refused = run("resume", parent, "--reason", "hurry", "--yes")
    assert refused.exit_code != 0
    assert f"for its child saga {child}" in refused.stderr + refused.stdout


def test_the_doctor_names_the_parent(store: SqlStore) -> None:
    _, parent, _ = stuck_tree(store)
    found = [each for each in check_backlog(backlog(store), store.now()) if each.code == "child-stuck"]
    assert [parent in each.says for each in found] == [True]


def test_the_parent_goes_on_when_the_child_is_repaired(store: SqlStore) -> None:
    sagas, parent, child = stuck_tree(store)
    sagas.skip(child, "room", reason="the hotel is bankrupt", actor="ann")
    assert store.load(child).status is SagaStatus.COMPENSATED
    assert store.load(parent).step("stay").status == "COMPENSATED"
    [entry] = json.loads(runner(sagas)("audit", "--json").stdout)
    assert (entry["id"], entry["parent"], entry["actor"]) == (child, parent, "ann")


def test_trace_and_drawing(store: SqlStore) -> None:
    sagas, parent, child = stuck_tree(store)
    lines = [(depth, entry.kind, entry.id) for depth, entry in walk(trace(store.engine, "c-1")) if entry.kind == "saga"]
    assert lines == [(0, "saga", parent), (2, "saga", child)]
    assert "stay (saga hotel 1)" in runner(sagas)("graph", "trip").stdout


# -- deployments --------------------------------------------------------------------------------------------------


def test_check_deploy_knows_the_saga_of_a_child(store: SqlStore) -> None:
    stuck_tree(store)
    changed = Saga("trip", _step("pack"), Child("stay", Saga("hostel", _step("bed"))), _step("leave"))
    found = {flight.name: flight.problems for flight in check(an_app(store, changed))}
    assert any(
        "'stay' was the child saga hotel 1 and is the child saga hostel 1" in problem for problem in found["trip"]
    )
    assert any("no saga of this name" in problem for problem in found["hotel"])


def test_check_deploy_knows_completed_children_that_may_have_to_compensate(store: SqlStore) -> None:
    asks = Wait("answer", bool, timeout=60, on_timeout=COMPENSATE)
    saga = Saga("trip", Child("stay", hotel()), asks)
    Inline(store).start(saga)
    changed = Saga("trip", Child("stay", Saga("hotel", _step("view"), _step("room"))), asks)
    found = {flight.name: flight.problems for flight in check(an_app(store, changed))}
    assert found["trip"] == ()
    assert any("'view' is new" in problem for problem in found["hotel"])


def test_what_is_new_behind_its_last_step_is_nothing_to_a_completed_child(store: SqlStore) -> None:
    asks = Wait("answer", bool, timeout=60, on_timeout=COMPENSATE)
    Inline(store).start(Saga("trip", Child("stay", hotel()), asks))
    changed = Saga("trip", Child("stay", Saga("hotel", _step("room"), _step("view"))), asks)
    assert [flight.problems for flight in check(an_app(store, changed))] == [(), ()]
