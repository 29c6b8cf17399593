"""Compensations that fail for good wait for a person, and go on when the person says how."""

import pytest

from sagas import NotAllowed, SagaHandle, SagaStatus
from tests.conftest import Rig


def stuck(rig: Rig) -> SagaHandle:
    handle = rig.start("line", three="terminal", two__compensate="error:3")
    assert handle.wait(30) is SagaStatus.STUCK
    assert "step 'two' is stuck" in (handle.error or "")
    [letter] = rig.sagas.store.queries.dead_letters()
    assert (letter.saga_id, letter.step, letter.direction) == (handle.id, "two", "BACKWARD")
    assert "broken" in letter.error
    return handle


def test_retry(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("line", three="terminal", two__compensate="terminal:1")
    assert handle.wait(30) is SagaStatus.STUCK
    rig.sagas.store.queries.dead_letters()
    # TerminalError says that trying again is useless, so the engine did not; a person may know better.
    assert len([e for e in rig.ledger.of(handle.id, "begin") if e.step == "two"]) == 2
    with pytest.raises(NotAllowed, match="stuck step is 'two'"):
        rig.sagas.retry(handle.id, "one", reason="?")
    with pytest.raises(NotAllowed, match="say why"):
        rig.sagas.retry(handle.id, "two", reason=" ")
    rig.sagas.retry(handle.id, "two", reason="the bank is back", actor="ann")
    assert handle.wait(30) is SagaStatus.STUCK  # attempts begin again at 1, so it is refused again
    rig.sagas.mark_done(handle.id, "two", reason="refunded by hand", actor="ann")
    assert handle.wait(30) is SagaStatus.COMPENSATED
    history = [(entry.what, entry.actor, entry.detail) for entry in rig.sagas.store.queries.history(handle.id)]
    assert ("operator: retry", "ann", "the bank is back") in history
    assert ("operator: done", "ann", "refunded by hand") in history
    assert rig.sagas.store.queries.dead_letters() == []
    assert [letter.resolution for letter in rig.sagas.store.queries.dead_letters(unresolved=False)] == ["retry", "done"]


def test_skip(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("line", three="terminal", two__compensate="error")
    assert handle.wait(30) is SagaStatus.STUCK
    rig.sagas.skip(handle.id, "two", reason="written off", actor="bob")
    assert handle.wait(30) is SagaStatus.COMPENSATED
    assert handle.record.step("two").status == "SKIPPED"
    assert rig.ledger.story(handle.id) == ["one", "two", "-three", "-one"]


def test_a_compensation_that_fails_twice_is_tried_until_it_works(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("line", three="terminal", two__compensate="error:2")
    rig.assert_undone(handle)


def test_one_stuck_branch_does_not_hold_up_the_other(rig: Rig) -> None:
    rig.worker(concurrency=4)
    handle = rig.start("full", four="terminal", left__compensate="terminal")
    assert handle.wait(30) is SagaStatus.STUCK
    assert handle.record.step("right").status == "COMPENSATED"
    rig.sagas.mark_done(handle.id, "left", reason="by hand")
    assert handle.wait(30) is SagaStatus.COMPENSATED
    assert rig.ledger.story(handle.id)[-1] == "-one"
