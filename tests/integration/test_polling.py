"""A step that polls, on real workers, one of which is killed meanwhile."""

from __future__ import annotations

import time

from tests.conftest import Rig


def test_a_worker_that_dies_while_a_step_polls_costs_nothing(rig: Rig) -> None:
    first = rig.worker()
    handle = rig.start("polls", ask="2")
    rig.begun(handle, "one")
    time.sleep(0.7)
    first.kill()
    rig.worker()
    rig.assert_done(handle, 60)
    entries = [entry for entry in rig.sagas.store.queries.history(handle.id) if entry.step == "ask"]
    assert {entry.what for entry in entries} <= {"lost"}
    step = handle.record.step("ask")
    assert step.started_at is not None
    assert step.finished_at is not None
    assert (step.finished_at - step.started_at).total_seconds() >= 2
    assert step.failures == 0


def test_a_step_that_polls_for_too_long_is_undone(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("polls", ask="60")
    rig.assert_undone(handle, 60)
    assert "not ready within 4 s: not yet" in str(handle.error)
    assert [e.what for e in rig.sagas.store.queries.history(handle.id) if e.step == "ask"] == ["step failed"]
