"""Sagas that version 0.1.0 wrote, in the middle of everything: this code brings them to their ends.

`data/version_0_1_0.json` has the rows as that version's own code left them in SQLite, at revision 0007 of the tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, Table, insert, inspect

from sagas import Parallel, Pivot, Retry, Saga, SagaStatus, SqlStore, Step, StepStatus
from sagas.checkpoints import SagaRecord
from sagas.runner import Runner
from sagas.stores import migrate
from sagas.stores.columns import UtcDateTime
from sagas.transitions import Repair, Timing
from tests.databases import database_url

ROWS: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "data" / "version_0_1_0.json").read_text()
)
IDS = {row["key"]: row["id"] for row in ROWS["sagas_saga"]}
UNDOABLE = ["hotel", "flight", "car"]


@dataclass
class Trip:
    city: str
    trouble: str = ""


class Agency:
    """The saga's definition, with what it did since."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.undone: list[tuple[str, str | None]] = []
        pay = Pivot("pay", self.act("pay"), retry=Retry(max_attempts=1))
        self.saga = Saga(
            "book_trip",
            self.step("hotel"),
            Parallel(self.step("flight"), self.step("car"), Step("map", self.act("map"), compensation=None)),
            pay,
            Step("tickets", self.act("tickets"), compensation=None),
            input=Trip,
        )

    def step(self, name: str) -> Step:
        def undo(result: str | None) -> None:
            self.undone.append((name, result))

        return Step(name, self.act(name), compensation=undo)

    def act(self, name: str) -> Any:
        def action(city: str) -> str:
            self.done.append(name)
            return f"{name} in {city}"

        return action


@pytest.fixture(scope="module", params=["sqlite", "postgres", "mariadb"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlStore]:
    kept = SqlStore(database_url(request, request.param, tmp_path_factory.mktemp("old")))
    migrate.upgrade(kept.engine, "0007")
    _write(kept.engine)
    kept.upgrade()
    yield kept
    kept.engine.dispose()


def _write(engine: Engine) -> None:
    metadata = MetaData()
    with engine.begin() as connection:
        for name, rows in ROWS.items():
            table = Table(name, metadata, autoload_with=connection)
            times = [c.name for c in table.columns if c.name == "at" or c.name.endswith(("_at", "_until", "deadline"))]
            for row in rows:
                read = {time: datetime.fromisoformat(f"{row[time]}+00:00") for time in times if row[time]}
                typed = {**row, **read}
                if name != "sagas_saga":
                    typed.pop("id", None)  # the database counts
                for column in times:
                    table.c[column].type = UtcDateTime()
                connection.execute(insert(table), typed)


@pytest.fixture
def agency() -> Agency:
    return Agency()


@pytest.fixture
def runner(store: SqlStore, agency: Agency) -> Runner:
    runner = Runner(store, timing=Timing(), max_payload=1_048_576)
    runner.orchestrator.register(agency.saga)
    return runner


def load(runner: Runner, key: str) -> SagaRecord:
    return runner.orchestrator.store.load(IDS[key])


def test_the_steps_are_in_their_stages(runner: Runner) -> None:
    assert [(s.name, s.seq, s.stage) for s in load(runner, "complete").steps.values()] == [
        ("hotel", 1, 0), ("flight", 2, 1), ("car", 3, 1), ("map", 4, 1), ("pay", 5, 2), ("tickets", 6, 3)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "missing"),
    [
        ("pending", ["hotel", "flight", "car", "map", "pay", "tickets"]),
        ("one done", ["flight", "car", "map", "pay", "tickets"]),
        ("half a stage", ["car", "map", "pay", "tickets"]),
        ("retrying", ["hotel", "flight", "car", "map", "pay", "tickets"]),
        ("worker gone", ["flight", "car", "map", "pay", "tickets"]),
        ("stage done", ["pay", "tickets"]),
        ("past the pivot", ["tickets"]),
    ],
)
def test_forward(runner: Runner, agency: Agency, key: str, missing: list[str]) -> None:
    record = runner.finish(IDS[key], None)
    assert record.status is SagaStatus.COMPLETED
    assert sorted(agency.done) == sorted(missing)
    assert agency.undone == []
    assert {step.status for step in record.steps.values()} == {StepStatus.DONE}
    assert sorted(step.seq for step in record.steps.values()) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("key", "left"),
    [("turned back", ["flight", "car", "hotel"]), ("half undone", ["car", "hotel"]), ("cancelled", ["hotel"])],
)
def test_backward(runner: Runner, agency: Agency, key: str, left: list[str]) -> None:
    record = runner.finish(IDS[key], None)
    assert record.status is SagaStatus.COMPENSATED
    assert agency.done == []
    # The car was refused: there is no result to undo it by.
    assert sorted(agency.undone, key=str) == sorted(
        ((name, None if name == "car" else f"{name} in Graz") for name in left), key=str
    )


def test_stuck(runner: Runner, agency: Agency) -> None:
    engine = runner.orchestrator
    runner.finish(IDS["stuck at the pivot"], engine.repair(
        IDS["stuck at the pivot"], "pay", Repair.FAILED, reason="the bank knows nothing of it"
    ).plan)  # fmt: skip
    assert load(runner, "stuck at the pivot").status is SagaStatus.COMPENSATED
    assert sorted(name for name, _ in agency.undone) == sorted(UNDOABLE)
    agency.undone.clear()
    left = engine.repair(IDS["undo stuck"], "flight", Repair.RETRY, reason="mended").plan
    assert runner.finish(IDS["undo stuck"], left).status is SagaStatus.COMPENSATED
    assert agency.undone == [("flight", "flight in Graz"), ("hotel", "hotel in Graz")]


def test_the_way_back_to_the_old_tables(store: SqlStore) -> None:
    """Last, as it changes the tables. Nothing of what the old code reads is lost."""
    migrate.downgrade(store.engine, "0010")
    assert "shape" in {column["name"] for column in inspect(store.engine).get_columns("sagas_saga")}
    with store.engine.connect() as connection:
        old = Table("sagas_saga", MetaData(), autoload_with=connection)
        shapes = set(connection.execute(old.select().with_only_columns(old.c.shape)).scalars())
    assert shapes == {"hotel > flight & car & map- > pay! > tickets"}
    store.upgrade()
