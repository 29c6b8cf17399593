"""Somebody sets a clock: the database's, by which all is measured, or a worker's, which nobody asks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sagas import SagaHandle
from tests.conftest import Rig
from tests.rig import Ledger
from tests.servers import Clock, Postgres, Redis, wait_for

HOURS = 3 * 3600


@pytest.fixture
def stepped(redis_server: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Rig, Clock]]:
    monkeypatch.setenv("RIG_FOLDER", str(tmp_path))
    with Postgres(stepped=True) as server:
        assert server.clock is not None
        rig = Rig(redis_server.url, server.database(), tmp_path)
        rig.settings["clock_trust"] = 0.5  # seconds after which workers look at the database's clock again
        yield rig, server.clock
        rig.close()


def _times(ledger: Ledger, saga_id: str, step: str) -> int:
    return sum(effect.step == step for effect in ledger.of(saga_id, "begin"))


@pytest.mark.parametrize("step", [HOURS, -HOURS], ids=["forward", "back"])
def test_the_databases_clock_is_stepped(stepped: tuple[Rig, Clock], step: int) -> None:
    """One worker is dead and one alive, each with a step in hand."""
    rig, clock = stepped
    workers = [rig.worker(concurrency=2), rig.worker(concurrency=2)]
    orphan = rig.start("long", two="slow")
    rig.begun(orphan, "two")
    (holder,) = {effect.pid for effect in rig.ledger.of(orphan.id, "begin") if effect.step == "two"}
    next(worker for worker in workers if holder in [child.pid for child in worker.children()]).kill()
    alive = rig.start("long", two="slow")
    rig.begun(alive, "two")
    clock.step(step)
    late = rig.start("line", one="error:1")
    wait_for(lambda: _times(rig.ledger, orphan.id, "two") > 1, 20, "another worker has taken the orphan over")
    rig.go(orphan)
    rig.go(alive)
    for handle in (orphan, alive, late):
        rig.assert_done(handle, 20)
        rig.assert_explained(handle)


def test_a_workers_clock_is_stepped(rig: Rig) -> None:
    """It neither loses its claim, nor keeps it after its death."""
    clock = Clock(rig.folder)
    odd = rig.worker(concurrency=1, clock=clock)
    held = rig.start("long", two="slow")
    rig.begun(held, "two")
    rig.worker(concurrency=1)
    for step in (HOURS, -HOURS):
        clock.step(step)
        for _ in range(3):
            _renewed(held)
    assert _times(rig.ledger, held.id, "two") == 1
    odd.kill()
    wait_for(lambda: _times(rig.ledger, held.id, "two") == 2, 20, "another worker has taken it over")
    rig.go(held)
    rig.assert_done(held)


def _renewed(handle: SagaHandle) -> None:
    lease = handle.record.step("two").lease_until
    wait_for(lambda: handle.record.step("two").lease_until != lease, 10, "its lease is renewed")
