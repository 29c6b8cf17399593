"""Handlers whose messages share transactions, on real brokers and a real database, while everything that can die does.

`work_off` is the scenario, and `audit` is what must hold afterwards. Bugs that are planted in the processes show that
the audit would see them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import func, select

from sagas.events import batches
from sagas.events.batches import Batches
from sagas.events.consumer import Consumer
from sagas.events.inbox import Batch, End, Outcome
from sagas.events.lanes import Job
from sagas.stores import schema
from tests.event_rig import EventRig
from tests.servers import Redis, wait_for

RESERVE, CHARGE, PACK = "inventory.reserve_stock", "billing.charge", "shipping.pack"
SIZE = 10

KEYS = {f"key {n}": range(n * 100, n * 100 + 40) for n in range(4)}

#: What is published before the first process, and once two have died: they have not been sent any of it.
EARLY, LATE = slice(0, 30), slice(30, 40)

#: The bad messages: one of the early ones, and two of the late.
KILLS_ONCE, REFUSED, FAILS = 316, 135, 239

EVERYTHING = {number for numbers in KEYS.values() for number in numbers}
GOOD = EVERYTHING - {REFUSED, FAILS}
WANTED = {RESERVE: GOOD, CHARGE: GOOD, PACK: EVERYTHING}

MakeBatchRig = Callable[..., EventRig]
Bug = Callable[[], object]


@pytest.fixture
def make_batch_rig(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeBatchRig]:
    made: list[EventRig] = []
    monkeypatch.setenv("RIG_FOLDER", str(tmp_path))

    def make(broker: str, celery: str = "memory://") -> EventRig:
        url = request.getfixturevalue("rabbitmq" if broker == "rabbitmq" else "redis_server").url
        rig = EventRig(url, celery, request.getfixturevalue("postgres").database(), tmp_path, SIZE)
        made.append(rig)
        return rig

    yield make
    for rig in made:
        print(rig.logs())  # shown when the test fails
        rig.close()


def publish(rig: EventRig, part: slice) -> None:
    """Have messages of four keys wait at the broker."""
    faults = {KILLS_ONCE: "kill once", REFUSED: "refuse", FAILS: "fail"}
    for key, numbers in KEYS.items():
        for number in numbers[part]:
            rig.publish(number, key=key, fault=faults.get(number, ""))
    rig.events.relay.send()


def work_off(rig: EventRig, bug: Bug | None = None) -> None:
    """Let two processes die, one after the other, and a third one handle what is left."""
    publish(rig, EARLY)
    rig.consume(die="before ack", bug=bug)
    quiet_since, before = time.monotonic(), ""

    def is_over() -> bool:
        nonlocal quiet_since, before
        if not rig.processes[-1].running:
            if len(rig.processes) == 2:
                publish(rig, LATE)
            rig.consume(bug=bug)
        done = [len(rig.done(queue)) for queue in WANTED]
        now = f"{done} {len(rig.events.dead_letters())} {len(rig.ledger())}"
        if now != before:
            quiet_since, before = time.monotonic(), now
        is_done = done == [len(wanted) for wanted in WANTED.values()] and len(rig.events.dead_letters()) == 2
        # With a bug it may never be done: then it is over when nothing has happened for several leases.
        return is_done or time.monotonic() - quiet_since > 5

    wait_for(is_over, 90, "nothing happens any more")
    if bug is None:
        rig.settled()


def audit(rig: EventRig) -> None:
    """Each message had its effect once and in order, and only the bad ones failed."""
    for queue, wanted in WANTED.items():
        done = rig.done(queue)
        assert sorted(number for _, number in done) == sorted(wanted), f"{queue}: lost or doubled"
    by_key: dict[str | None, list[int]] = defaultdict(list)
    for key, number in rig.done(PACK):
        by_key[key].append(number)
    assert dict(by_key) == {key: list(numbers) for key, numbers in KEYS.items()}
    letters = {
        letter.body.decode().partition('"number":')[2].split(",")[0]: letter for letter in rig.events.dead_letters()
    }
    assert {number: letter.attempts for number, letter in letters.items()} == {str(FAILS): 3, str(REFUSED): 0}
    assert {line["number"] for line in rig.ledger() if line["attempt"] > 1} == {FAILS}
    assert largest_batch(rig) == SIZE


def largest_batch(rig: EventRig) -> int:
    """Return how many messages entered the inbox in one transaction."""
    same = schema.inbox.c.queue, schema.inbox.c.handled_at
    with rig.events.engine.connect() as connection:
        return max(connection.execute(select(func.count()).select_from(schema.inbox).group_by(*same)).scalars())


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_each_message_has_its_effect_once_whatever_happens_in_its_batch(
    make_batch_rig: MakeBatchRig, broker: str
) -> None:
    rig = make_batch_rig(broker)
    work_off(rig)
    audit(rig)
    assert (rig.folder / "died-before ack").exists()
    assert (rig.folder / f"killed-{KILLS_ONCE}").exists()
    assert "rolled_back, a batch" in rig.processes[-1].output()


# -- bugs that the audit sees ---------------------------------------------------------------------------------------


def acknowledged_before_the_commit() -> None:
    begin = Consumer._begin

    def begin_and_acknowledge(self: Consumer, jobs: Sequence[Job]) -> None:
        jobs[0].reader.ack(*(job.delivery for job in jobs))
        begin(self, jobs)

    Consumer._begin = begin_and_acknowledge  # type: ignore[method-assign]


def neighbours_fail() -> None:
    handle = Batches.handle

    def fail(self: Batches, batch: Batch) -> Sequence[Outcome]:
        outcomes = handle(self, batch)
        return [Outcome(End.FAILED) if each.end is End.ROLLED_BACK else each for each in outcomes]

    Batches.handle = fail  # type: ignore[method-assign]


def neighbours_are_rejected() -> None:
    handle = Batches.handle

    def reject(self: Batches, batch: Batch) -> Sequence[Outcome]:
        outcomes = handle(self, batch)
        return [Outcome(End.REJECTED) if each.end is End.ROLLED_BACK else each for each in outcomes]

    Batches.handle = reject  # type: ignore[method-assign]


def told_to_the_next_message() -> None:
    """Handles a batch that was rolled back in the same call, and mixes up the outcomes."""
    handle = Batches.handle

    def handle_and_mix(self: Batches, batch: Batch) -> Sequence[Outcome]:
        outcomes = handle(self, batch)
        if outcomes[0].end is not End.ROLLED_BACK:
            return outcomes
        alone = [self._inbox.handle(call) for call in batch.calls]
        return alone[-1:] + alone[:-1]

    Batches.handle = handle_and_mix  # type: ignore[method-assign]


def no_inbox() -> None:
    """A crash between commit and acknowledgement has them handled twice."""

    def enter(*_: object) -> datetime:
        return datetime.now(UTC)

    batches.enter = enter  # type: ignore[assignment, attr-defined]


def overtaken_in_its_batch() -> None:
    with_others = Consumer._with_others

    def backwards(self: Consumer, first: Job, now: float) -> Sequence[Job]:
        return list(reversed(with_others(self, first, now)))

    Consumer._with_others = backwards  # type: ignore[method-assign]


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
@pytest.mark.parametrize(
    "bug",
    [
        acknowledged_before_the_commit, neighbours_fail, neighbours_are_rejected, told_to_the_next_message,
        no_inbox, overtaken_in_its_batch,
    ],
)  # fmt: skip
def test_bugs_are_seen(make_batch_rig: MakeBatchRig, broker: str, bug: Bug) -> None:
    rig = make_batch_rig(broker)
    work_off(rig, bug)
    with pytest.raises(AssertionError):
        audit(rig)


# -- killed at random -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_while_processes_are_killed_nothing_is_lost_doubled_or_overtaken(
    make_batch_rig: MakeBatchRig, broker: str
) -> None:
    """Three processes, one of which is killed again and again, while more is published."""
    rig = make_batch_rig(broker)
    rig.publish_while_readers_are_killed(KEYS, CHARGE, every=15, seed=11)
    rig.assert_each_once(KEYS, RESERVE, CHARGE, PACK)
    rig.settled()
    assert rig.events.dead_letters() == []


def test_poison_in_a_batch_is_found(make_batch_rig: MakeBatchRig) -> None:
    """It kills whoever handles it: first with its batch, then alone."""
    rig = make_batch_rig("redis")
    rig.publish(*range(25))
    rig.publish(25, fault="kill")
    rig.publish(*range(26, 40))
    rig.events.relay.send()
    rig.consume()

    def given_up_and_others_done() -> bool:
        if not rig.processes[-1].running:
            rig.consume()
        return bool(rig.events.dead_letters()) and len(rig.done(RESERVE)) >= 39

    wait_for(given_up_and_others_done, 90, "it is given up, and the others are done")
    [letter] = rig.events.dead_letters()
    assert "the message seems to kill its process" in letter.error
    assert '"number":25' in letter.body.decode()
    assert sorted(number for _, number in rig.done(RESERVE)) == sorted({*range(40)} - {25})


# -- in Celery's workers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_handles_batches_in_its_pool(make_batch_rig: MakeBatchRig, redis_server: Redis, pool: str) -> None:
    rig = make_batch_rig("rabbitmq", celery=redis_server.url)
    for key, numbers in KEYS.items():
        for number in numbers:
            is_deadly = pool == "prefork" and number in (3, 105, 317)
            rig.publish(number, key=key, fault="kill once" if is_deadly else "")
    rig.events.relay.send()
    worker = rig.worker("-P", pool, "-c", "2")
    rig.assert_each_once(KEYS, RESERVE, CHARGE, PACK)
    rig.settled()
    assert rig.events.dead_letters() == []
    assert largest_batch(rig) > 1
    assert worker.running
