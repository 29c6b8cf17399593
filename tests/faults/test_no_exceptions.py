"""Steps that raise what is no `Exception`, and workers that are told to stop while a step runs."""

import os
import signal

import pytest

from sagas import SagaStatus
from sagas.checkpoints import HistoryKind
from tests.conftest import MakeRig, Rig
from tests.rig import NO_EXCEPTIONS
from tests.servers import wait_for


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_it_is_an_attempt_that_failed(rig: Rig, pool: str) -> None:
    """With its true reason, as often as the step may be tried, and the place in the worker is free again."""
    rig.worker(pool=pool, concurrency=2)
    forward = {kind: rig.start("line", two=kind) for kind in NO_EXCEPTIONS}
    backward = {kind: rig.start("line", three="terminal", two__compensate=f"{kind}:2") for kind in NO_EXCEPTIONS}
    for kind, handle in forward.items():
        rig.assert_undone(handle)
        assert handle.error == f"step 'two' is in doubt: {kind}: broken"
    for kind, handle in backward.items():
        rig.assert_undone(handle)
        failed = [
            entry.detail
            for entry in rig.sagas.store.queries.history(handle.id)
            if entry.what == HistoryKind.COMPENSATION_FAILED
        ]
        assert failed == [f"{kind}: broken"] * 2
    for handle in [*forward.values(), *backward.values()]:
        assert HistoryKind.LOST not in [entry.what for entry in rig.sagas.store.queries.history(handle.id)]
    for handle in forward.values():
        assert len([e for e in rig.ledger.of(handle.id, "begin") if e.step == "two"]) == 3 + 1  # with its undo
    after = [rig.start("line") for _ in range(4)]
    for handle in after:
        rig.assert_done(handle)


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_all_places_of_a_worker_at_once(make_rig: MakeRig, pool: str) -> None:
    """Two of them once disabled a worker with two threads for good."""
    rig = make_rig("rabbitmq", "sqlite")
    rig.worker(pool=pool, concurrency=2)
    handles = [rig.start("line", one="CancelledError") for _ in range(4)]
    for handle in handles:
        rig.assert_undone(handle)
    rig.assert_done(rig.start("line"))


@pytest.mark.parametrize(("pool", "how"), [
    ("prefork", "child"), ("prefork", "cold"), ("prefork", "revoked"), ("gevent", "revoked"), ("gevent", "cold"),
    ("solo", "cold"),
])  # fmt: skip
def test_a_worker_that_is_told_to_stop_has_not_failed(rig: Rig, pool: str, how: str) -> None:
    """The signal is an exception in the middle of the step. It is none of the step's: the step is tried elsewhere."""
    worker = rig.worker(pool=pool, concurrency=1)
    handle = rig.start("long", two="hang:1")
    rig.begun(handle, "two")
    assert worker.process is not None
    match how:
        case "child":
            (child,) = {e.pid for e in rig.ledger.of(handle.id, "begin") if e.step == "two"}
            os.kill(child, signal.SIGTERM)
        case "revoked":  # the message that brought it here is that of the step before
            rig.sagas.app.control.revoke(f"{handle.id}:one:1", terminate=True)
            if pool == "gevent":  # Celery frees no place of this pool by that
                rig.worker()
        case "cold":
            worker.process.send_signal(signal.SIGQUIT)
            wait_for(lambda: not worker.running, 30, "the worker has ended")
            rig.worker()
    rig.assert_done(handle)
    said = {entry.what: entry.detail for entry in rig.sagas.store.queries.history(handle.id)}
    assert "lost" in said
    assert "step failed" not in said
    assert handle.record.steps["two"].failures == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_warm_shutdown_lets_the_step_end(rig: Rig, pool: str) -> None:
    worker = rig.worker(pool=pool, concurrency=1)
    handle = rig.start("long", two="slow")
    rig.begun(handle, "two")
    assert worker.process is not None
    worker.process.send_signal(signal.SIGTERM)
    rig.go(handle)
    wait_for(lambda: not worker.running, 20, "the worker has ended")
    assert rig.landed(handle, "two")
    rig.worker()
    rig.assert_done(handle)
    assert handle.record.steps["two"].failures == 0
    assert handle.record.steps["two"].lost == 0


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_forged_report_does_not_end_a_claim(rig: Rig, pool: str) -> None:
    """Who can write to the broker can send `sagas.fail` with the right epoch, and so can a mistaken Celery."""
    rig.worker(pool=pool)
    handle = rig.start("long", two="slow")
    rig.begun(handle, "two")
    claimed = handle.record.steps["two"]
    fail = rig.sagas.app.tasks["sagas.fail"]
    for number in range(5):
        ask = {"saga_id": handle.id, "step": "two", "epoch": handle.record.epoch}
        fail.apply_async(kwargs=ask, task_id=f"forged-{number}")
    wait_for(lambda: all(f"forged-{n}] succeeded" in rig.logs() for n in range(5)), 20, "they were handled")
    assert handle.record.steps["two"].owner == claimed.owner
    rig.go(handle)
    rig.assert_done(handle)
    assert [e.attempt for e in rig.ledger.of(handle.id, "begin") if e.step == "two"] == [1]
    assert handle.status is SagaStatus.COMPLETED
    assert {entry.what for entry in rig.sagas.store.queries.history(handle.id)} & {"lost", "step failed"} == set()


def test_the_hard_limit_of_gevent_is_a_failed_attempt(rig: Rig) -> None:
    """On this pool it is an exception in the step, as the soft limit is on prefork."""
    rig.worker("--time-limit", "1", pool="gevent")
    handle = rig.start("long", two="hang")
    rig.assert_undone(handle)
    assert (handle.error or "").startswith("step 'two' is in doubt: Timeout: 1")
    rig.assert_done(rig.start("line"))
