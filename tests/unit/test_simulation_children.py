"""Many schedules of trees of sagas; and proof that the simulation sees what it looks for: bugs that are planted in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sagas import SagaRecord, SagaStatus, StepStatus, family, orchestrator, transitions
from sagas.execution import Execution
from sagas.orchestrator import Orchestrator
from sagas.testing import memory
from sagas.transitions import Case, Change, Verdict
from sagas.transitions.ends import released
from tests.unit.simulation_children import Violation, completed_is_left, simulate

ROUNDS = 400


@pytest.mark.parametrize("first", range(0, ROUNDS, 100))
def test_nothing_that_must_not_happen_happens(first: int) -> None:
    for seed in range(first, first + 100):
        simulate(seed)


def test_the_trees_come_to_both_ends() -> None:
    worlds = [simulate(seed) for seed in range(60)]
    assert {world.store.load(world.root).status for world in worlds} == {SagaStatus.COMPLETED, SagaStatus.COMPENSATED}


def orphaned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's step counts as compensated, and nobody tells the child."""

    def compensated(case: Case, name: str, owner: str, *_: Any) -> Change:
        step = case.record.step(name)
        if step.owner != owner:
            return case.refuse("")
        step = released(step, StepStatus.COMPENSATED, case.now)
        return transitions.ends.after_step(case.set(step), step, Verdict.CONTINUE)

    monkeypatch.setattr(family, "undo", lambda *_: None)
    monkeypatch.setattr(transitions, "await_child", compensated)


def not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The write that ends the child says nothing to the parent, and neither does whoever wrote it."""
    monkeypatch.setattr(memory, "tells_parent", lambda *_: False)
    monkeypatch.setattr(orchestrator, "tells_parent", lambda *_: False)


def told_too_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent is made due, and whoever changes it at this moment does not notice."""

    def wake(store: Any, child: SagaRecord) -> None:
        parent = store._records[child.parent_id]
        revision = parent.revision
        original(store, child)
        store._records[parent.id] = replace(store._records[parent.id], revision=revision)

    original = memory.MemoryStore._wake_parent
    monkeypatch.setattr(memory.MemoryStore, "_wake_parent", wake)


def two_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is stored before its parent's step waits for it, under a key of its own."""
    numbers = itertools.count()
    original = Execution._new_child

    def made(attempt: Execution, *given: Any) -> SagaRecord:
        child = original(attempt, *given)
        return attempt._store.insert(replace(child, key=f"{child.key}:{next(numbers)}"))

    monkeypatch.setattr(Execution, "_new_child", made)


def undone_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent goes on compensating as soon as its child was told to."""
    original = transitions.await_child

    def at_once(case: Case, name: str, owner: str, children: Any) -> Change:
        ended = {id_: replace(child, status=SagaStatus.COMPENSATED) for id_, child in children.items()}
        return original(case, name, owner, ended)

    monkeypatch.setattr(transitions, "await_child", at_once)


def failure_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that failed counts as done."""

    def examine(engine: Orchestrator, saga_id: str) -> Any:
        return engine.change(
            saga_id,
            lambda case: transitions.examine(
                case,
                {
                    id_: replace(child, status=SagaStatus.COMPLETED) if case.forward else child
                    for id_, child in family.children(engine.store, case).items()
                    if child.status in (SagaStatus.COMPLETED, SagaStatus.COMPENSATED)
                },
            ),
        )

    monkeypatch.setattr(Orchestrator, "examine", examine)


@pytest.mark.parametrize(
    "plant",
    [orphaned, not_told, told_too_quietly, two_children, undone_too_early, completed_is_left, failure_is_ignored],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(Violation):
        for seed in range(ROUNDS):
            simulate(seed)
