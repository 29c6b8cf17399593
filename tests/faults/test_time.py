"""Steps that never answer, waits that never end, sagas that take too long, and a person who changes their mind."""

import pytest

from sagas import NotAllowed, SagaStatus
from sagas.checkpoints import HistoryKind
from tests.conftest import MakeRig, Rig
from tests.servers import wait_for


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_step_that_never_answers_times_out(make_rig: MakeRig, pool: str) -> None:
    rig = make_rig()
    rig.worker(pool=pool, concurrency=8)
    handle = rig.start("line", two="hang")
    rig.assert_undone(handle)
    assert "no answer within 3 s" in (handle.error or "")
    # Attempts that hang are still at it: none of them has landed.
    assert rig.ledger.story(handle.id) == ["one", "-two", "-one"]


def test_a_slow_branch_that_lands_after_turning_back_is_undone(rig: Rig) -> None:
    rig.worker(concurrency=4)
    handle = rig.start("full", left="slow")
    rig.begun(handle, "left")
    assert handle.cancel("changed my mind") is SagaStatus.COMPENSATING
    rig.go(handle)
    rig.assert_undone(handle)
    story = rig.ledger.story(handle.id)
    assert story.index("-left") > story.index("left")
    assert [e.known for e in rig.ledger.of(handle.id, "undo") if e.step == "left"] == ["left"]


def test_an_action_that_lands_after_its_compensation_is_undone_again(make_rig: MakeRig) -> None:
    """It ran out of time, was undone without a result, and succeeded after all."""
    rig = make_rig()
    rig.worker(concurrency=4)
    handle = rig.start("line", two="slow")
    rig.assert_undone(handle)
    assert rig.ledger.story(handle.id) == ["one", "-two", "-one"]
    rig.go(handle)
    wait_for(lambda: "two" in rig.ledger.story(handle.id), what="it lands late")
    wait_for(lambda: rig.ledger.story(handle.id)[-1] == "-two", what="and is undone again")
    rig.assert_undone(handle)
    assert HistoryKind.LATE_OUTCOME in [entry.what for entry in rig.sagas.store.queries.history(handle.id)]


def test_a_saga_that_takes_too_long_turns_back(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("short", two="slow")
    rig.begun(handle, "two")
    wait_for(lambda: handle.status is SagaStatus.COMPENSATING, 20)
    rig.go(handle)
    rig.assert_undone(handle)
    assert "ran out of time" in (handle.error or "")


def test_a_step_that_no_worker_takes_is_given_up(make_rig: MakeRig) -> None:
    """Time to start is told apart from time to run."""
    rig = make_rig()
    rig.worker("-Q", rig.settings["options"]["task_default_queue"])  # not the queue of the second step
    handle = rig.start("nobody")
    rig.assert_undone(handle)
    assert "no worker began it within 1 s" in (handle.error or "")
    assert rig.ledger.story(handle.id) == ["one", "-one"]


def test_a_queue_without_workers_only_costs_time(rig: Rig) -> None:
    rig.worker("-Q", "elsewhere")  # recovery runs here, but nobody takes the steps
    handle = rig.start("line")
    wait_for(lambda: handle.record.idle_checks > 0, 20, "it is dispatched again")
    rig.worker()
    rig.assert_done(handle)


def test_a_lease_is_renewed_during_long_work(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.configure(lease=0.9)
    rig.worker(concurrency=4)
    handle = rig.start("long", two="slow")
    rig.begun(handle, "two")
    leases: list[object] = [handle.record.step("two").lease_until]

    def renewed() -> bool:
        if (seen := handle.record.step("two").lease_until) != leases[-1]:
            leases.append(seen)
        return len(leases) > 3

    wait_for(renewed, 10, "the lease is renewed again and again")
    rig.go(handle)
    rig.assert_done(handle)
    assert len([e for e in rig.ledger.of(handle.id, "begin") if e.step == "two"]) == 1


@pytest.mark.parametrize(("limits", "text"), [
    (("--time-limit", "2"), "lost 1 of 1 times"),  # a killed child: its lease runs out
    (("--soft-time-limit", "1"), "SoftTimeLimitExceeded"),
])  # fmt: skip
def test_celerys_own_time_limits(rig: Rig, limits: tuple[str, ...], text: str) -> None:
    rig.worker(*limits, concurrency=4)
    handle = rig.start("once", two="hang")
    rig.assert_undone(handle)
    assert text in (handle.error or "")


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_pool_that_ignores_limits_is_warned_of(rig: Rig, pool: str) -> None:
    worker = rig.worker("--time-limit", "5", pool=pool)
    assert f"the {pool} pool ignores Celery's time limits" in worker.output()
    assert "ignores Celery's time limits" not in rig.worker("--time-limit", "5").output()


def test_cancel_is_refused_at_the_pivot(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("full", pivot="slow")
    rig.begun(handle, "pivot")
    with pytest.raises(NotAllowed, match="pivot 'pivot' is RUNNING"):
        handle.cancel()
    rig.go(handle)
    rig.assert_done(handle)
    with pytest.raises(NotAllowed, match="COMPLETED"):
        handle.cancel()


def test_cancel_before_anything_has_begun(rig: Rig) -> None:
    handle = rig.start("line")
    assert handle.cancel() is SagaStatus.COMPENSATED
    rig.worker()
    other = rig.start("line")
    rig.assert_done(other)
    assert rig.ledger.story(handle.id) == []
