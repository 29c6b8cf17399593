"""Child sagas, on real brokers and databases, with workers that die at every turn."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from sagas import SagaHandle, SagaStatus
from sagas.checkpoints import SagaSummary
from tests.conftest import MakeRig, Rig
from tests.servers import wait_for

pytestmark = pytest.mark.parametrize(
    ("broker", "database"), [("redis", "postgres"), ("rabbitmq", "mariadb"), ("filesystem", "sqlite")]
)

CHILDREN = ["left", "right", "middle", "inner"]


@pytest.fixture
def rig(make_rig: MakeRig, broker: str, database: str) -> Rig:
    rig = make_rig(broker, database)
    rig.configure(more=["with_children"])
    return rig


def family(rig: Rig, handle: SagaHandle) -> dict[str, SagaSummary]:
    """Return a saga and all below it, by name. Of each there is one."""
    found = rig.sagas.store.family(handle.id)
    assert max(Counter(each.name for each in found).values()) == 1, "two children for one step"
    return {each.name: each for each in found}


def assert_told(rig: Rig, handle: SagaHandle, status: SagaStatus) -> None:
    """The whole tree is at the same end, and what its steps did is what that says."""
    found = family(rig, handle)
    assert {each.status for each in found.values()} == {status}, found
    for each in found.values():
        if status is SagaStatus.COMPENSATED:
            rig.ledger.assert_nets_to_zero(each.id)


def test_a_tree_completes(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("with_children")
    began = time.monotonic()
    assert handle.wait(60) is SagaStatus.COMPLETED
    print(f"five sagas in {time.monotonic() - began:.2f} s")
    assert_told(rig, handle, SagaStatus.COMPLETED)
    assert sorted(family(rig, handle)) == sorted([*CHILDREN, "with_children"])
    assert handle.result["middle"]["inner"]["inner_two"].step == "inner_two"


@pytest.mark.parametrize(
    "faults",
    [
        {"last": "terminal"},
        {"inner_two": "terminal"},
        {"right_one": "terminal"},
        {"last": "terminal", "make": "kill", "inner_two": "kill_after:1"},
        {"last": "terminal", "inner_one.compensate": "kill_after:1", "left_two.compensate": "kill_before:1"},
    ],
    ids=lambda faults: "-".join(f"{step} {kind}" for step, kind in faults.items()),
)
def test_a_tree_compensates(rig: Rig, faults: dict[str, str]) -> None:
    rig.worker()
    handle = rig.start("with_children", **{step.replace(".", "__"): kind for step, kind in faults.items()})
    assert handle.wait(90) is SagaStatus.COMPENSATED
    assert_told(rig, handle, SagaStatus.COMPENSATED)


def test_a_cancelled_parent_while_no_worker_runs(rig: Rig) -> None:
    worker = rig.worker()
    handle = rig.start("with_children", inner_one="slow")
    wait_for(lambda: "inner" in family(rig, handle), 30, "the innermost saga is there")
    worker.kill()
    handle.cancel("changed my mind")
    rig.go(handle)
    rig.worker()
    assert handle.wait(90) is SagaStatus.COMPENSATED
    assert_told(rig, handle, SagaStatus.COMPENSATED)


def test_trees_while_workers_are_killed(rig: Rig) -> None:
    """Every saga that completes has one of each child; of those that compensate nothing is left."""
    dice = random.Random(5)
    workers = [rig.worker(), rig.worker()]
    handles = [rig.start("with_children", **({"last": "terminal"} if n % 2 else {})) for n in range(8)]
    for _ in range(5):
        time.sleep(dice.uniform(0.3, 1.2))
        workers.pop(0).kill()
        workers.append(rig.worker())
    for number, handle in enumerate(handles):
        wanted = SagaStatus.COMPENSATED if number % 2 else SagaStatus.COMPLETED
        assert handle.wait(120) is wanted, handle.record
        assert_told(rig, handle, wanted)
