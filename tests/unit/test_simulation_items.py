"""Many schedules of sagas that fan out; and proof that the simulation sees what it looks for: bugs planted in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sagas import Child, Each, Pivot, Retry, Saga, SagaRecord, SagaStatus, StepContext
from sagas.checkpoints import AT_REST, Items
from sagas.testing import memory
from sagas.transitions import Case
from tests.unit.simulation_children import WORLD, Violation, _step, completed_is_left, simulate

ROUNDS = 300


def _do(item: int, step: StepContext) -> str:
    return WORLD[-1].act(step)


def _undo(item: int, step: StepContext) -> None:
    WORLD[-1].undo(step)


def _each(name: str, items: int, *, undo: bool = True, **options: Any) -> Each:
    options["retry"] = Retry(max_attempts=3, delay=1, jitter=0)
    if undo:
        options |= {"compensation": _undo, "compensation_retry": options["retry"]}
    return Each(name, _do, over=lambda: list(range(items)), **options)


def _sagas() -> list[Saga]:
    line = Saga("line", _step("x"), _step("y"))
    packed = Saga("packed", Each("e", line, over=lambda: [1, 2, 3], input=lambda: None, max_concurrency=2))
    return [
        Saga("narrow", _step("a"), _each("e", 5, max_concurrency=1), _step("z")),
        Saga("fan", _each("e", 6, max_concurrency=3), _step("z")),
        Saga("lenient", _each("e", 6, max_concurrency=2, allow_failures=2), _step("z")),
        Saga("nested", _step("a"), Child("packed", packed), _step("z")),
        Saga("late", _step("a"), _step("pay", kind=Pivot), _each("e", 4, undo=False, max_concurrency=2)),
        Saga("none", _each("e", 0), _step("z")),
    ]


SAGAS = _sagas()


@pytest.mark.parametrize("first", range(0, ROUNDS, 100))
def test_nothing_that_must_not_happen_happens(first: int) -> None:
    for seed in range(first, first + 100):
        simulate(seed, sagas=SAGAS)


def test_the_fans_come_to_both_ends() -> None:
    worlds = [simulate(seed, sagas=SAGAS) for seed in range(60)]
    assert {world.store.load(world.root).status for world in worlds} == {SagaStatus.COMPLETED, SagaStatus.COMPENSATED}


def begun_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that reports its end twice makes room for two."""
    begin = memory._MemoryItems.begin_next

    def forget(items: Any, ended: SagaRecord, patience: float) -> SagaRecord | None:
        items._passed.discard(ended.id)
        return begin(items, ended, patience)

    monkeypatch.setattr(memory._MemoryItems, "begin_next", forget)


def told_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item at rest is not due: where its worker dies before it begins the next, nobody does."""
    original = Case.next_check_at

    def never(self: Case) -> Any:
        return None if self.record.status in AT_REST else original.__get__(self)

    monkeypatch.setattr(Case, "next_check_at", property(never))


def no_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items that have not begun stay as they are when the saga compensates."""
    monkeypatch.setattr(memory._MemoryItems, "close", lambda *_: None)


def done_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items that are at it are taken for done."""
    count = memory._MemoryItems.count

    def rosy(items: Any, parent_id: str, step: str) -> Items:
        true = count(items, parent_id, step)
        return replace(true, working=0, completed=true.completed + true.working)

    monkeypatch.setattr(memory._MemoryItems, "count", rosy)


@pytest.mark.parametrize(
    "plant",
    [begun_twice, told_too_early, no_close, done_too_early, completed_is_left],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(Violation):
        for seed in range(ROUNDS):
            simulate(seed, sagas=SAGAS)
