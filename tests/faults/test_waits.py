"""Nodes that wait, on real brokers and databases, with workers that die at every turn."""

from __future__ import annotations

import pytest

from sagas import Completion, SagaHandle, SagaStatus, SignalRefused
from tests.conftest import MakeRig, Rig
from tests.servers import wait_for

pytestmark = pytest.mark.parametrize(
    ("broker", "database"), [("redis", "postgres"), ("rabbitmq", "mariadb"), ("filesystem", "sqlite")]
)


@pytest.fixture
def rig(make_rig: MakeRig, broker: str, database: str) -> Rig:
    rig = make_rig(broker, database)
    rig.configure(more=["waits_for_all"])
    return rig


def waits_at(handle: SagaHandle, step: str) -> None:
    wait_for(lambda: handle.record.step(step).status == "WAITING", 30, f"the saga waits at {step}")


def tokens(rig: Rig, handle: SagaHandle) -> list[str]:
    return (rig.folder / f"tokens-{handle.id}").read_text().split()


def test_what_arrives_while_no_worker_runs_is_kept(rig: Rig) -> None:
    worker = rig.worker()
    handle, declined, unwanted = rig.start("waits_for_all"), rig.start("waits_for_all"), rig.start("waits_for_all")
    for each in (handle, declined, unwanted):
        waits_at(each, "approval")
    worker.kill()
    handle.signal("approval", payload=True, id="a", sender="ann")
    handle.signal("approval", payload=True, id="a", sender="ann")
    with pytest.raises(SignalRefused, match="'a' of ann"):
        handle.signal("approval", payload=False, id="b", sender="bob")
    declined.signal("approval", payload=True)
    unwanted.cancel("no longer wanted")
    worker = rig.worker()
    waits_at(handle, "pay")
    waits_at(declined, "pay")
    worker.kill()
    assert rig.sagas.complete(tokens(rig, handle)[0], 7) is Completion.ACCEPTED
    assert rig.sagas.complete(tokens(rig, handle)[0], 8) is Completion.ENDED
    assert rig.sagas.fail(tokens(rig, declined)[0], "card declined") is Completion.ACCEPTED
    rig.worker()
    rig.assert_done(handle)
    assert handle.result["last"] == "True 7"
    assert rig.ledger.story(handle.id) == ["one", "two", "pay", "last"]
    for each in (declined, unwanted):
        assert each.wait(30) is SagaStatus.COMPENSATED
        rig.ledger.assert_nets_to_zero(each.id)
    assert "pay" not in rig.ledger.story(unwanted.id)


def test_a_worker_that_dies_after_it_has_asked(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("waits_for_all", pay="kill_after:1", two="kill_before:1")
    handle.signal("approval", payload=True)  # before its wait has begun
    waits_at(handle, "pay")
    first, *others = tokens(rig, handle)
    assert others, "it has asked once more"
    assert rig.sagas.complete(first, 7) is Completion.ACCEPTED
    rig.assert_done(handle)
    assert handle.result["last"] == "True 7"
    rig.assert_explained(handle)


def test_a_condition_whose_worker_dies_is_asked_again_until_it_has_answered(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("waits_for_all", is_wanted="kill", unwanted="yes", pay="terminal")
    handle.signal("approval", payload=True)
    assert handle.wait(60) is SagaStatus.COMPENSATED
    assert handle.record.step("two").status == "SKIPPED"
    rig.ledger.assert_nets_to_zero(handle.id)
