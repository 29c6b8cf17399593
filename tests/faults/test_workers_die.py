"""Workers are killed at every awkward moment; other workers carry on."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sagas import SagaStatus
from sagas.checkpoints import FINISHED, HistoryKind
from tests.conftest import WAYS, MakeRig, Rig
from tests.servers import wait_for


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize("moment", ["kill_before", "kill_after"])
def test_a_child_killed_at_work_is_replaced(make_rig: MakeRig, broker: str, moment: str) -> None:
    rig = make_rig(broker)
    rig.worker()
    # A step whose timeout is far beyond the lease: however slow the machine, a death is not taken for no answer.
    handle = rig.start("long", two=f"{moment}:1")
    rig.assert_done(handle)
    assert [e.attempt for e in rig.ledger.of(handle.id, "begin") if e.step == "two"] == [1, 2]
    assert len({e.key for e in rig.ledger.of(handle.id) if e.step == "two"}) == 1
    assert HistoryKind.LOST in [entry.what for entry in rig.sagas.store.queries.history(handle.id)]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_killed_worker_is_carried_on_by_another(rig: Rig, pool: str) -> None:
    first = rig.worker(pool=pool)
    handle = rig.start("long", two="slow")
    rig.begun(handle, "two")
    first.kill()
    rig.go(handle)
    killed_at = time.monotonic()
    rig.worker(pool=pool)
    rig.assert_done(handle)
    took = time.monotonic() - killed_at
    bound = rig.sagas.orchestrator.timing.lease
    print(f"recovered {took:.1f} s after kill -9 (lease {bound:g} s, and a worker's start)")
    assert rig.ledger.story(handle.id) == ["one", "two"]


def test_a_step_that_kills_every_worker_is_given_up(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("once", two="kill_after")
    rig.assert_undone(handle)
    # It was allowed one delivery: nobody knows what it did, so it is undone without a result.
    assert len([e for e in rig.ledger.of(handle.id, "begin") if e.step == "two"]) == 2  # the action, the undo
    assert rig.ledger.story(handle.id) == ["one", "two", "-two", "-one"]
    assert [e.known for e in rig.ledger.of(handle.id, "undo")] == [None, "one"]


def test_poison_ends_after_its_deliveries(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.configure(lease=0.6)
    rig.worker()
    handle = rig.start("long", two="kill_before")
    rig.assert_undone(handle)
    tries = [e for e in rig.ledger.of(handle.id, "begin") if e.step == "two"]
    assert len(tries) == 5 + 1  # max_deliveries, and the undo
    assert "lost 5 of 5 times" in (handle.error or "")


def test_a_killed_compensation_is_taken_over(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("line", three="terminal", two__compensate="kill_after:1")
    rig.assert_undone(handle)
    assert rig.ledger.story(handle.id) == ["one", "two", "-three", "-two", "-two", "-one"]


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_worker_killed_around_the_join(make_rig: MakeRig, broker: str) -> None:
    rig = make_rig(broker)
    rig.worker(concurrency=3)
    handles = [
        rig.start("full", left="kill_after:1"),
        rig.start("full", right="kill_before:1", left="kill_after:1"),
        rig.start("full", right="kill_after:1", four="terminal"),
    ]
    rig.assert_done(handles[0])
    rig.assert_done(handles[1])
    rig.assert_undone(handles[2])
    for handle in handles[:2]:
        assert rig.ledger.story(handle.id)[-3:] == ["four", "pivot", "last"]  # once, after the join


@pytest.mark.parametrize("way", WAYS)
def test_all_workers_killed_at_random_and_replaced(rig: Rig, way: str) -> None:
    rig.configure(**WAYS[way])
    worker = rig.worker(concurrency=4)
    handles = [rig.start("full", **({"four": "terminal"} if i % 3 == 0 else {"left": "second"})) for i in range(12)]
    for _ in range(3):
        rig.begun(handles[-1], "one")
        worker.kill()
        worker = rig.worker(concurrency=4)
    for i, handle in enumerate(handles):
        (rig.assert_undone if i % 3 == 0 else rig.assert_done)(handle, 60)


@pytest.mark.parametrize("by", ["start_many", "threads"])
@pytest.mark.parametrize("way", WAYS)
def test_many_that_are_started_at_once_while_workers_are_killed(rig: Rig, way: str, by: str) -> None:
    rig.configure(**WAYS[way])
    faults = [{"three": "terminal"} if i % 3 == 0 else {} for i in range(150)]
    if by == "threads":
        with ThreadPoolExecutor(16) as pool:
            handles = list(pool.map(lambda fault: rig.start("line", **fault), faults))
    else:
        handles = rig.start_many("line", faults)
    for tenth in range(1, 4):
        worker = rig.worker(concurrency=2)
        wait_for(lambda: rig.ledger.count("do") > 30 * tenth, 60, "some have gone on", 0.005)  # noqa: B023
        worker.kill()
    assert not all(handle.status in FINISHED for handle in handles)
    rig.worker(concurrency=2)
    for i, handle in enumerate(handles):
        (rig.assert_undone if i % 3 == 0 else rig.assert_done)(handle, 90)
        rig.assert_explained(handle)


def test_a_stopped_worker_loses_its_lease_and_its_late_result(rig: Rig) -> None:
    """SIGSTOP for longer than the lease: another worker takes over, and the first one's report changes nothing."""
    first = rig.worker(concurrency=1)
    handle = rig.start("long", two="slow:1")
    rig.begun(handle, "two")
    first.signal(signal.SIGSTOP)
    rig.worker(concurrency=1)
    rig.assert_done(handle)
    before = handle.record
    rig.go(handle)
    first.signal(signal.SIGCONT)
    wait_for(lambda: len([e for e in rig.ledger.of(handle.id, "do") if e.step == "two"]) == 2, what="the late effect")
    wait_for(lambda: "Task long.two[" in first.output() and "received" in first.output())
    first.stop()
    assert handle.record.steps == before.steps
    assert handle.status is SagaStatus.COMPLETED


def test_a_worker_stops_gracefully(rig: Rig) -> None:
    for pool in ("prefork", "threads", "solo"):
        worker = rig.worker(pool=pool)
        rig.assert_done(rig.start("line"))
        assert worker.process is not None
        os.kill(worker.process.pid, signal.SIGTERM)
        assert worker.process.wait(15) == 0, worker.output()[-2000:]
