"""Callbacks that come before the action of a deferred step has returned: what it writes is there, or it runs again."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from sagas import Completion, SagaHandle, SqlStore
from tests.conftest import MakeRig, Rig

#: Not SQLite: it has one writer, so no callback is stored while the action holds its lock.
EVERYWHERE = pytest.mark.parametrize(
    "rig", [("redis", "postgres"), ("rabbitmq", "mariadb")], indirect=True, ids="-".join
)


@pytest.fixture
def rig(make_rig: MakeRig, request: pytest.FixtureRequest) -> Rig:
    rig = make_rig(*getattr(request, "param", ()))
    rig.configure(more=["asks_within"])
    with store(rig).engine.begin() as connection:
        connection.execute(text("CREATE TABLE effect (n VARCHAR(100))"))
    return rig


def store(rig: Rig) -> SqlStore:
    assert isinstance(rig.sagas.store, SqlStore)
    return rig.sagas.store


def effects(rig: Rig) -> int:
    with store(rig).engine.connect() as connection:
        return len(connection.execute(text("SELECT n FROM effect")).all())


def answered_early(rig: Rig, fault: str) -> SagaHandle:
    """Start a saga, and complete its step while the action is at work and has committed nothing."""
    handle = rig.start("asks_within", ask=fault)
    rig.begun(handle, "ask")
    token, *_ = (rig.folder / f"tokens-{handle.id}").read_text().split()
    assert rig.sagas.complete(token, 7) is Completion.ACCEPTED
    assert rig.sagas.complete(token, 8) is Completion.ENDED
    assert rig.sagas.fail(token, "declined") is Completion.ENDED
    assert handle.record.step("ask").status == "RUNNING"
    assert effects(rig) == 0
    return handle


def assert_done_once(rig: Rig, handle: SagaHandle, attempts: int) -> None:
    rig.assert_done(handle)
    assert handle.result == {"ask": 7, "last": 7}
    assert effects(rig) == 1
    assert handle.record.step("ask").attempt == attempts
    assert [e.step for e in rig.ledger.of(handle.id, "begin")] == ["ask"] * attempts + ["last"]
    rig.assert_explained(handle)


@EVERYWHERE
def test_the_step_is_done_when_its_action_has_returned(rig: Rig) -> None:
    rig.worker()
    handle = answered_early(rig, "slow")
    rig.go(handle)
    assert_done_once(rig, handle, attempts=1)


@EVERYWHERE
def test_the_worker_dies_before_the_action_has_returned(rig: Rig) -> None:
    worker = rig.worker()
    handle = answered_early(rig, "slow:1")
    worker.kill()
    assert handle.record.step("ask").status == "RUNNING"
    assert effects(rig) == 0
    rig.worker()
    assert_done_once(rig, handle, attempts=2)


def test_a_callback_that_comes_between_two_attempts(rig: Rig) -> None:
    """The first worker died, and nobody has noticed: the action is called again, and the answer is kept."""
    worker = rig.worker()
    handle = rig.start("asks_within", ask="slow:1")
    rig.begun(handle, "ask")
    worker.kill()
    token, *_ = (rig.folder / f"tokens-{handle.id}").read_text().split()
    assert rig.sagas.complete(token, 7) is Completion.ACCEPTED
    rig.worker()
    assert_done_once(rig, handle, attempts=2)


def test_the_action_fails_after_the_callback(rig: Rig) -> None:
    """What it wrote is rolled back. It is tried again, and the step is done then."""
    rig.worker()
    handle = rig.start("asks_within", ask="slow_error:1")
    rig.begun(handle, "ask")
    token, *_ = (rig.folder / f"tokens-{handle.id}").read_text().split()
    assert rig.sagas.complete(token, 7) is Completion.ACCEPTED
    rig.go(handle)
    assert_done_once(rig, handle, attempts=2)


@pytest.mark.parametrize("fault", ["slow_error", "cancelled"])
def test_a_step_that_is_given_up_after_its_callback_is_compensated_with_the_result(rig: Rig, fault: str) -> None:
    rig.worker()
    handle = answered_early(rig, "slow" if fault == "cancelled" else fault)
    if fault == "cancelled":
        handle.cancel("changed my mind")
    rig.go(handle)
    rig.assert_undone(handle)
    assert effects(rig) == 0
    assert [e.what for e in rig.ledger.of(handle.id, "withdraw")] == ["7"]
