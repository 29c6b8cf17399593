"""Connections that hang instead of ending: nobody is told, and what waits for them would wait for ever."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from sagas import SqlStore
from sagas.errors import StoreUnavailable
from tests.conftest import Rig
from tests.proxy import Proxy
from tests.servers import Postgres, Redis, wait_for

HURTS = [Proxy.hang, Proxy.drop]


def _directly(rig: Rig, postgres: Postgres) -> str:
    return make_url(rig.settings["database"]).set(port=postgres.port).render_as_string()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RIG_FOLDER", str(tmp_path))
    return tmp_path


@pytest.fixture
def database(postgres: Postgres, redis_server: Redis, folder: Path) -> Iterator[tuple[Rig, Proxy]]:
    """A rig that reaches its database by way of a proxy."""
    with Proxy(postgres.port) as proxy:
        rig = Rig(redis_server.url, proxy.url(postgres.database()), folder)
        rig.configure(timeout=1.5)
        yield rig, proxy
        rig.close()


@pytest.mark.parametrize("hurt", HURTS)
def test_the_database_falls_silent(database: tuple[Rig, Proxy], hurt: Callable[[Proxy], None]) -> None:
    """All connections of the only worker hang for good: of the step that reports, its lease, and recovery."""
    rig, proxy = database
    rig.worker(concurrency=2)
    slow, quick = rig.start("long", two="slow"), rig.start("line", two="second")
    rig.begun(slow, "two")
    rig.begun(quick, "two")
    hurt(proxy)
    rig.go(slow)
    wait_for(lambda: rig.ledger.of(slow.id, "do") and rig.ledger.of(quick.id, "do"), 10, "the effects have landed")
    proxy.heal()
    rig.assert_done(slow, 20)
    rig.assert_done(quick, 20)


def test_a_transaction_that_nobody_ends_frees_its_saga(database: tuple[Rig, Proxy], postgres: Postgres) -> None:
    """A worker is cut off between its write and its commit: the row must not stay locked for as long as TCP lives."""
    rig, proxy = database
    handle = rig.start("line")
    near, far = SqlStore(_directly(rig, postgres), timeout=60), rig.sagas.store
    before = handle.record
    with pytest.raises(StoreUnavailable, match="no answer within"), far.transaction() as session:
        assert far.save(before, replace(before, error="far"), session=session)
        proxy.hang()
    asked = time.monotonic()
    assert near.save(before, replace(before, error="near"))
    assert time.monotonic() - asked < 10
    near.engine.dispose()


def test_a_slow_connection_does_not_make_the_clock_wrong(database: tuple[Rig, Proxy], postgres: Postgres) -> None:
    """To connect takes seconds; the question for the time, which is asked then, takes less."""
    rig, proxy = database
    near, far = SqlStore(_directly(rig, postgres)), SqlStore(rig.settings["database"])
    proxy.delay(0.2)
    behind, now, ahead = near.now(), far.now(), near.now()
    assert (ahead - behind).total_seconds() > 1.5
    assert abs((now - ahead).total_seconds()) < 0.5
    for store in (near, far):
        store.engine.dispose()


def test_what_a_step_asks_may_take_longer(database: tuple[Rig, Proxy]) -> None:
    rig, _ = database
    with rig.sagas.store.transaction() as session:
        assert session.execute(text("select 1 from pg_sleep(2)")).scalar() == 1


def test_the_broker_falls_silent(redis_server: Redis, postgres: Postgres, folder: Path) -> None:
    """Every connection of the only worker hangs for good, while a step is at work and another saga waits."""
    with Proxy(redis_server.port) as proxy:
        rig = Rig(proxy.url(redis_server.url), postgres.database(), folder)
        rig.configure(broker_transport_options={"socket_timeout": 1, "health_check_interval": 1})
        rig.worker(concurrency=1)
        try:
            slow, waiting = rig.start("full", one="slow"), rig.start("line")
            rig.begun(slow, "one")
            proxy.hang()
            rig.go(slow)
            wait_for(lambda: rig.ledger.of(slow.id, "do"), 10, "the effect has landed")
            proxy.heal()
            handles = [slow, waiting, rig.start("line")]
            rig.all_ended(handles, 40)
            for handle in handles:
                rig.assert_done(handle)
        finally:
            rig.close()
