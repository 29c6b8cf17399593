"""A Django project's own worker, `celery -A project worker`, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from sagas import SagaRecord, SagaStatus, SqlStore
from tests import forks
from tests.integration.test_django import database, manage, project
from tests.rig import ROOT
from tests.servers import Redis, wait_for

#: Starts sagas as a view does, in a process of its own.
START = """
import sys, django
django.setup()
from tests.django_project.orders import sagas
with django.db.transaction.atomic():
    for saga, number, fault in (line.split() for line in sys.stdin):
        given = {"number": number, "card": "4111", "fault": fault.strip("-")}
        getattr(sagas, saga).start(given, key=number)
"""


class Project:
    """The project on PostgreSQL and Redis, with a worker of its own."""

    def __init__(self, folder: Path, settings: dict[str, Any], url: str) -> None:
        self.environment = project(folder, **settings)
        self.store = SqlStore(url)
        self.log = folder / "worker.log"
        self.worker: subprocess.Popen[bytes] | None = None
        migrated = manage(self.environment, "migrate", "--run-syncdb")
        assert migrated.returncode == 0, migrated.stderr

    def work(self, *options: str) -> None:
        command = [
            sys.executable, "-m", "celery", "-A", "tests.django_project", "worker", "-c", "2", "-l", "INFO",
            "--without-gossip", "--without-mingle", "--without-heartbeat", *options,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.worker = forks.Popen(
                command, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_for(self._ready, 40, "the worker is ready")

    def _ready(self) -> bool:
        assert self.worker is not None
        assert self.worker.poll() is None, self.output()
        return " ready." in self.output()

    def output(self) -> str:
        return self.log.read_text(errors="replace")[-8000:]

    def kill(self) -> None:
        if self.worker is not None and self.worker.poll() is None:
            os.killpg(self.worker.pid, signal.SIGKILL)
            self.worker.wait(20)

    def start(self, *sagas: str) -> None:
        command = [sys.executable, "-c", START]
        forks.run(command, cwd=ROOT, env=self.environment, input="\n".join(sagas), text=True, check=True, timeout=60)

    def ended(self, saga: str, number: str, timeout: float = 40) -> SagaRecord:
        at_end = (SagaStatus.COMPLETED, SagaStatus.COMPENSATED, SagaStatus.STUCK)
        wait_for(lambda: self.store.find(saga, number).status in at_end, timeout, f"{number} ended", 0.1)
        return self.store.find(saga, number)

    def effects(self, what: str) -> int:
        query = text("select count(*) from orders_effect where what = :what")
        with self.store.engine.connect() as connection:
            return int(connection.execute(query, {"what": what}).scalar_one())


def worker_settings(folder: Path, redis_server: Redis, where: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the settings of a project with this database and broker, whose recovery is quick."""
    return {
        "DATABASES": {"default": where},
        "CELERY_BROKER_URL": redis_server.url,
        "CELERY_TASK_DEFAULT_QUEUE": folder.name,
        "CELERY_BROKER_TRANSPORT_OPTIONS": {"socket_timeout": 30},
        "CELERY_SAGAS_LEASE": 2,
        "CELERY_SAGAS_REDISPATCH_AFTER": 2,
        "CELERY_SAGAS_RECOVERY_INTERVAL": 0.2,
        **more,
    }


@pytest.fixture
def shop(request: pytest.FixtureRequest, tmp_path: Path, redis_server: Redis) -> Iterator[Callable[..., Project]]:
    made: list[Project] = []

    def make(**options: Any) -> Project:
        where = database(request, "postgres", tmp_path)
        where |= {"CONN_MAX_AGE": options.pop("CONN_MAX_AGE", 0)}
        settings = worker_settings(tmp_path, redis_server, where, **options)
        url = f"postgresql+psycopg://{where['USER']}@127.0.0.1:{where['PORT']}/{where['NAME']}"
        made.append(Project(tmp_path, settings, url))
        return made[-1]

    yield make
    for each in made:
        each.kill()
        each.store.engine.dispose()


def test_what_a_step_writes_with_the_orm_happens_once(shop: Callable[..., Project]) -> None:
    """However its worker dies: before the commit that also checkpoints it, or right after."""
    project = shop()
    project.work()
    sagas = ["place_order 1 -", "place_order 2 kill", "place_order 3 kill_after_commit", "place_order 4 raise"]
    project.start(*sagas, "place_order 5 declined", "careless_order 6 kill", "place_order 7 hook")
    for number in ("1", "2", "3", "4", "7"):
        record = project.ended("place_order", number)
        assert record.status is SagaStatus.COMPLETED, (number, record.error, project.output())
        assert project.effects(f"reserve {number}") == 1, number
    assert project.ended("place_order", "5").status is SagaStatus.COMPENSATED
    assert project.effects("reserve 5") == 0
    # What shows that this test can fail: a transaction of the step's own, and a worker that dies after it.
    assert project.ended("careless_order", "6").status is SagaStatus.COMPLETED
    assert project.effects("careless 6") == 2
    lost = {entry.what for entry in project.store.queries.history(project.store.find("place_order", "2").id)}
    assert lost, "its worker was killed"


@pytest.mark.parametrize("age", [0, 600])
def test_no_transaction_is_left_open_on_threads(shop: Callable[..., Project], age: int) -> None:
    project = shop(CONN_MAX_AGE=age)
    project.work("-P", "threads")
    project.start(*(f"place_order {number} {'raise' if number % 3 else '-'}" for number in range(12)))
    for number in range(12):
        record = project.ended("place_order", str(number))
        assert record.status is SagaStatus.COMPLETED, (record.error, project.output())
        assert project.effects(f"reserve {number}") == 1
    query = text(
        "select count(*), count(*) filter (where state like 'idle in transaction%') from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid() and application_name = ''"
    )
    ours = project.store.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with ours:
        wait_for(lambda: ours.execute(query).one()[1] == 0, 5)
        connections = ours.execute(query).one()[0]
    assert connections <= 10, "two pool threads, recovery, leases, relay and reader have one each"
    assert "Traceback" not in project.output().replace("RuntimeError", "")


def test_a_worker_killed_whole_is_followed_by_another(shop: Callable[..., Project], tmp_path: Path) -> None:
    project = shop()
    project.work()
    project.start("place_order 1 slow")
    wait_for(lambda: project.store.find("place_order", "1").step("reserve").held, 20)
    project.kill()
    (tmp_path / "go-1").touch()
    began = time.monotonic()
    project.work()
    assert project.ended("place_order", "1").status is SagaStatus.COMPLETED, project.output()
    assert project.effects("reserve 1") == 1
    assert time.monotonic() - began < 40


def test_a_worker_without_sagas_does_not_start(shop: Callable[..., Project]) -> None:
    project = shop()
    project.environment["PROJECT"] = project.environment["PROJECT"].replace("CELERY_SAGAS_LEASE", "CELERY_SAGAS_LEASES")
    with pytest.raises(AssertionError, match="there is no setting CELERY_SAGAS_LEASES"):
        project.work()
