"""Long queues, in simulated time: recovery finds what is lost, and leaves what waits alone.

The rules and the probes are the real ones. The queue keeps its order and loses what the test wants it to lose; workers
take so many messages a second. Everything else of an engine is left out.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sagas import Direction, Saga, SagaRecord, Step, transitions
from sagas.checkpoints import FINISHED
from sagas.plan import plan
from sagas.probes import Advice, Overdue, Queue
from sagas.transitions import Timing, Verdict

START = datetime(2026, 1, 1, tzinfo=UTC)
TIMING = Timing(lease=30, redispatch_after=30)
SAGA = Saga("order", *(Step(name, lambda: None, compensation=None) for name in ("reserve", "pay", "ship")))
BATCH = 100


@dataclass(frozen=True)
class Message:
    saga: str
    step: str
    epoch: int
    probe: datetime | None = None


class Shop:
    """Many sagas, one queue, as many recoveries as there are workers elsewhere."""

    def __init__(self, sagas: int, *, recoveries: int = 1, over: float = 0.0, redispatch_after: float = 30.0) -> None:
        self.timing = replace(TIMING, redispatch_after=redispatch_after)
        self.now = START
        self.records: dict[str, SagaRecord] = {}
        self.queue: deque[Message] = deque()
        self.arrived: dict[str, datetime] = {}
        self.recoveries: list[dict[str, Queue]] = [{} for _ in range(recoveries)]
        self.sent = self.taken = 0
        self.lose: Callable[[Message], bool] = lambda message: False
        self.worst = 0.0  # messages queued per waiting saga, at the worst moment
        self._starting = deque((START + timedelta(seconds=over * n / sagas), f"s{n}") for n in range(sagas))

    def send(self, record: SagaRecord, probe: datetime | None = None) -> None:
        left = plan(SAGA, record)
        if left:
            message = Message(record.id, left.stages[0].steps[0], left.epoch, probe)
            self.sent += 1
            if not self.lose(message):
                self.queue.append(message)

    def case(self, record: SagaRecord) -> transitions.Case:
        return transitions.Case.of(SAGA, record, self.now, self.timing)

    def start(self) -> None:
        while self._starting and self._starting[0][0] <= self.now:
            at, name = self._starting.popleft()
            record = SagaRecord(
                id=name, name=SAGA.name, version=1, key=name, outline=SAGA.outline, correlation_id=name, input="null",
                created_at=at, updated_at=at, stage_ready_at=at, next_check_at=at + timedelta(seconds=self.timing.redispatch_after),
            )  # fmt: skip
            self.records[name] = record
            self.send(record)

    def work(self, messages: int) -> None:
        """Take messages from the queue; each that is good does its step, and the chain goes on."""
        for _ in range(min(messages, len(self.queue))):
            message = self.queue.popleft()
            self.taken += 1
            if message.probe is not None:
                self.arrived[message.step] = max(message.probe, self.arrived.get(message.step, START))
            record = self.records[message.saga]
            claimed = transitions.claim(self.case(record), message.step, message.epoch, "w")
            if claimed.verdict is Verdict.ACT:
                done = transitions.succeed(self.case(claimed.record), message.step, "w", Direction.FORWARD, "null")
                self.records[message.saga] = done.record
                self.send(done.record)

    def look(self, queues: dict[str, Queue]) -> None:
        """What `Recovery.run_once` does."""
        due = [r for r in self.records.values() if r.next_check_at is not None and r.next_check_at <= self.now][:BATCH]
        for record in due:
            change = transitions.examine(self.case(record))
            self.records[record.id] = change.record
            if change.verdict is Verdict.DISPATCH:
                self.send(change.record)
            elif change.verdict is Verdict.OVERDUE:
                step = plan(SAGA, change.record).stages[0].steps[0]
                queue = queues.setdefault(step, Queue(self.timing.redispatch_after))
                sent_at = change.record.sent_at(change.record.step(step))
                saga = Overdue(record.id, step, sent_at)
                advice = queue.advise(saga, self.now)
                if advice is Advice.SEND:
                    self.send_again(saga)
                elif advice is Advice.PROBE and self.send_again(saga, self.now):
                    queue.probe(self.now)
        for step, queue in queues.items():
            if queue.waits and step in self.arrived:
                queue.note(self.arrived[step])
            for saga in queue.take_lost(BATCH):
                self.send_again(saga)
            while queue.wants_probe(self.now) and (oldest := queue.take_oldest()):
                if self.send_again(oldest, self.now):
                    queue.probe(self.now)

    def send_again(self, saga: Overdue, probe: datetime | None = None) -> bool:
        change = transitions.redispatch(self.case(self.records[saga.saga_id]), saga.step, saga.sent_at)
        self.records[saga.saga_id] = change.record
        if change.verdict is Verdict.DISPATCH:
            self.send(change.record, probe)
        return change.verdict is Verdict.DISPATCH

    def run(self, seconds: int, rate: int) -> None:
        for _ in range(seconds):
            self.now += timedelta(seconds=1)
            self.start()
            self.work(rate)
            for queues in self.recoveries:
                self.look(queues)
            waiting = sum(1 for record in self.records.values() if record.status not in FINISHED)
            if waiting >= 100:
                self.worst = max(self.worst, len(self.queue) / waiting)

    @property
    def unfinished(self) -> int:
        return sum(1 for record in self.records.values() if record.status not in FINISHED)


@pytest.mark.parametrize("recoveries", [1, 4])
@pytest.mark.parametrize("away", [180, 3600])
def test_a_backlog_that_nobody_serves_is_left_alone(away: int, recoveries: int) -> None:
    """Many sagas wait for minutes, or an hour. None gets a second message, and all are done as soon as can be."""
    shop = Shop(600, recoveries=recoveries, over=20)
    shop.run(away, rate=0)
    assert shop.worst <= 1.1
    shop.run(65, rate=30)  # 60 s are needed for three messages to each saga
    assert shop.unfinished == 0
    assert shop.worst <= 1.1
    assert shop.taken <= 1.05 * 3 * 600


def test_a_queue_that_is_longer_than_the_wait_makes_no_work() -> None:
    """More comes in than is worked off: each message waits for minutes, and is the only one."""
    shop = Shop(900, recoveries=2, over=200)
    shop.run(480, rate=6)
    assert shop.sent <= 1.02 * 3 * 900
    assert shop.worst <= 1.05
    assert shop.unfinished == 0


def test_a_rate_limit_is_not_used_up_by_second_messages() -> None:
    """Eighteen sagas and six messages a minute: the last is done after nine minutes, not after a quarter of an hour."""
    shop = Shop(18, recoveries=2)
    for _ in range(3 * 18 + 12):
        shop.run(10, rate=0)
        shop.work(1)
    assert shop.unfinished == 0


@pytest.mark.parametrize("recoveries", [1, 4])
def test_a_broker_that_was_flushed_costs_one_wait(recoveries: int) -> None:
    shop = Shop(1000, recoveries=recoveries, over=10)
    shop.run(15, rate=0)
    shop.queue.clear()
    shop.run(15 + 30, rate=200)
    assert shop.unfinished == 0
    assert shop.sent <= 1000 + 3 * 1000 + 50


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_lost_is_found(seed: int) -> None:
    """One message in ten is lost, probes among them; the queue is long, then short."""
    dice = random.Random(seed)
    shop = Shop(300, recoveries=dice.choice([1, 3]), over=dice.choice([1, 60]))
    shop.lose = lambda message: dice.random() < 0.1
    shop.run(dice.choice([0, 120]), rate=0)
    for _ in range(40):
        if not shop.unfinished and len(shop.records) == 300:
            break
        shop.run(120, rate=dice.choice([1, 3, 50]))
    assert shop.unfinished == 0
    assert shop.worst <= 1.3  # what was lost was in no queue, and is sent once more


def test_a_new_epoch_for_each_dispatch_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As version 0.1 had it: what is sent again makes stale what waits."""
    real = transitions.redispatch

    def stale(case: transitions.Case, *rest: Any) -> transitions.Change:
        change = real(case, *rest)
        return replace(change, record=replace(change.record, epoch=change.record.epoch + 1))

    monkeypatch.setattr(transitions, "redispatch", stale)
    monkeypatch.setattr(Queue, "wants_probe", lambda self, now: True)
    shop = Shop(600, over=20)
    shop.run(180, rate=0)
    shop.run(65, rate=30)
    assert shop.worst > 1.2
    assert shop.unfinished > 300
