"""Servers for the whole run, and a rig for each test."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from sagas import Saga, SagaHandle, Sagas, SagaStatus, SqlStore
from sagas.checkpoints import FINISHED
from tests import forks
from tests.databases import database_url
from tests.rig import TAKEOVERS, Faults, Ledger, Worker, app_of
from tests.servers import Kafka, MariaDB, PgBouncer, Postgres, RabbitMQ, Redis, wait_for

# A shell that runs the tests in the background has SIGINT ignored: Python then installs no handler of its own, and every
# process that a test starts inherits that. Ctrl-C has to work here as it does in a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _leave_the_process_as_it_was() -> Iterator[None]:
    """Protect later tests of this process: a worker in it sets the level of the root logger, and code may take Ctrl-C."""
    level, on_ctrl_c = logging.getLogger().level, signal.getsignal(signal.SIGINT)
    yield
    logging.getLogger().setLevel(level)
    if signal.getsignal(signal.SIGINT) is not on_ctrl_c:
        signal.signal(signal.SIGINT, on_ctrl_c)


@pytest.fixture(scope="module", autouse=True)
def _leave_no_worker_running() -> Iterator[None]:
    """End a worker that outlives its tests: it would answer the pings of later ones, and take their messages."""
    yield
    for process in [*_workers_of_this_process(), *forks.left_workers()]:
        process.kill()


def _workers_of_this_process() -> Iterator[psutil.Process]:
    """Find the Celery workers that tests of this process started, other than forks."""
    run = ("PYTEST_XDIST_TESTRUNUID", "PYTEST_XDIST_WORKER")
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if not {"celery", "worker"} <= set(process.cmdline()):
                continue
            environment = process.environ()
            if "PYTEST_CURRENT_TEST" in environment and all(
                environment.get(name) == os.environ.get(name) for name in run
            ):
                yield process


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def pgbouncer(postgres: Postgres) -> Iterator[PgBouncer]:
    with PgBouncer(postgres) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    with MariaDB() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    with RabbitMQ() as server:
        yield server


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    with Kafka() as server:
        yield server


@pytest.fixture(scope="session")
def _tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database to copy: to make the tables takes longer than most tests."""
    file = tmp_path_factory.mktemp("tables") / "sagas.db"
    store = SqlStore(f"sqlite:///{file}")
    store.upgrade()
    store.engine.dispose()
    return file


@pytest.fixture
def store(_tables: Path, tmp_path: Path) -> Iterator[SqlStore]:
    """A store on SQLite with its tables, and nothing in them."""
    shutil.copy(_tables, tmp_path / "sagas.db")
    store = SqlStore(f"sqlite:///{tmp_path / 'sagas.db'}")
    yield store
    store.engine.dispose()


class Rig:
    """A broker, a database and workers for one test, and the app to start sagas from."""

    def __init__(self, broker: str, database: str, folder: Path) -> None:
        self.settings: dict[str, Any] = {
            "broker": broker,
            "database": database,
            "folder": str(folder),
            "options": {
                "task_default_queue": f"q-{folder.name}",
                "run_next_inline": os.environ.get("SAGAS_TEST_FOLLOW_ON", "on") == "on",
            },
        }
        self.folder = folder
        self.ledger = Ledger(folder)
        self.workers: list[Worker] = []
        store = SqlStore(database)
        store.upgrade()
        store.engine.dispose()

    def configure(self, **options: Any) -> None:
        """Change the options of the app, before it is first used."""
        self.settings["options"].update(options)

    @property
    def sagas(self) -> Sagas:
        if not hasattr(self, "_sagas"):
            self._sagas: Sagas = app_of(self.settings).sagas
        return self._sagas

    def saga(self, name: str) -> Saga:
        return self.sagas.orchestrator.sagas[name, 1]

    def start(self, name: str, /, key: str | None = None, **faults: str) -> SagaHandle:
        return self.saga(name).start(Faults({k.replace("__", "."): v for k, v in faults.items()}), key=key)

    def start_many(self, name: str, faults: Sequence[Mapping[str, str]]) -> list[SagaHandle]:
        """Start a saga for each of these faults in one call."""
        results = self.saga(name).start_many([Faults(dict(each)) for each in faults])
        return [result.handle for result in results if result.handle is not None]

    def worker(self, *options: str, **kwargs: Any) -> Worker:
        worker = Worker(self.settings, *options, **kwargs).start()
        self.workers.append(worker)
        return worker

    def go(self, handle: SagaHandle) -> None:
        """Let the slow steps of a saga go on."""
        (self.folder / f"go-{handle.id}").touch()

    def begun(self, handle: SagaHandle, step: str, event: str = "begin") -> None:
        """Wait until a step has really begun."""
        wait_for(lambda: any(e.step == step for e in self.ledger.of(handle.id, event)), 20, f"{step} has begun")

    def landed(self, handle: SagaHandle, step: str) -> bool:
        return any(effect.step == step for effect in self.ledger.of(handle.id, "do"))

    def assert_undone(self, handle: SagaHandle, timeout: float = 30) -> None:
        """It ends COMPENSATED, and what really happened agrees."""
        assert handle.wait(timeout) is SagaStatus.COMPENSATED, self.logs()
        left = [
            s.name for s in handle.record.steps.values() if s.status in ("RUNNING", "DONE", "IN_DOUBT", "COMPENSATING")
        ]
        assert not left, f"{left} are left in a COMPENSATED saga"
        self.ledger.assert_nets_to_zero(handle.id)

    def assert_explained(self, handle: SagaHandle) -> None:
        """Each effect after the first of its step has a takeover in the history."""
        takeovers = Counter(
            entry.step for entry in self.sagas.store.queries.history(handle.id) if entry.what in TAKEOVERS
        )
        landed = Counter(effect.step for effect in self.ledger.of(handle.id, "do"))
        assert all(times <= 1 + takeovers[step] for step, times in landed.items()), self.ledger.story(handle.id)

    def assert_done(self, handle: SagaHandle, timeout: float = 30) -> None:
        assert handle.wait(timeout) is SagaStatus.COMPLETED, (handle.error, self.logs())

    def all_ended(self, handles: Sequence[SagaHandle], timeout: float = 90, *, concurrency: int = 4) -> None:
        """Wait until all are at their end, as the supervisor of the workers."""

        def ended() -> bool:
            # Celery's own worker may end of a broker that is gone; in production, as here, it is started again.
            if not any(worker.running for worker in self.workers):
                self.worker(concurrency=concurrency)
            return all(handle.status in FINISHED for handle in handles)

        wait_for(ended, timeout, "all sagas are at their end")

    def logs(self) -> str:
        return "\n".join(worker.output()[-4000:] for worker in self.workers)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()  # nothing is left to be finished
        if hasattr(self, "_sagas"):
            self._sagas.app.close()
            assert isinstance(self._sagas.store, SqlStore)
            self._sagas.store.engine.dispose()


MakeRig = Callable[..., Rig]

#: How the faults that tell most are played, as options of the rig: with all that saves messages and commits, and without.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "batches and group commit": {},
    "a message and a commit for each": {"batch_size": 1, "by_sqlalchemy": True},
}


@pytest.fixture
def make_rig(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRig]:
    """Make a rig of a broker (redis, rabbitmq, filesystem) and a database (postgres, mariadb, sqlite)."""
    made: list[Rig] = []
    monkeypatch.setenv("RIG_FOLDER", str(tmp_path))

    def make(broker: str = "redis", database: str = "postgres") -> Rig:
        brokers: dict[str, Callable[[], str]] = {
            "redis": lambda: request.getfixturevalue("redis_server").url,
            "rabbitmq": lambda: request.getfixturevalue("rabbitmq").url,
            "filesystem": lambda: "filesystem://",
        }
        rig = Rig(brokers[broker](), database_url(request, database, tmp_path), tmp_path)
        made.append(rig)
        return rig

    yield make
    for rig in made:
        rig.close()


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    """The most common set-up: Redis and PostgreSQL."""
    return make_rig()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make what a test logged fit for the way to the process that prints it: half characters do not travel."""
    report = yield
    report.sections = [(title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections]
    return report


def pytest_report_header() -> str:
    return f"python {sys.version.split()[0]}"
