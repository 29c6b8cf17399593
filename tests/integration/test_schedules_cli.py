"""`sagas schedules ...`, `sagas purge` and `sagas doctor`, as typed, about schedules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from celery import Celery
from click.testing import CliRunner, Result
from sqlalchemy import update

from sagas import Saga, Sagas, SagaStatus, Schedule, SqlStore, Step
from sagas.cli.sagas import sagas as commands
from sagas.doctor.findings import Level
from sagas.doctor.schedules import examine
from sagas.stores import schedules as stored
from sagas.stores import schema


def app_of(path: Path, *schedules: Any) -> Celery:
    app = Celery("billing", broker="memory://", set_as_current=False)
    saga = Saga("bill_all", Step("bill", lambda: 1, compensation=None))
    made = [Schedule(name, saga, cron=cron, **options) for name, cron, options in schedules]
    Sagas(app, SqlStore(f"sqlite:///{path / 'sagas.db'}"), [saga], schedules=made)
    return app


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    made = app_of(tmp_path, ("nightly", "0 2 * * *", {"timezone": "Europe/Vienna"}), ("hourly", "0 * * * *", {}))
    made.sagas.store.upgrade()
    yield made
    made.sagas.store.engine.dispose()
    made.close()


def run(app: Celery, *words: str) -> Result:
    group = click.Group("celery", commands={"sagas": commands})
    return CliRunner().invoke(group, ["sagas", *words], obj=SimpleNamespace(app=app))


def said(app: Celery, *words: str) -> Any:
    done = run(app, "schedules", *words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def findings(app: Celery) -> list[tuple[str, str]]:
    found = list(examine(app.sagas))
    assert all(finding.do for finding in found if finding.level is not Level.OK)
    return [(finding.code, finding.says) for finding in found if finding.level is not Level.OK]


def put_back(app: Celery, hours: int) -> None:
    """Make the hourly schedule due, as if no worker had looked for so long."""
    store = app.sagas.store
    [state] = stored.states(store, ["hourly"])
    with store.engine.begin() as connection:
        mine = update(schema.schedules).where(schema.schedules.c.name == "hourly")
        connection.execute(mine.values(next_at=state.next_at - timedelta(hours=hours)))


def test_list_next_and_ticks(app: Celery) -> None:
    assert [(row["name"], row["has_worker"], row["next_at"]) for row in said(app, "list")] == [
        ("hourly", False, None), ("nightly", False, None),
    ]  # fmt: skip
    app.sagas.recovery.run_once()
    nightly = said(app, "list")[1]
    assert (nightly["saga"], nightly["cron"], nightly["timezone"]) == ("bill_all", "0 2 * * *", "Europe/Vienna")
    assert nightly["has_worker"]
    assert nightly["in_this_code"]
    times = said(app, "next", "nightly")
    assert len(times) == 5
    assert all("T02:00:00+0" in time["local"] for time in times)
    assert times[0]["utc"] == nightly["next_at"]
    assert len(said(app, "next", "nightly", "--count", "2")) == 2
    assert said(app, "ticks", "hourly") == []
    put_back(app, 2)
    app.sagas.recovery.run_once()
    started, missed = said(app, "ticks", "hourly")
    assert (started["outcome"], missed["outcome"]) == ("STARTED", "MISSED")
    assert "catch_up='latest'" in missed["why"]
    assert said(app, "list")[0]["last_saga_id"] == started["saga_id"]
    assert "STARTED" in run(app, "schedules", "ticks", "hourly").stdout
    unknown = run(app, "schedules", "next", "daily")
    assert (unknown.exit_code, "this app has no schedule 'daily'; there is: hourly, nightly" in unknown.stderr) == (
        2,
        True,
    )


def test_pause_resume_and_run(app: Celery) -> None:
    signed = ("--reason", "the bank is closed", "--actor", "ann")
    assert run(app, "schedules", "pause", "nightly").exit_code == 2  # without a reason
    assert run(app, "schedules", "pause", "nightly", *signed).stdout == "nightly is paused\n"
    again = run(app, "schedules", "pause", "nightly", *signed)
    assert (again.exit_code, "paused already, by ann: the bank is closed" in again.stderr) == (2, True)
    assert [row["paused_by"] for row in said(app, "list")] == [None, "ann"]
    assert "nightly goes on at " in run(app, "schedules", "resume", "nightly", *signed).stdout
    done = run(app, "schedules", "run", "nightly", *signed)
    [tick] = said(app, "ticks", "nightly")
    assert done.stdout == f"nightly: STARTED {tick['saga_id']}\n"
    assert (tick["actor"], tick["why"]) == ("ann", "by hand: the bank is closed")
    refused = run(app, "schedules", "run", "nightly", *signed)
    assert (refused.exit_code, "its overlap is 'skip'" in refused.stderr) == (2, True)
    audited = json.loads(run(app, "db", "audit", "--json").stdout)
    assert [(entry["what"], entry["actor"]) for entry in audited] == [
        ("run schedule", "ann"), ("resume schedule", "ann"), ("pause schedule", "ann"),
    ]  # fmt: skip
    assert audited[0]["detail"] == "nightly, which starts bill_all"


@dataclass
class Day:
    number: int


def test_a_start_by_hand_that_fails(tmp_path: Path) -> None:
    app = Celery("billing", broker="memory://", set_as_current=False)
    saga = Saga("close", Step("a", lambda number: number, compensation=None), input=Day)
    closes = Schedule("closes", saga, cron="0 2 * * *", input=lambda _: 1 / 0)
    Sagas(app, SqlStore(f"sqlite:///{tmp_path / 'sagas.db'}"), [saga], schedules=[closes])
    app.sagas.store.upgrade()
    done = run(app, "schedules", "run", "closes", "--reason", "x")
    assert (done.exit_code, done.stdout) == (1, "closes: FAILED ZeroDivisionError: division by zero\n")
    app.sagas.recovery.run_once()
    [(code, says)] = findings(app)
    assert (code, "ZeroDivisionError" in says) == ("schedule-failed", True)
    app.sagas.store.engine.dispose()


def test_what_doctor_says(app: Celery, tmp_path: Path) -> None:
    assert [code for code, _ in findings(app)] == ["schedule-without-worker"] * 2
    app.sagas.recovery.run_once()
    assert findings(app) == []
    run(app, "schedules", "pause", "nightly", "--reason", "audit", "--actor", "ann")
    assert findings(app) == [("schedule-paused", "schedule 'nightly' is paused by ann: audit")]
    less = app_of(tmp_path)
    assert [code for code, _ in findings(less)] == ["schedule-unknown"] * 2
    less.sagas.orchestrator.sagas.clear()
    assert [code for code, _ in findings(less)] == ["schedule-saga"] * 2
    less.sagas.store.engine.dispose()
    less.close()


def test_purge_takes_old_ticks_with_it(app: Celery) -> None:
    app.sagas.recovery.run_once()
    put_back(app, 5)
    app.sagas.recovery.run_once()
    with app.sagas.store.engine.begin() as connection:
        old = app.sagas.store.now() - timedelta(days=40)
        connection.execute(update(schema.ticks).values(decided_at=old))
        connection.execute(update(schema.sagas).values(status=SagaStatus.COMPLETED.value, updated_at=old))
    purge = ("purge", "--older-than", "30d", "--reason", "policy", "--yes")
    dry = run(app, *purge, "--dry-run")
    assert "5 ticks of schedules" in dry.stderr
    assert len(said(app, "ticks", "hourly")) == 5
    run(app, *purge, "--status", "COMPENSATED")
    run(app, *purge, "--saga", "another")
    assert len(said(app, "ticks", "hourly")) == 5
    assert run(app, *purge, "--saga", "bill_all").exit_code == 0
    assert said(app, "ticks", "hourly") == []
    assert [row["name"] for row in said(app, "list")] == ["hourly", "nightly"]


def test_an_app_without_schedules(tmp_path: Path) -> None:
    app = app_of(tmp_path)
    app.sagas.store.upgrade()
    done = run(app, "schedules", "list")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "this app has no schedules" in done.stderr
    app.sagas.store.engine.dispose()
