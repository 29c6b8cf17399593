"""The disk of the database is full, and later it is not."""

import random
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from sagas.errors import StoreUnavailable
from tests.conftest import Rig
from tests.rig import Faults
from tests.servers import Postgres, Redis, wait_for

#: So much that it does not fit into what PostgreSQL has in reserve.
LARGE = random.Random(1).randbytes(400_000).hex()


@pytest.fixture
def small(redis_server: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Rig, Postgres]]:
    """A rig whose database has a disk of its own."""
    monkeypatch.setenv("RIG_FOLDER", str(tmp_path))
    with Postgres(fsync=True, megabytes=128) as server:
        rig = Rig(redis_server.url, server.database(), tmp_path)
        yield rig, server
        rig.close()


def test_the_disk_of_the_database_is_full(small: tuple[Rig, Postgres]) -> None:
    rig, server = small
    assert server.disk is not None
    worker = rig.worker(concurrency=3)
    held = [rig.start("long", key=f"held-{i}", two="slow") for i in range(2)]
    refused = rig.start("line", key="refused", three="terminal")
    for handle in held:
        rig.begun(handle, "two")
    rig.assert_undone(refused)

    server.disk.fill()
    with pytest.raises(StoreUnavailable, match="No space left on device"):
        for i in range(100):
            rig.saga("line").start(Faults(note=LARGE), key=f"large-{i}")
    with server.connect() as connection, pytest.raises(psycopg.OperationalError):
        while True:  # until there is no room for the log either: PostgreSQL then gives itself up
            connection.execute("select pg_logical_emit_message(false, 'filler', repeat('x', 100000))")
    assert "PANIC" in server.log()
    for handle in held:
        rig.go(handle)
    wait_for(lambda: all(rig.landed(handle, "two") for handle in held), 20, "the effects have landed")
    wait_for(lambda: "recovery pauses" in worker.output(), 20, "recovery says so")
    wait_for(lambda: worker.output().count("recovery will take it up") == len(held), 20, "so do the steps")

    server.disk.empty()
    wait_for(server.supervised, 60, "the database answers")
    more = [rig.start("line", key=f"after-{i}", two="terminal" if i else "") for i in range(2)]
    again = rig.saga("line").start(Faults(note=LARGE), key="large-0")
    rig.all_ended([*held, *more, again], 40)
    rig.assert_undone(more[1])
    for handle in (*held, more[0], again):
        rig.assert_done(handle)
        rig.assert_explained(handle)
