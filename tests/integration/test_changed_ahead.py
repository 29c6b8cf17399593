"""A definition changes while its sagas wait. Real workers, one with the old code and one with the new."""

from __future__ import annotations

import pytest

from sagas import DefinitionMissing, SagaHandle, SagaStatus, StepStatus
from sagas.check import check
from tests.conftest import MakeRig, Rig
from tests.servers import wait_for


@pytest.fixture
def old(make_rig: MakeRig) -> Rig:
    rig = make_rig("redis", "postgres")
    rig.configure(more=["changing"])
    return rig


@pytest.fixture
def deployed(old: Rig, request: pytest.FixtureRequest) -> Rig:
    """The rig of the next deployment: the same broker, database, queue and ledger."""
    rig = Rig(old.settings["broker"], old.settings["database"], old.folder)
    request.addfinalizer(rig.close)
    return rig


def waiting(rig: Rig, count: int, **faults: str) -> list[SagaHandle]:
    handles = [rig.start("changing", **faults) for _ in range(count)]
    for handle in handles:
        wait_for(
            lambda handle=handle: (  # type: ignore[misc]
                "answer" in handle.record.steps and handle.record.step("answer").status is StepStatus.WAITING
            ),
            30,
            "it waits",
        )
    return handles


def test_sagas_that_wait_go_on_with_the_new_nodes(old: Rig, deployed: Rig) -> None:
    worker = old.worker()
    handles = waiting(old, 3)
    worker.stop()
    deployed.configure(more=["changed_ahead"])
    deployed.worker()
    for handle in handles:
        deployed.sagas.handle(handle.id).signal("answer", True)
    for handle in handles:
        new = deployed.sagas.handle(handle.id)
        deployed.assert_done(new)
        assert deployed.ledger.story(handle.id) == ["one", "new", "two"]
        assert new.record.outline == deployed.saga("changing").outline


def test_they_compensate_what_the_old_code_did_and_the_new(old: Rig, deployed: Rig) -> None:
    worker = old.worker()
    (handle,) = waiting(old, 1, two="terminal")
    worker.stop()
    deployed.configure(more=["changed_ahead"])
    deployed.worker()
    deployed.sagas.handle(handle.id).signal("answer", True)
    deployed.assert_undone(deployed.sagas.handle(handle.id))
    assert deployed.ledger.story(handle.id) == ["one", "new", "-two", "-new", "-one"]


@pytest.mark.parametrize("parts", [("redis", "postgres"), ("rabbitmq", "mariadb")], ids="-".join)
def test_while_both_codes_run_each_saga_finds_a_worker_of_its_own(
    make_rig: MakeRig, request: pytest.FixtureRequest, parts: tuple[str, str]
) -> None:
    """Both serve the same queue, and both recover. What stands beyond the change needs the code that it began with."""
    old = make_rig(*parts)
    old.configure(more=["changing"], redispatch_after=20.0)  # longer than it may take: no message is sent again
    old.worker()
    theirs = waiting(old, 4)
    new = Rig(old.settings["broker"], old.settings["database"], old.folder)
    request.addfinalizer(new.close)
    new.configure(more=["reordered"], redispatch_after=20.0)
    new.worker()
    ours = [new.start("changing") for _ in range(4)]
    for handle in theirs:
        handle.signal("answer", True)
    for handle in ours:
        handle.signal("answer", True)
    # Of 256 messages, one meets the wrong worker eight times in a row; that saga waits for recovery. Three of eight do
    # not.
    sagas = theirs + ours
    wait_for(lambda: sum(each.status is SagaStatus.COMPLETED for each in sagas) >= 6, 18, "six of eight are done")
    for handle in theirs:
        old.assert_done(handle, 90)
        assert old.ledger.story(handle.id) == ["one", "two"]
    for handle in ours:
        new.assert_done(handle, 90)
        assert new.ledger.story(handle.id) == ["two", "one"]


def test_a_message_that_nobody_has_the_code_for_is_passed_on_only_for_a_while(old: Rig, deployed: Rig) -> None:
    worker = old.worker()
    (handle,) = waiting(old, 1)
    worker.stop()
    handle.signal("answer", True)
    deployed.configure(more=["changed_behind"])
    worker = deployed.worker()
    wait_for(lambda: worker.output().count("step 'new' is new") >= 9, 60, "it was passed on eight times")
    wait_for(lambda: "step 'new' is new" in (handle.error or ""), 20, "the saga says what it waits for")
    worker.stop()
    old.worker()
    old.assert_done(handle, 90)


def test_a_change_behind_is_refused_by_the_engine_and_the_check_alike(old: Rig, deployed: Rig) -> None:
    worker = old.worker()
    (handle,) = waiting(old, 1)
    worker.stop()
    deployed.configure(more=["changed_behind"])
    worker = deployed.worker()
    with pytest.raises(DefinitionMissing, match="step 'new' is new"):
        deployed.sagas.handle(handle.id).signal("answer", True)
    found = "\n".join(str(each) for each in check(deployed.sagas))
    assert "step 'new' is new" in found
    assert handle.id in found
    worker.stop()
    old.worker()
    handle.signal("answer", True)
    old.assert_done(handle)
    assert old.ledger.story(handle.id) == ["one", "two"]
