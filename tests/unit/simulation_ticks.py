"""Schedules in a world where workers look at the same time, die in between, and the clock jumps: real rules, real SQL.

Each worker does what `scheduler` does at a pass, cut into pieces so that anything can come between. The database is
SQLite in memory.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select, update

from sagas import Saga, SagaStatus, Schedule, SqlStore, Step
from sagas.checkpoints import FINISHED
from sagas.creation import Limits, new_record
from sagas.schedules import Overlap
from sagas.stores import schedules as stored
from sagas.stores import schema
from sagas.ticks import Decision, ScheduleState, TickOutcome, decide
from tests.unit.simulation import Violation

START = datetime(2026, 5, 1, 11, 59, tzinfo=UTC)

BILL = Saga("bill_all", Step("bill", lambda: None, compensation=None))
CRON = "*/10 * * * *"
SCHEDULES = [
    Schedule("nightly", BILL, cron=CRON, overlap=overlap, catch_up=catch_up)
    for overlap in ("skip", "queue", "allow", "cancel")
    for catch_up in ("none", "latest", "all")
]


class TickWorld:
    def __init__(self, seed: int, store: SqlStore) -> None:
        self.dice = random.Random(seed)
        self.store = store
        self.now = START
        self.schedule = self.dice.choice(SCHEDULES)
        self.workers: list[Iterator[None]] = []
        self.story: list[str] = []
        with store.engine.begin() as connection:
            for table in (schema.ticks, schema.schedules, schema.sagas):
                connection.execute(table.delete())
        stored.declare(
            store,
            ScheduleState(
                name=self.schedule.name, saga=BILL.name, cron=CRON, timezone="UTC",
                next_at=self.schedule.next_after(START), seen_at=START,
            ),
        )  # fmt: skip

    def tell(self, line: str) -> None:
        self.story.append(f"{self.now:%H:%M:%S}  {line}")

    def wrong(self, what: str) -> Violation:
        return Violation(what + "\n" + "\n".join(self.story[-40:]))

    @property
    def state(self) -> ScheduleState:
        [state] = stored.states(self.store, [self.schedule.name])
        return state

    # -- a worker ---------------------------------------------------------------------------------------------------

    def look(self) -> Iterator[None]:
        state, now = self.state, self.now
        yield
        if abs(now - state.seen_at) > timedelta(minutes=1):
            if state.next_at > (following := self.schedule.next_after(now)):  # the clock was ahead, and was set back
                back = Decision(state=replace(state, next_at=following), ticks=())
                if stored.settle(self.store, state, back, self.start) is not None:
                    self.tell(f"the next tick is {following:%H:%M} again")
                return
            stored.confirm(self.store, state, now)
            yield
        running = stored.running(self.store, self.schedule.name)
        yield
        decision = decide(self.schedule, state, now, running)
        yield
        if decision is None:
            return
        if decision.cancel is not None:
            self.end(decision.cancel, SagaStatus.COMPENSATED)
            yield
        after = stored.settle(self.store, state, decision, self.start)
        if after is not None:
            self.tell("; ".join(f"{tick.at:%H:%M} {tick.outcome}" for tick in decision.ticks))
        self.judge()

    def start(self, connection: Connection, tick: datetime) -> str:
        limits = Limits(max_payload=1000, redispatch_after=30)
        key = f"{tick.isoformat()} {self.dice.random()}"  # that two are not the same saga is not to help here
        record = new_record(self.store, limits, BILL, None, key=key, correlation_id=None)
        self.store.insert(record, connection)
        return record.id

    def end(self, saga_id: str, status: SagaStatus) -> None:
        with self.store.engine.begin() as connection:
            connection.execute(update(schema.sagas).where(schema.sagas.c.id == saga_id).values(status=status.value))

    # -- what can happen --------------------------------------------------------------------------------------------

    def anything(self) -> None:
        match self.dice.choices(["advance", "arrive", "die", "clock", "long", "back", "end"], [30, 8, 2, 8, 1, 1, 4])[
            0
        ]:
            case "advance" if self.workers:
                worker = self.dice.choice(self.workers)
                if next(worker, self) is self:
                    self.workers.remove(worker)
            case "arrive" if len(self.workers) < 4:
                self.workers.append(self.look())
            case "die" if self.workers:
                self.workers.remove(self.dice.choice(self.workers))
            case "clock":
                self.now += timedelta(minutes=self.dice.choice([0.2, 1, 5, 10]))
            case "long":
                self.now += timedelta(minutes=45)
            case "back":
                self.now -= timedelta(minutes=self.dice.choice([1, 15, 40]))
                self.tell("the clock is set back")
            case "end" if (running := stored.running(self.store, self.schedule.name)) is not None:
                self.end(running.saga_id, SagaStatus.COMPLETED)
                self.tell("the saga ends")

    # -- what must be true ------------------------------------------------------------------------------------------

    def judge(self) -> None:
        sagas, ticks = schema.sagas.c, schema.ticks.c
        with self.store.engine.connect() as connection:
            keys = connection.execute(select(sagas.key)).scalars().all()
            unfinished = select(func.count()).where(sagas.status.not_in(sorted(FINISHED)))
            count = connection.execute(unfinished).scalar_one()
            rows: Any = connection.execute(select(ticks.at, ticks.outcome)).all()
        twice = [tick for tick, times in Counter(key.split()[0] for key in keys).items() if times > 1]
        if twice:
            raise self.wrong(f"the tick {twice[0]} was started twice")
        if count > 1 and self.schedule.overlap is not Overlap.ALLOW:
            raise self.wrong(f"{count} sagas run at a time, and overlap is {self.schedule.overlap}")
        outcomes = {at: TickOutcome(outcome) for at, outcome in rows}
        started = {at for at, outcome in outcomes.items() if outcome is TickOutcome.STARTED}
        if len(started) != len(keys):
            raise self.wrong(f"{len(keys)} sagas were started, and {len(started)} ticks say so")
        state = self.state
        at = self.schedule.next_after(START)
        while at < state.next_at:
            if at not in outcomes:
                raise self.wrong(f"nothing is known of the tick {at}, and the next one is {state.next_at}")
            at = self.schedule.next_after(at)
        queued = {at for at, outcome in outcomes.items() if outcome is TickOutcome.QUEUED}
        if queued != ({state.waiting} - {None}):
            raise self.wrong(f"the ticks {queued} are QUEUED, and the schedule knows of {state.waiting}")


def simulate(seed: int, store: SqlStore, length: int = 120) -> TickWorld:
    """Play one schedule. Raises `Violation` with its story."""
    world = TickWorld(seed, store)
    try:
        for _ in range(length):
            world.anything()
    except AssertionError as error:
        raise Violation(f"seed {seed}, {world.schedule!r}, {world.schedule.catch_up}: {error}") from error
    return world


if __name__ == "__main__":
    database = SqlStore("sqlite:///:memory:")
    database.upgrade()
    print("\n".join(simulate(int(sys.argv[1]), database).story))
