"""Two codes carry one saga. The rules that keep them apart, cut one at a time: each cut must be seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sagas import SagaStatus, opening, registry
from sagas.changes import Place
from tests.unit.simulation import Violation
from tests.unit.simulation_changes import simulate

ROUNDS = 1500


def any_code(patch: pytest.MonkeyPatch) -> None:
    """Whatever the nodes are, the code that is there goes on."""
    patch.setattr(registry, "misfits", lambda stored, running, place: [])


def a_stage_too_early(patch: pytest.MonkeyPatch) -> None:
    """A saga is taken to stand one stage before where it does."""
    place_of = opening.place_of
    patch.setattr(registry, "place_of", lambda record: Place(place_of(record).stage - 1))


def no_new_outline(patch: pytest.MonkeyPatch) -> None:
    """A saga that has passed the change keeps the outline that it was started with."""
    patch.setattr(opening, "is_new_at", lambda stored, running, stage: False)


def test_nothing_is_seen_where_nothing_is_cut() -> None:
    worlds = [simulate(seed) for seed in range(ROUNDS)]
    codes = {world.record.outline for world in worlds if world.record.status is SagaStatus.COMPLETED}
    assert len(codes) >= 8, "both codes of each pair have brought sagas to their ends"
    assert sum(world.passed_on for world in worlds) > 100


@pytest.mark.parametrize("cut", [any_code, a_stage_too_early, no_new_outline], ids=lambda cut: cut.__name__)
def test_a_cut_is_seen(cut: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch)
    with pytest.raises((Violation, AssertionError, KeyError)) as seen:
        for seed in range(ROUNDS):
            simulate(seed)
    print(f"{cut.__name__}: {cut.__doc__}\n{seen.value}")
