"""Sagas through PgBouncer, by a plain URL: real workers, and a pooler that is killed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sagas import SqlStore
from tests.conftest import Rig
from tests.servers import PgBouncer, Postgres, Redis


@pytest.fixture(params=["transaction", "session"])
def pooler(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[PgBouncer]:
    # In session mode each client has a connection of its own for as long as it is connected.
    with PgBouncer(postgres, mode=request.param, size=5 if request.param == "transaction" else 50) as server:
        yield server


def test_sagas_end_well_behind_a_pooler_that_is_killed(pooler: PgBouncer, redis_server: Redis, tmp_path: Path) -> None:
    rig = Rig(redis_server.url, pooler.database(), tmp_path)
    rig.configure(task_default_queue=f"pgbouncer-{pooler.port}")
    worker = rig.worker(concurrency=4)
    try:
        with ThreadPoolExecutor(4) as threads:  # each on a connection of its own, and every statement often enough
            first = list(threads.map(lambda _: rig.start("line"), range(40)))
        bad = [rig.start("full", right="terminal") for _ in range(5)]
        pooler.restart()
        second = [rig.start("line") for _ in range(10)]
        for handle in (*first, *second):
            rig.assert_done(handle)
        for handle in bad:
            rig.assert_undone(handle)
        assert "prepared statement" not in worker.output()
    finally:
        worker.stop()
        assert isinstance(rig.sagas.store, SqlStore)
        rig.sagas.store.engine.dispose()


def test_a_pooler_that_splits_transactions_is_refused(postgres: Postgres) -> None:
    with PgBouncer(postgres, mode="statement") as server:
        store = SqlStore(server.database())
        with pytest.raises(Exception, match="statement pooling"):
            store.upgrade()
        store.engine.dispose()
