"""The broker or the database goes away in mid-flight, and comes back."""

import time
from typing import Any

import pytest

from tests.conftest import WAYS, Rig
from tests.servers import MariaDB, Postgres, RabbitMQ, Redis

FIGURES = "{} sagas, all at their end {:.1f} s after the {} came back"


def _run(rig: Rig, server: Redis | RabbitMQ | Postgres | MariaDB) -> None:
    rig.worker(concurrency=4)
    handles = rig.start_many("line", [{"two": "second", "three": "terminal" if i % 2 else ""} for i in range(8)])
    rig.begun(handles[3], "two")
    server.kill()
    time.sleep(2)  # an outage, not a condition
    server.restart()
    back = time.monotonic()
    rig.all_ended(handles)
    for i, handle in enumerate(handles):
        (rig.assert_undone if i % 2 else rig.assert_done)(handle)
    print(FIGURES.format(len(handles), time.monotonic() - back, type(server).__name__))


def test_redis_restarts_empty(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> None:
    with Redis() as server:
        _with(server.url, postgres.database(), tmp_path_factory, server)


def test_rabbitmq_restarts(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> None:
    with RabbitMQ() as server:
        _with(server.url, postgres.database(), tmp_path_factory, server)


@pytest.mark.parametrize("way", WAYS)
def test_postgres_restarts(tmp_path_factory: pytest.TempPathFactory, redis_server: Redis, way: str) -> None:
    with Postgres(fsync=True) as server:
        _with(redis_server.url, server.database(), tmp_path_factory, server, **WAYS[way])


def test_mariadb_restarts(tmp_path_factory: pytest.TempPathFactory, redis_server: Redis) -> None:
    with MariaDB() as server:
        _with(redis_server.url, server.database(), tmp_path_factory, server)


def _with(
    broker: str,
    database: str,
    folders: pytest.TempPathFactory,
    server: Redis | RabbitMQ | Postgres | MariaDB,
    **options: Any,
) -> None:
    rig = Rig(broker, database, folders.mktemp("rig"))
    rig.configure(**options)
    try:
        _run(rig, server)
    finally:
        rig.close()
