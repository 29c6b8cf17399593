"""Long steps that report: they resume where they stopped, silence ends an attempt, and they learn of a cancel."""

from __future__ import annotations

import pytest

from sagas import SagaStatus, StepStatus
from sagas.checkpoints import HistoryKind
from sagas.handle import SagaHandle
from tests.conftest import MakeRig, Rig
from tests.rig import ROWS
from tests.servers import wait_for


@pytest.fixture
def make_importing(make_rig: MakeRig) -> MakeRig:
    def make(*parts: str) -> Rig:
        rig = make_rig(*parts)
        # Longer than a step may be silent: what ends the attempts here is their silence, or the death of a worker.
        rig.configure(more=["imports", "imports_async"], lease=10.0)
        return rig

    return make


def rows(rig: Rig, handle: SagaHandle, attempt: int) -> list[int]:
    return [int(e.what) for e in rig.ledger.of(handle.id, "row") if e.attempt == attempt]


def reported(handle: SagaHandle) -> int:
    return int(handle.record.step("load").heartbeat_details or 0)


@pytest.mark.parametrize(
    "parts", [("redis", "postgres"), ("rabbitmq", "mariadb"), ("filesystem", "sqlite")], ids="-".join
)
def test_the_next_attempt_resumes_where_a_killed_worker_had_reported(
    make_importing: MakeRig, parts: tuple[str, str]
) -> None:
    rig = make_importing(*parts)
    worker = rig.worker(concurrency=4)
    handle = rig.start("imports")
    wait_for(lambda: reported(handle) >= 4, 30, "some rows are reported")
    seen = reported(handle)
    worker.kill()
    rig.worker(concurrency=4)
    rig.assert_done(handle)
    first, second = rows(rig, handle, 1), rows(rig, handle, 2)
    assert first == list(range(len(first)))
    assert seen <= second[0] <= len(first)
    assert second == list(range(second[0], ROWS))


@pytest.mark.parametrize(
    ("saga", "pool"),
    [("imports", "prefork"), ("imports", "threads"), ("imports", "gevent"), ("imports_async", "gevent")],
)  # fmt: skip
def test_silence_ends_an_attempt_and_the_one_that_was_silent_is_told(
    make_importing: MakeRig, saga: str, pool: str
) -> None:
    rig = make_importing()
    rig.worker(pool=pool, concurrency=4)
    handle = rig.start(saga, load="silent")
    rig.assert_done(handle)
    history = [(e.what, e.detail) for e in rig.sagas.store.queries.history(handle.id)]
    assert history == [(HistoryKind.STEP_FAILED, "no heartbeat within 3 s")]
    # What it reported last before it fell silent was stored, though it was given up.
    assert rows(rig, handle, 2) == list(range(ROWS // 2, ROWS))
    rig.go(handle)
    wait_for(lambda: bool(rig.ledger.of(handle.id, "cancelled")), 20, "the first attempt is told")
    assert [e.attempt for e in rig.ledger.of(handle.id, "cancelled")] == [1]
    assert rig.ledger.story(handle.id) == ["one", "load"]


@pytest.mark.parametrize("saga", ["imports", "imports_async"])
def test_a_cancel_reaches_a_step_at_its_next_heartbeat(make_importing: MakeRig, saga: str) -> None:
    rig = make_importing()
    rig.worker(concurrency=4)
    handle = rig.start(saga)
    wait_for(lambda: reported(handle) >= 2, 30, "some rows are reported")
    assert handle.cancel("changed my mind") is SagaStatus.COMPENSATING
    rig.assert_undone(handle)
    assert len(rows(rig, handle, 1)) < ROWS
    [cancelled] = rig.ledger.of(handle.id, "cancelled")
    # The compensation gets the very last that was reported, also what the cancelled attempt had not stored yet.
    [unload] = rig.ledger.of(handle.id, "unload")
    assert unload.what == cancelled.what
    assert "StepCancelled" in (handle.record.step("load").error or "") + str(rig.sagas.store.queries.history(handle.id))


def test_progress_is_seen_while_a_step_runs(make_importing: MakeRig) -> None:
    rig = make_importing()
    rig.worker()
    handle = rig.start("imports")
    seen: list[int] = []

    def grows() -> bool:
        if (progress := handle.progress.get("load")) is not None and progress.done not in seen:
            assert progress.total == ROWS
            seen.append(progress.done)
        return len(seen) > 2

    wait_for(grows, 30, "it comes on")
    assert seen == sorted(seen)
    assert handle.record.step("load").status is StepStatus.RUNNING
    rig.assert_done(handle)
    assert str(handle.progress["load"]) == f"{ROWS} of {ROWS} (100 %)"


def test_who_reports_outlives_the_timeout_of_silence(make_importing: MakeRig) -> None:
    """The import takes 4 s, longer than it may be silent."""
    rig = make_importing()
    rig.worker()
    handle = rig.start("imports")
    rig.assert_done(handle)
    assert rows(rig, handle, 1) == list(range(ROWS))
    assert rig.sagas.store.queries.history(handle.id) == []
