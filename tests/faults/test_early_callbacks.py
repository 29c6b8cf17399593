"""Callbacks and signals that come before the function has returned that asks for them.

What it writes is there when its step is done, or it runs again.
"""

from __future__ import annotations

import pytest
from sqlalchemy import text

from sagas import Completion, SagaHandle, SignalRefused, SqlStore
from tests.conftest import MakeRig, Rig

#: Not SQLite: it has one writer, so no callback is stored while the action holds its lock.
EVERYWHERE = pytest.mark.parametrize(
    "rig", [("redis", "postgres"), ("rabbitmq", "mariadb")], indirect=True, ids="-".join
)

#: A deferred step that is completed by its token, and a wait that gets a signal. Both are named `ask`.
BOTH = pytest.mark.parametrize("saga", ["asks_within", "waits_within"])


@pytest.fixture
def rig(make_rig: MakeRig, request: pytest.FixtureRequest) -> Rig:
    rig = make_rig(*getattr(request, "param", ()))
    rig.configure(more=["asks_within", "waits_within"])
    with store(rig).engine.begin() as connection:
        connection.execute(text("CREATE TABLE effect (n VARCHAR(100))"))
    return rig


def store(rig: Rig) -> SqlStore:
    assert isinstance(rig.sagas.store, SqlStore)
    return rig.sagas.store


def effects(rig: Rig) -> int:
    with store(rig).engine.connect() as connection:
        return len(connection.execute(text("SELECT n FROM effect")).all())


def answer(rig: Rig, handle: SagaHandle) -> None:
    """Answer before the function has returned: the first answer counts."""
    if handle.record.name == "waits_within":
        handle.signal("ask", 7, id="a")
        handle.signal("ask", 7, id="a")
        with pytest.raises(SignalRefused, match="has a signal 'ask' already: 'a'"):
            handle.signal("ask", 8, id="b")
        return
    token, *_ = (rig.folder / f"tokens-{handle.id}").read_text().split()
    assert rig.sagas.complete(token, 7) is Completion.ACCEPTED
    assert rig.sagas.complete(token, 8) is Completion.ENDED
    assert rig.sagas.fail(token, "declined") is Completion.ENDED


def answered_early(rig: Rig, saga: str, fault: str) -> SagaHandle:
    """Start a saga, and answer its step while the function is at work and has committed nothing."""
    handle = rig.start(saga, ask=fault)
    rig.begun(handle, "ask")
    answer(rig, handle)
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


@BOTH
@EVERYWHERE
def test_the_step_is_done_when_its_function_has_returned(rig: Rig, saga: str) -> None:
    rig.worker()
    handle = answered_early(rig, saga, "slow")
    rig.go(handle)
    assert_done_once(rig, handle, attempts=1)


@BOTH
@EVERYWHERE
def test_the_worker_dies_before_the_function_has_returned(rig: Rig, saga: str) -> None:
    worker = rig.worker()
    handle = answered_early(rig, saga, "slow:1")
    worker.kill()
    assert handle.record.step("ask").status == "RUNNING"
    assert effects(rig) == 0
    rig.worker()
    assert_done_once(rig, handle, attempts=2)


@BOTH
def test_an_answer_that_comes_between_two_attempts(rig: Rig, saga: str) -> None:
    """The first worker died, and nobody has noticed: the function is called again, and the answer is kept."""
    worker = rig.worker()
    handle = rig.start(saga, ask="slow:1")
    rig.begun(handle, "ask")
    worker.kill()
    answer(rig, handle)
    rig.worker()
    assert_done_once(rig, handle, attempts=2)


@BOTH
def test_the_function_fails_after_the_answer(rig: Rig, saga: str) -> None:
    """What it wrote is rolled back. It is tried again, and the step is done then."""
    rig.worker()
    handle = answered_early(rig, saga, "slow_error:1")
    rig.go(handle)
    assert_done_once(rig, handle, attempts=2)


@BOTH
@pytest.mark.parametrize("fault", ["slow_error", "cancelled"])
def test_a_step_that_is_given_up_after_its_answer_is_compensated_with_the_result(
    rig: Rig, saga: str, fault: str
) -> None:
    rig.worker()
    handle = answered_early(rig, saga, "slow" if fault == "cancelled" else fault)
    if fault == "cancelled":
        handle.cancel("changed my mind")
    rig.go(handle)
    rig.assert_undone(handle)
    assert effects(rig) == 0
    assert [e.what for e in rig.ledger.of(handle.id, "withdraw")] == ["7"]
