"""What a Django project is after its database was away for a moment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from sqlalchemy import make_url

from sagas import SagaStatus
from tests.integration.test_django import database, manage, project
from tests.integration.test_django_worker import Project, worker_settings
from tests.proxy import Proxy
from tests.servers import Postgres, Redis, wait_for

NOTE = "tests.django_project.orders.tasks.note"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server of our own, to kill."""
    with Postgres() as server:
        yield server


@pytest.mark.parametrize("kind", ["postgres", "postgres-pool", "mariadb"])
def test_a_connection_that_is_lost_at_any_moment(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    where = database(request, kind.partition("-")[0], tmp_path)
    if kind.endswith("pool"):
        where |= {"OPTIONS": {"pool": {"min_size": 1, "max_size": 4, "timeout": 10}}, "CONN_HEALTH_CHECKS": True}
    other = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "other.sqlite3")}
    environment = project(tmp_path, DATABASES={"default": where, "other": other})
    done = manage(environment, "test", "tests.django_project.orders.losses", "--noinput")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK" in done.stderr


#: Seconds without the database: longer than the pool waits for a connection, in these settings.
DEFERRED = 4.0


@pytest.mark.parametrize("kind", ["prefork-pool", "threads"])
def test_a_database_that_is_away_for_some_seconds(
    tmp_path: Path, redis_server: Redis, server: Postgres, kind: str
) -> None:
    """Sagas in a step's transaction, sagas between their steps, and tasks that know nothing of sagas.

    The server is restarted, and is found at another port than before.
    """
    pool, _, pooled = kind.partition("-")
    url = make_url(server.database())
    with Proxy(server.port) as first:
        where = {
            "ENGINE": "django.db.backends.postgresql", "NAME": url.database, "USER": url.username,
            "HOST": "127.0.0.1,127.0.0.1", "PORT": f"{first.port},{server.port}",
            "OPTIONS": {"pool": {"min_size": 1, "max_size": 8, "timeout": 2}} if pooled else {},
            "CONN_MAX_AGE": 0 if pooled else None,
        }  # fmt: skip
        shop = Project(tmp_path, worker_settings(tmp_path, redis_server, where), url.render_as_string())
        sender = Celery(broker=redis_server.url)
        sender.conf.task_default_queue = tmp_path.name
        try:
            # Children come and go, too, and inherit a pool that the recovery in their parent uses.
            shop.work("-P", pool, *(["--max-tasks-per-child", "2"] if pool == "prefork" else []))
            _lose_it(shop, tmp_path, sender, server, first)
        finally:
            sender.close()
            shop.kill()
            shop.store.engine.dispose()


def _lose_it(shop: Project, folder: Path, sender: Celery, server: Postgres, first: Proxy) -> None:
    slow, others = ("0", "1"), ("2", "3", "4", "5")
    shop.start(*(f"place_order {name} slow" for name in slow), *(f"place_order {name} raise" for name in others))
    wait_for(lambda: all(shop.store.find("place_order", name).step("reserve").held for name in slow), 30, "are held")
    server.kill()
    first.refuse()
    first.cut()
    for name in slow:
        (folder / f"go-{name}").touch()
    for number in range(4):
        sender.send_task(NOTE, [f"during {number}"])
    time.sleep(DEFERRED)  # nothing tells that nothing can be done
    server.restart()
    for number in range(8):
        sender.send_task(NOTE, [f"after {number}"])
    for name in (*slow, *others):
        record = shop.ended("place_order", name, 60)
        assert record.status is SagaStatus.COMPLETED, (name, record.error, shop.output())
        assert shop.effects(f"reserve {name}") == 1, name
    try:
        wait_for(lambda: all(shop.effects(f"after {number}") == 1 for number in range(8)), 20, "all tasks have run")
    except TimeoutError as error:
        raise AssertionError(f"{error}: {shop.output()}") from None
