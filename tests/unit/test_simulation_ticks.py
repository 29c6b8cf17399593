"""Many schedules with many workers; and proof that the simulation sees what it looks for: bugs planted in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Connection, update

from sagas import SqlStore, ticks
from sagas.stores import schedules, schema
from sagas.ticks import ScheduleState, Tick
from tests.unit import simulation_ticks
from tests.unit.simulation import Violation
from tests.unit.simulation_ticks import simulate

ROUNDS = 60


@pytest.fixture
def store() -> Iterator[SqlStore]:
    made = SqlStore("sqlite:///:memory:")
    made.upgrade()
    yield made
    made.engine.dispose()


def no_compare_and_set(patch: pytest.MonkeyPatch) -> None:
    """Whoever decides, is believed, though another was quicker."""

    def win(connection: Connection, before: ScheduleState, after: ScheduleState) -> bool:
        row = schedules._row(after, schedules._STATE_FIELDS)
        connection.execute(update(schema.schedules).where(schema.schedules.c.name == before.name).values(row))
        return True

    patch.setattr(schedules, "_compare_and_set", win)


def a_tick_is_always_new(patch: pytest.MonkeyPatch) -> None:
    """That a tick was decided about before, and its saga started, is not looked up."""
    write = schedules._write

    def forget(connection: Connection, given: Sequence[Tick]) -> set[datetime]:
        ats = {tick.at for tick in given}
        connection.execute(schema.ticks.delete().where(schema.ticks.c.at.in_(ats)))
        write(connection, given)
        return ats

    patch.setattr(schedules, "_write", forget)


def nothing_runs(patch: pytest.MonkeyPatch) -> None:
    """The saga of an earlier tick is not looked for."""
    patch.setattr(schedules, "running", lambda store, name: None)


def a_missed_tick_leaves_nothing(patch: pytest.MonkeyPatch) -> None:
    """Of ticks that are passed over, only the last is written down."""
    decide = ticks.decide

    def short(*given: Any) -> Any:
        decision = decide(*given)
        if decision is not None and len(decision.ticks) > 1:
            object.__setattr__(decision, "ticks", decision.ticks[-1:])
        return decision

    patch.setattr(simulation_ticks, "decide", short)


def test_nothing_is_seen_where_nothing_is_cut(store: SqlStore) -> None:
    for seed in range(ROUNDS):
        simulate(seed, store)


@pytest.mark.parametrize(
    "cut",
    [no_compare_and_set, a_tick_is_always_new, nothing_runs, a_missed_tick_leaves_nothing],
    ids=lambda cut: cut.__name__,
)
def test_a_cut_is_seen(
    cut: Callable[[pytest.MonkeyPatch], None], store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch)
    with pytest.raises(Violation) as seen:
        for seed in range(ROUNDS):
            simulate(seed, store)
    print(f"{cut.__name__}: {cut.__doc__}\n{seen.value}")
