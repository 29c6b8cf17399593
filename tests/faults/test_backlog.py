"""Queues that are longer than recovery waits: it leaves them alone, and a rate limit its tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from sagas import SagaStatus, SqlStore
from sagas.stores import Filter
from tests.conftest import MakeRig, Rig
from tests.servers import Redis, wait_for

SAGAS = 150


def queued(redis_server: Redis, rig: Rig) -> int:
    with redis_server.client() as client:
        return int(client.llen(f"q-{rig.folder.name}"))  # type: ignore[arg-type, unused-ignore]


def waiting(rig: Rig) -> int:
    store = rig.sagas.store
    assert isinstance(store, SqlStore)
    return store.queries.count(Filter(statuses=frozenset(SagaStatus) - {SagaStatus.COMPLETED}))


@pytest.fixture
def rig(make_rig: MakeRig) -> Iterator[Rig]:
    made = make_rig()
    made.configure(redispatch_after=1.0)
    yield made


@pytest.mark.parametrize("options", [(), ("--max-tasks-per-child", "10")], ids=["prefork", "short-lived children"])
def test_a_backlog_is_left_alone_and_worked_off(rig: Rig, redis_server: Redis, options: tuple[str, ...]) -> None:
    rig.worker("-Q", "elsewhere", concurrency=1)  # its recovery sees to the sagas of all
    handles = [rig.start("line") for _ in range(SAGAS)]
    wait_for(
        lambda: all(handle.record.idle_checks >= 2 for handle in handles[:10] + handles[-10:]), 60, "they are overdue"
    )
    assert queued(redis_server, rig) <= 1.2 * SAGAS
    rig.worker(*options)
    worst = 0.0

    def done() -> bool:
        nonlocal worst
        sagas = waiting(rig)  # first: a pause before the other count cannot make the queue look longer
        messages = queued(redis_server, rig)
        if sagas >= SAGAS // 3:
            worst = max(worst, messages / sagas)
        return sagas == 0

    wait_for(done, 120, "the backlog is worked off", 0.1)
    assert worst <= 1.2
    for handle in handles:
        rig.assert_done(handle)
    assert sum(handle.record.dispatches - 1 for handle in handles) <= SAGAS // 5
    assert {handle.record.epoch for handle in handles} == {1}


def test_a_rate_limit_is_not_used_up_by_second_messages(rig: Rig) -> None:
    """Two a second: a second message for each saga that has waited for a second would take most of them."""
    rig.configure(task_annotations={"line.one": {"rate_limit": "2/s"}})
    worker = rig.worker()
    handles = [rig.start("line") for _ in range(12)]
    for handle in handles:
        rig.assert_done(handle)
    received = re.findall(r"Task line\.one\[\S+\] received", worker.output())
    assert 12 <= len(received) <= 12 + 4
