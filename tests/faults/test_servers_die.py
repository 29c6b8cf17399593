"""The broker or the database goes away in mid-flight, and comes back."""

import time

import pytest

from sagas import SagaHandle
from sagas.checkpoints import TERMINAL
from tests.conftest import Rig
from tests.servers import MariaDB, Postgres, RabbitMQ, Redis, wait_for

FIGURES = "{} sagas, all at their end {:.1f} s after the {} came back"


def _run(rig: Rig, server: Redis | RabbitMQ | Postgres | MariaDB) -> None:
    rig.worker(concurrency=4)
    handles = [rig.start("line", two="second", three="terminal" if i % 2 else "") for i in range(8)]
    rig.begun(handles[3], "two")
    server.kill()
    time.sleep(2)  # an outage, not a condition
    server.restart()
    back = time.monotonic()
    wait_for(lambda: _supervised(rig, handles), 90, "all sagas are at their end")
    for i, handle in enumerate(handles):
        (rig.assert_undone if i % 2 else rig.assert_done)(handle)
    print(FIGURES.format(len(handles), time.monotonic() - back, type(server).__name__))


def _supervised(rig: Rig, handles: list[SagaHandle]) -> bool:
    # Celery's own worker may end of a broker that is gone; in production, as here, it has a supervisor.
    if not any(worker.running for worker in rig.workers):
        rig.worker(concurrency=4)
    return all(handle.status in TERMINAL for handle in handles)


def test_redis_restarts_empty(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> None:
    with Redis() as server:
        _with(server.url, postgres.database(), tmp_path_factory, server)


def test_rabbitmq_restarts(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> None:
    with RabbitMQ() as server:
        _with(server.url, postgres.database(), tmp_path_factory, server)


def test_postgres_restarts(tmp_path_factory: pytest.TempPathFactory, redis_server: Redis) -> None:
    with Postgres(fsync=True) as server:
        _with(redis_server.url, server.database(), tmp_path_factory, server)


def test_mariadb_restarts(tmp_path_factory: pytest.TempPathFactory, redis_server: Redis) -> None:
    with MariaDB() as server:
        _with(redis_server.url, server.database(), tmp_path_factory, server)


def _with(
    broker: str, database: str, folders: pytest.TempPathFactory, server: Redis | RabbitMQ | Postgres | MariaDB
) -> None:
    rig = Rig(broker, database, folders.mktemp("rig"))
    try:
        _run(rig, server)
    finally:
        rig.close()
