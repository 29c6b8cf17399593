"""Fan-outs on real brokers and databases, with workers that die at every turn."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest

from sagas import SagaHandle, SagaRecord, SagaStatus
from tests.conftest import MakeRig, Rig
from tests.servers import wait_for

pytestmark = pytest.mark.parametrize(
    ("broker", "database"), [("redis", "postgres"), ("rabbitmq", "mariadb"), ("filesystem", "sqlite")]
)

ITEMS, AT_ONCE = 12, 4


@pytest.fixture
def rig(make_rig: MakeRig, broker: str, database: str) -> Rig:
    rig = make_rig(broker, database)
    rig.configure(more=["fans_out", "fans_out_leniently"])
    return rig


def items_of(rig: Rig, handle: SagaHandle) -> Sequence[SagaRecord]:
    return rig.sagas.store.items.page(handle.id, "each", 0, 100)


def assert_all(rig: Rig, handle: SagaHandle, status: SagaStatus) -> None:
    """There is one saga for each item, all are at the same end, and what they did is what that says."""
    items = items_of(rig, handle)
    assert [item.parent_item for item in items] == list(range(ITEMS))
    assert {item.status for item in items} == {status}
    for item in items:
        if status is SagaStatus.COMPENSATED:
            rig.ledger.assert_nets_to_zero(item.id)
        else:
            assert rig.ledger.of(item.id, "do"), f"item {item.parent_item} is {status}, and did nothing"


def at_once(rig: Rig, items: Sequence[SagaRecord]) -> int:
    """Return how many items were in progress at the same time, by what they wrote."""
    spans = []
    for item in items:
        if effects := rig.ledger.of(item.id, "begin", "do"):
            spans.append((effects[0].at, effects[-1].at))
    return max(sum(begin <= moment <= end for begin, end in spans) for moment, _ in spans)


def test_every_item_is_done(rig: Rig) -> None:
    rig.worker(concurrency=8)
    handle = rig.start("fans_out", item0="second", item5="second")
    assert handle.wait(60) is SagaStatus.COMPLETED, handle.error
    assert handle.result["each"] == [item * 2 for item in range(ITEMS)]
    assert handle.result["last"] == sum(range(ITEMS)) * 2
    assert_all(rig, handle, SagaStatus.COMPLETED)
    assert at_once(rig, items_of(rig, handle)) <= AT_ONCE


@pytest.mark.parametrize(
    "faults",
    [
        {"last": "terminal"},
        {"item7": "terminal"},
        {"last": "terminal", "item3": "kill_after:1", "item9": "kill_before:1"},
        {"last": "terminal", "item2.compensate": "kill_after:1", "item11.compensate": "kill_before:1"},
    ],
    ids=lambda faults: "-".join(f"{step} {kind}" for step, kind in faults.items()),
)
def test_the_items_that_began_are_undone(rig: Rig, faults: dict[str, str]) -> None:
    rig.worker()
    handle = rig.start("fans_out", **{step.replace(".", "__"): kind for step, kind in faults.items()})
    assert handle.wait(90) is SagaStatus.COMPENSATED
    assert_all(rig, handle, SagaStatus.COMPENSATED)


def test_items_that_never_began_are_not_touched(rig: Rig) -> None:
    rig.worker(concurrency=1)
    handle = rig.start("fans_out", item0="terminal")
    assert handle.wait(60) is SagaStatus.COMPENSATED
    assert_all(rig, handle, SagaStatus.COMPENSATED)
    assert not rig.ledger.of(items_of(rig, handle)[ITEMS - 1].id, "begin", "do", "undo")


def test_some_may_fail(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("fans_out_leniently", item1="terminal", item8="terminal")
    assert handle.wait(60) is SagaStatus.COMPLETED, handle.error
    assert [number for number, result in enumerate(handle.result["each"]) if result is None] == [1, 8]
    for item in items_of(rig, handle):
        if item.parent_item in (1, 8):
            assert item.status is SagaStatus.COMPENSATED
            rig.ledger.assert_nets_to_zero(item.id)


def test_one_too_many_fails(rig: Rig) -> None:
    rig.worker()
    handle = rig.start("fans_out_leniently", item1="terminal", item5="terminal", item8="terminal")
    assert handle.wait(60) is SagaStatus.COMPENSATED
    assert "3 of 12 items failed" in (handle.error or "")
    assert_all(rig, handle, SagaStatus.COMPENSATED)


def test_a_cancelled_fan_out_while_no_worker_runs(rig: Rig) -> None:
    worker = rig.worker()
    handle = rig.start("fans_out", item6="hang:1")
    wait_for(
        lambda: any(rig.ledger.of(item.id, "begin") for item in items_of(rig, handle)[6:7]), 30, "item 6 has begun"
    )
    worker.kill()
    handle.cancel("changed my mind")
    rig.worker()
    assert handle.wait(90) is SagaStatus.COMPENSATED
    assert_all(rig, handle, SagaStatus.COMPENSATED)


def test_fan_outs_while_workers_are_killed(rig: Rig) -> None:
    dice = random.Random(7)
    workers = [rig.worker(), rig.worker()]
    handles = [rig.start("fans_out", **({"last": "terminal"} if n % 2 else {})) for n in range(4)]
    for _ in range(4):
        time.sleep(dice.uniform(0.5, 1.5))
        workers.pop(0).kill()
        workers.append(rig.worker())
    for number, handle in enumerate(handles):
        wanted = SagaStatus.COMPENSATED if number % 2 else SagaStatus.COMPLETED
        assert handle.wait(120) is wanted, handle.record
        assert_all(rig, handle, wanted)
