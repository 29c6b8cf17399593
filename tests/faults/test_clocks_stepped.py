"""Somebody sets a clock: the database's, by which all is measured, or a worker's, which nobody asks."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sagas import SagaHandle
from tests.conftest import Rig
from tests.rig import Ledger, Worker
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
    _holder(rig, orphan, workers).kill()
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


def test_the_workers_clocks_are_stepped(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One hours forward and one back, and then the other way: no claim is lost, and none outlives its worker."""
    clocks = [Clock(tmp_path_factory.mktemp("clock")) for _ in range(2)]
    workers = [rig.worker(concurrency=1, clock=clock) for clock in clocks]
    held = rig.start("long", two="slow")
    rig.begun(held, "two")
    for step in (HOURS, -HOURS):
        clocks[0].step(step)
        clocks[1].step(-step)
        for _ in range(3):
            _renewed(held)
    assert _times(rig.ledger, held.id, "two") == 1
    _holder(rig, held, workers).kill()
    wait_for(lambda: _times(rig.ledger, held.id, "two") == 2, 20, "the other worker has taken it over")
    rig.go(held)
    rig.assert_done(held)


def _holder(rig: Rig, handle: SagaHandle, workers: Sequence[Worker]) -> Worker:
    """Return the worker that is at the second step."""
    (pid,) = {effect.pid for effect in rig.ledger.of(handle.id, "begin") if effect.step == "two"}
    return next(worker for worker in workers if pid in [child.pid for child in worker.children()])


def _renewed(handle: SagaHandle) -> None:
    lease = handle.record.step("two").lease_until
    wait_for(lambda: handle.record.step("two").lease_until != lease, 10, "its lease is renewed")
