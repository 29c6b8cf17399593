"""What helps people test their sagas: inline runs, rehearsals, assertions, the plugin."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import threading
import tomllib
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sagas import (
    KeyConflict,
    NotAllowed,
    Parallel,
    Pivot,
    Retry,
    Saga,
    SagaStatus,
    SqlStore,
    Step,
    StepContext,
    TerminalError,
)
from sagas.checkpoints import DeadLetter, Direction, HistoryEntry
from sagas.starts import start
from sagas.testing import Inline, Judgement, Rehearsal, assert_compensated, assert_completed, rehearse
from sagas.testing.memory import MemoryStore

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Order:
    number: int


class World:
    """Remembers what was called, and keeps one effect for each idempotency key."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.effects: dict[str, int] = {}
        self.undone: set[str] = set()

    def action(self, step: StepContext) -> str:
        self.calls.append(step.step)
        if step.idempotency_key in self.undone:
            raise TerminalError("it was undone before it came")
        self.effects[step.idempotency_key] = 1
        return f"{step.step} {step.attempt}"

    def undo(self, step: StepContext) -> None:
        self.calls.append(f"undo {step.step}")
        self.undone.add(step.idempotency_key)
        self.effects.pop(step.idempotency_key, None)

    def step(self, name: str, **options: object) -> Step:
        return Step(name, self.action, compensation=self.undo, **options)  # type: ignore[arg-type]

    def state(self) -> object:
        return self.effects


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def line(world: World) -> Saga:
    return Saga(
        "line",
        world.step("a"),
        Parallel(world.step("l"), world.step("r")),
        Pivot("p", world.action),
        Step("z", world.action),
    )


# -- inline -------------------------------------------------------------------------------------------------------


def test_a_saga_runs_to_its_end_here(world: World, line: Saga) -> None:
    threads = threading.active_count()
    handle = Inline().start(line, key="k")
    assert_completed(handle)
    assert world.calls == ["a", "l", "r", "p", "z"]
    assert handle.result["z"] == "z 1"
    assert handle.record.key == "k"
    assert threading.active_count() == threads


def test_it_turns_back(world: World, line: Saga) -> None:
    inline = Inline()
    inline.fail_at("p", TerminalError("no money"))
    handle = inline.start(line)
    assert_compensated(handle)
    assert handle.error == "step 'p' failed: no money"
    assert world.calls[:3] == ["a", "l", "r"]
    assert world.calls[-1] == "undo a"
    assert not world.effects


def test_backoffs_are_skipped_not_waited_for(world: World) -> None:
    inline = Inline()
    slow = Saga("slow", world.step("a", retry=Retry(max_attempts=4, delay=1000, max_delay=10_000, jitter=0)))
    begun = inline.now
    inline.fail_at("a", times=3)
    handle = inline.start(slow)
    assert handle.result["a"] == "a 4"
    assert timedelta(seconds=7000) < inline.now - begun < timedelta(seconds=7010)


@pytest.mark.parametrize("undo", [False, True])
def test_a_worker_that_dies_before_or_after_the_effect(world: World, line: Saga, undo: bool) -> None:
    for crash, calls in ((Inline.crash_before, 1), (Inline.crash_after, 2)):
        world.calls.clear()
        inline = Inline()
        begun = inline.now
        crash(inline, "l", undo=undo)
        if undo:
            inline.fail_at("p", TerminalError("no"))
        handle = inline.start(line)
        assert handle.status is (SagaStatus.COMPENSATED if undo else SagaStatus.COMPLETED)
        assert world.calls.count("undo l" if undo else "l") == calls
        assert inline.now - begun > timedelta(seconds=29), "the claim of the dead has to expire"
        assert [entry.what for entry in inline.store.queries.history(handle.id)][-1] == "lost"


def test_a_step_that_kills_every_worker_is_given_up(world: World, line: Saga) -> None:
    inline = Inline()
    inline.crash_after("a", times=None)
    assert_compensated(inline.start(line))
    assert world.calls == ["a"] * 5 + ["undo a"]


def test_a_failing_undo_is_stuck(line: Saga) -> None:
    inline = Inline()
    inline.fail_at("p", TerminalError("no"))
    inline.fail_at("l", undo=True, times=None)
    handle = inline.start(line)
    assert handle.status is SagaStatus.STUCK
    assert [letter.step for letter in inline.store.queries.dead_letters()] == ["l"]


def test_an_effect_after_its_undo_is_undone(world: World) -> None:
    inline = Inline()
    inline.overtake("a")
    inline.fail_at("a", TerminalError("busy"), times=None)
    done: list[str] = []
    naive = Saga("naive", Step("a", lambda: done.append("done"), compensation=lambda: done.append("undone")))
    assert_compensated(inline.start(naive))
    assert done == ["undone", "done", "undone"]


def test_undo_again(world: World, line: Saga) -> None:
    inline = Inline()
    with pytest.raises(NotAllowed, match="step 'a' cannot be compensated once more"):
        inline.undo_again(inline.start(line), "a")
    inline.fail_at("p", TerminalError("no"))
    handle = inline.start(line)
    inline.undo_again(handle, "a")
    assert_compensated(handle)
    assert world.calls.count("undo a") == 2


def test_the_registration_with_an_app_is_left_alone(line: Saga) -> None:
    starter: Any = object()
    line.bind(starter)
    action = line.steps["a"].action
    assert_completed(Inline().start(line))
    assert line._starter is starter
    assert line.steps["a"].action is action


def test_the_same_key_is_the_same_saga(world: World) -> None:
    keyed = Saga("keyed", world.step("a"), input=Order)
    inline = Inline()
    assert inline.start(keyed, {"number": 1}, key="k") == inline.start(keyed, {"number": 1}, key="k")
    assert world.calls == ["a"]
    with pytest.raises(KeyConflict):
        inline.start(keyed, {"number": 2}, key="k")


def test_a_fault_that_could_never_happen_is_refused(world: World) -> None:
    saga = Saga("s", world.step("a"), Step("b", world.action, compensation=None))
    inline = Inline()
    inline.fail_at("aa")
    with pytest.raises(NotAllowed, match="has no step 'aa' to fail at. It has a, b"):
        inline.start(saga)
    inline.heal()
    inline.crash_after("b", undo=True)
    with pytest.raises(NotAllowed, match="step 'b' has no compensation"):
        inline.start(saga)
    assert world.calls == []


def test_without_a_database_there_is_no_session() -> None:
    inline = Inline()
    handle = inline.start(Saga("s", Step("a", lambda_session, compensation=None)))
    assert handle.status is SagaStatus.COMPENSATED
    assert "use Inline(SqlStore(...))" in (handle.error or "")


def lambda_session(step: StepContext) -> None:
    step.session.rollback()


def test_sagas_of_others_in_the_same_database_are_left_alone(tmp_path: Path, world: World, line: Saga) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 's.db'}")
    store.upgrade()
    inline = Inline(store)
    theirs = start(inline.orchestrator, line, None, key=None, correlation_id=None, session=None).record
    inline.fail_at("a", times=2)
    inline.crash_before("l")
    assert_completed(inline.start(line))
    assert store.load(theirs.id) == theirs
    store.engine.dispose()


def test_the_memory_store_keeps_the_one_rule() -> None:
    inline = Inline(MemoryStore())
    record = inline.start(Saga("s", Step("a", lambda: 1, compensation=None))).record
    entry = HistoryEntry(at=inline.now, what="x", epoch=1)
    saved = inline.store.save(record, record, [entry])
    assert saved is not None
    assert inline.store.save(record, record, [entry]) is None
    assert inline.store.queries.history(record.id) == [entry]
    assert inline.store.find("s", record.key) == saved
    letter = DeadLetter(saga_id=record.id, step="a", direction=Direction.FORWARD, error="e", created_at=inline.now)
    inline.store.save(saved, saved, dead_letters=[letter])
    assert inline.store.queries.dead_letters() == [letter]


# -- assertions -----------------------------------------------------------------------------------------------------


def test_assertions_tell_the_story(line: Saga) -> None:
    inline = Inline()
    inline.fail_at("l", ConnectionError("card terminal"), times=None)
    handle = inline.start(line)
    assert_compensated(handle)
    with pytest.raises(AssertionError) as raised:
        assert_completed(handle)
    story = str(raised.value)
    assert story.startswith(f"saga 'line' ({handle.id}) is COMPENSATED, not COMPLETED")
    assert "error: step 'l' is in doubt: ConnectionError: card terminal" in story
    assert "  a: COMPENSATED" in story
    assert len(re.findall(r"step failed l: ConnectionError: card terminal", story)) == 3
    with pytest.raises(AssertionError, match="is COMPLETED, not COMPENSATED"):
        assert_compensated(Inline().start(line))


# -- rehearsal ------------------------------------------------------------------------------------------------------


def found(rehearsal: Rehearsal, verdict: Judgement) -> set[tuple[str, str]]:
    return {(row.step, row.failure) for row in rehearsal.rows if row.verdict is verdict}


def test_a_good_saga(world: World, line: Saga) -> None:
    rehearsal = rehearse(line, state=world.state)
    assert rehearsal.ok, rehearsal.table()
    ends = {(row.step, row.failure): row.status for row in rehearsal.rows}
    assert ends["a", "refused"] is ends["p", "refused"] is SagaStatus.COMPENSATED
    assert ends["p", "broken"] is ends["z", "refused"] is SagaStatus.STUCK
    assert ends["z", "crash after its effect"] is SagaStatus.COMPLETED
    assert ends["r", "compensated twice"] is SagaStatus.COMPENSATED
    assert rehearsal.table().endswith(f"saga 'line' version 1: {len(rehearsal.rows)} runs, all ok")


def test_a_compensation_that_is_not_idempotent_is_named(world: World) -> None:
    counter = {"stock": 10}

    def take(step: StepContext) -> None:
        if step.idempotency_key not in world.effects:
            world.action(step)
            counter["stock"] -= 1

    def put_back(step: StepContext) -> None:  # it knows whether it was taken, not whether it was put back
        if step.idempotency_key in world.effects:
            counter["stock"] += 1

    saga = Saga("sell", Step("take", take, compensation=put_back), Pivot("pay", lambda: None))
    rehearsal = rehearse(saga, state=lambda: counter)
    wrong = found(rehearsal, Judgement.NOT_IDEMPOTENT)
    assert wrong == {("take", "compensated twice"), ("take", "crash after compensation")}
    table = rehearsal.table()
    assert "NOT IDEMPOTENT: take, compensated twice: its compensation, called again with the same key, changed" in table
    assert not rehearsal.ok


def test_a_compensation_that_forgets_something_is_named(world: World) -> None:
    letters: set[str] = set()

    def reserve(step: StepContext) -> None:
        world.action(step)
        letters.add(step.idempotency_key)

    saga = Saga("book", Step("reserve", reserve, compensation=world.undo), Pivot("pay", lambda: None))
    rehearsal = rehearse(saga, state=lambda: (world.effects, letters))
    assert found(rehearsal, Judgement.NOT_IDEMPOTENT) == set()
    assert found(rehearsal, Judgement.NOT_COVERED) == {
        ("reserve", "broken after its effect"),
        ("pay", "refused"),
        ("reserve", "compensated twice"),
        ("reserve", "crash after compensation"),
    }
    assert "NOT COVERED: pay, refused: compensated, but the state was " in rehearsal.table()


def test_a_step_that_said_it_needs_no_undo_and_does_is_named(world: World) -> None:
    saga = Saga("s", Step("a", world.action, compensation=None), Pivot("p", lambda: None))
    rehearsal = rehearse(saga, state=world.state)
    assert found(rehearsal, Judgement.NOT_COVERED) == {("a", "broken after its effect"), ("p", "refused")}


@pytest.mark.parametrize("pivot", [False, True])
def test_an_action_that_is_not_idempotent_is_named(pivot: bool) -> None:
    charges: list[int] = []

    def charge() -> None:
        charges.append(1)

    undoable = Step("charge", charge, compensation=charges.clear), Pivot("p", lambda: None)
    saga = Saga("s", Pivot("charge", charge)) if pivot else Saga("s", *undoable)
    rehearsal = rehearse(saga, state=lambda: charges)
    wrong = found(rehearsal, Judgement.NOT_IDEMPOTENT)
    assert wrong == {("charge", "crash after its effect"), ("charge", "broken after its effect")}


def test_an_action_that_comes_after_its_undo_and_stays_is_named() -> None:
    """The undo that comes first leaves a mark, the action ignores it, and the second undo believes it."""
    there: set[str] = set()
    undone: set[str] = set()

    def undo(step: StepContext) -> None:
        if step.idempotency_key not in undone:
            undone.add(step.idempotency_key)
            there.discard(step.idempotency_key)

    def act(step: StepContext) -> None:
        there.add(step.idempotency_key)

    saga = Saga("s", Step("a", act, compensation=undo), Pivot("p", lambda: None))
    rehearsal = rehearse(saga, state=lambda: there)
    assert found(rehearsal, Judgement.NOT_COVERED) == {("a", "effect after compensation")}


def test_an_input_that_does_not_go_through_is_said_at_once() -> None:
    def refuse() -> None:
        raise TerminalError("sold out")

    [row] = rehearse(Saga("s", Step("a", refuse, compensation=None))).rows
    assert row.verdict is Judgement.WRONG_END
    assert row.detail == "it should end COMPLETED: step 'a' failed: sold out"


def test_ends_follow_the_policies_of_the_steps(world: World) -> None:
    """One attempt, one delivery, a timeout shorter than the lease, a saga that runs out of time."""
    saga = Saga(
        "s",
        world.step("a", max_deliveries=1),
        world.step("b", timeout=5, retry=Retry(max_attempts=1), compensation_retry=Retry(max_attempts=2)),
        world.step("c"),
        timeout=50,
    )
    rehearsal = rehearse(saga, state=world.state)
    assert rehearsal.ok, rehearsal.table()
    ends = {(row.step, row.failure): row.status for row in rehearsal.rows}
    assert ends["a", "crash before its effect"] is SagaStatus.COMPENSATED
    assert ends["b", "crash before its effect"] is SagaStatus.COMPENSATED
    assert ends["b", "crash after compensation"] is SagaStatus.STUCK
    assert ends["c", "crash before its effect"] is SagaStatus.COMPENSATED


def test_a_step_of_a_parallel_stage_does_not_blame_its_sibling(world: World) -> None:
    saga = Saga("s", Parallel(world.step("l"), world.step("r")), Pivot("p", lambda: None))
    rehearsal = rehearse(saga, state=world.state)
    assert rehearsal.ok, rehearsal.table()


# -- the plugin -----------------------------------------------------------------------------------------------------


def test_the_entry_point_is_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [name] = project["entry-points"]["pytest11"].values()
    assert importlib.import_module(name).inline_sagas.__doc__


def test_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from sagas import Saga, Step\n"
        "from sagas.testing import assert_completed\n"
        "def test_it(inline_sagas):\n"
        "    assert_completed(inline_sagas.start(Saga('s', Step('a', lambda: 1, compensation=None))))\n"
    )
    # By its name as well: the environment of this test may have been made before the entry point.
    plugin = ["-p", "no:sagas", "-p", "sagas.testing.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "test_mine.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_pytest_is_not_imported_without_need() -> None:
    look = "import sys, sagas.testing, sagas.cli; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
