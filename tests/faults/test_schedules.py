"""Workers are killed around the ticks of a schedule: each tick starts its saga once, and each saga ends."""

from __future__ import annotations

import random
import time
from collections import Counter
from datetime import timedelta
from itertools import pairwise

import pytest
from sqlalchemy import select, update

from sagas import SagaStatus, SqlStore
from sagas.stores import Filter, schema
from sagas.stores import schedules as stored
from sagas.ticks import Tick
from tests.conftest import MakeRig, Rig
from tests.servers import wait_for

#: Ticks that passed while no worker ran.
MISSED = 60

EVERY = {"every": {"saga": "line", "cron": "* * * * *", "overlap": "allow", "catch_up": "all"}}


def store_of(rig: Rig) -> SqlStore:
    assert isinstance(rig.sagas.store, SqlStore)
    return rig.sagas.store


def put_back(rig: Rig, minutes: int) -> None:
    """Make ticks due: as if no worker had run for so long."""
    schedules = schema.schedules
    with store_of(rig).engine.begin() as connection:
        next_at = connection.execute(select(schedules.c.next_at)).scalar_one()
        changed = {"next_at": next_at - timedelta(minutes=minutes), "revision": schedules.c.revision + 1}
        connection.execute(update(schedules).values(changed))


def ticks(rig: Rig) -> list[Tick]:
    return list(stored.ticks(store_of(rig), "every", limit=1_000))


@pytest.mark.parametrize("database", ["postgres", "mariadb"])
def test_workers_that_die_around_ticks(make_rig: MakeRig, database: str) -> None:
    rig = make_rig("redis", database)
    rig.configure(schedules=EVERY, lease=1.0, redispatch_after=1.0)
    store = store_of(rig)
    workers = [rig.worker(pool="threads", concurrency=4) for _ in range(3)]
    wait_for(lambda: stored.states(store), 20, "a worker has stored the schedule")
    put_back(rig, MISSED)
    dice = random.Random(7)
    for worker in workers:
        time.sleep(dice.uniform(0.05, 0.4))
        worker.kill()
    print(f"{len(ticks(rig))} of {MISSED} ticks had been started when the first workers were dead")
    rig.worker(pool="threads", concurrency=4)
    rig.worker(pool="threads", concurrency=4)
    ended = Filter(statuses=frozenset({SagaStatus.COMPLETED}))
    wait_for(lambda: len(ticks(rig)) >= MISSED, 60, "every tick was started")
    wait_for(lambda: store.queries.count(ended) >= MISSED, 90, "every saga has ended")
    # The schedule goes on: a tick may come between the two looks.
    sagas = store.queries.select(limit=1_000)
    rows = ticks(rig)
    assert {tick.outcome for tick in rows} == {"STARTED"}
    assert {later.at - tick.at for later, tick in pairwise(rows)} == {timedelta(minutes=1)}
    starts = Counter(saga.key for saga in sagas)
    assert set(starts.values()) == {1}
    assert len({f"every@{tick.at:%Y-%m-%dT%H:%M:%S}Z" for tick in rows} ^ starts.keys()) <= 1
    assert {saga.id for saga in sagas} <= {tick.saga_id for tick in rows}
    for saga in sagas:
        assert set(rig.ledger.story(saga.id)) <= {"one", "two", "three"}, "nothing was undone"
