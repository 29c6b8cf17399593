"""Schedules on every database: what recovery, of any number of workers at once, makes of their ticks."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from sqlalchemy import event, select, update

from sagas import (
    ConfigurationError,
    DuplicateName,
    NotAllowed,
    Pivot,
    Saga,
    Sagas,
    SagaStatus,
    Schedule,
    SqlStore,
    Step,
)
from sagas.operations import Operations
from sagas.plan import Plan
from sagas.schedule_operations import ScheduleAction, ScheduleOperations
from sagas.stores import audit, schema
from sagas.stores import schedules as stored
from sagas.testing.memory import MemoryStore
from tests.databases import database_url


@dataclass
class Day:
    number: int


@pytest.fixture(scope="module", params=["sqlite", "postgres", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    found = database_url(request, request.param, tmp_path_factory.mktemp("schedules"))
    store = SqlStore(found)
    store.upgrade()
    store.engine.dispose()
    return str(found)


class Clock:
    """The database's time, moved by the test. It begins at a full hour."""

    def __init__(self) -> None:
        self.now = datetime(2026, 5, 1, 11, 59, tzinfo=UTC)

    def later(self, **duration: float) -> datetime:
        self.now += timedelta(**duration)
        return self.now


class Shop:
    """An app with one schedule, every hour, whose worker is this process. What it dispatches is only noted."""

    def __init__(self, url: str, clock: Clock, **options: Any) -> None:
        self.store = SqlStore(url)
        self.store.now = lambda: clock.now  # type: ignore[method-assign]
        self.saga = options.pop("saga", None) or Saga("bill", Step("a", lambda: 1, compensation=lambda: None))
        self.schedule = Schedule("hourly", self.saga, **{"cron": "0 * * * *", **options})
        self.app = Celery("shop", broker="memory://", set_as_current=False)
        self.sagas = Sagas(self.app, self.store, [self.saga], schedules=[self.schedule])
        self.dispatched: list[str] = []
        self.sagas.canvas.dispatch = self._dispatch  # type: ignore[method-assign]
        self.operations = ScheduleOperations(Operations(self.sagas))

    def _dispatch(self, plan: Plan | None, *, probe: Any = None, **_: Any) -> None:
        if plan is not None:
            self.dispatched.append(plan.saga_id)

    def look(self) -> None:
        self.sagas.scheduler.run_once()

    def ticks(self) -> list[str]:
        """What became of each tick, oldest first."""
        found = self.operations.ticks("hourly", limit=10_000)
        return [f"{tick.at:%H:%M} {tick.outcome}" for tick in reversed(found)]

    def end(self, status: SagaStatus = SagaStatus.COMPLETED) -> None:
        """Let all sagas have ended."""
        with self.store.engine.begin() as connection:
            connection.execute(update(schema.sagas).values(status=status.value, next_check_at=None))

    def act(self, action: str, reason: str = "month end") -> Any:
        return self.operations.act(ScheduleAction(action), "hourly", actor="ann", reason=reason)

    def started(self) -> list[str]:
        return sorted(saga.key for saga in self.store.queries.select(limit=10_000))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(url: str, clock: Clock) -> Iterator[Callable[..., Shop]]:
    made: list[Shop] = []

    def shop(**options: Any) -> Shop:
        made.append(Shop(url, clock, **options))
        return made[-1]

    first = shop()
    with first.store.engine.begin() as connection:
        for table in (schema.ticks, schema.schedules, schema.audit, schema.sagas):
            connection.execute(table.delete())
    yield shop
    for each in made:
        each.store.engine.dispose()
        each.app.close()


def test_a_tick_starts_one_saga_in_one_transaction(make: Callable[..., Shop], clock: Clock) -> None:
    day = Saga("day", Step("a", lambda number: 1, compensation=None), input=Day)
    shop = make(saga=day, input=lambda tick: Day(tick.hour), timezone="Europe/Vienna")
    shop.look()
    assert shop.ticks() == []  # its first tick is the next one
    clock.later(minutes=1)
    shop.look()
    shop.look()
    [tick] = shop.operations.ticks("hourly")
    assert tick.saga_id is not None
    record = shop.store.load(tick.saga_id)
    assert (record.name, record.key, record.input) == ("day", "hourly@2026-05-01T12:00:00Z", '{"number":14}')
    assert (tick.at, tick.decided_at, tick.outcome, tick.why) == (clock.now, clock.now, "STARTED", "")
    assert shop.dispatched == [tick.saga_id]


def test_ticks_are_caught_up_as_the_schedule_says(make: Callable[..., Shop], clock: Clock) -> None:
    shop = make()
    shop.look()
    clock.later(hours=3)
    shop.look()
    assert shop.ticks() == ["12:00 MISSED", "13:00 MISSED", "14:00 STARTED"]
    assert next(tick.why for tick in shop.operations.ticks("hourly")).startswith("0:59:00 late")


def test_all_of_them_one_after_another(make: Callable[..., Shop], clock: Clock) -> None:
    shop = make(catch_up="all")
    shop.look()
    clock.later(hours=3)
    for expected in (1, 2, 3):
        shop.look()
        shop.look()
        assert len(shop.ticks()) == expected
        shop.end()
    shop.look()
    assert shop.ticks() == ["12:00 STARTED", "13:00 STARTED", "14:00 STARTED"]


@pytest.mark.parametrize("status", [SagaStatus.RUNNING, SagaStatus.STUCK, SagaStatus.COMPENSATING])
def test_a_tick_is_skipped_while_a_saga_runs(make: Callable[..., Shop], clock: Clock, status: SagaStatus) -> None:
    shop = make()
    shop.look()
    clock.later(minutes=1)
    shop.look()
    shop.end(status)
    clock.later(hours=1)
    shop.look()
    shop.end()
    clock.later(hours=1)
    shop.look()
    assert shop.ticks() == ["12:00 STARTED", "13:00 SKIPPED", "14:00 STARTED"]


def test_a_tick_waits_for_the_saga_before_it(make: Callable[..., Shop], clock: Clock) -> None:
    shop = make(overlap="queue")
    shop.look()
    for _ in range(3):
        clock.later(hours=1)
        shop.look()
    assert shop.ticks() == ["12:00 STARTED", "13:00 QUEUED", "14:00 SKIPPED"]
    shop.end(SagaStatus.COMPENSATED)
    shop.look()
    shop.look()
    assert shop.ticks() == ["12:00 STARTED", "13:00 STARTED", "14:00 SKIPPED"]
    assert shop.started() == ["hourly@2026-05-01T12:00:00Z", "hourly@2026-05-01T13:00:00Z"]
    assert len(shop.dispatched) == 2


def test_a_saga_is_cancelled_and_waited_for(make: Callable[..., Shop], clock: Clock) -> None:
    two = Saga("two", *(Step(name, lambda: 1, compensation=lambda: None) for name in "ab"))
    shop = make(saga=two, overlap="cancel")
    shop.look()
    clock.later(minutes=1)
    shop.look()
    [first] = shop.dispatched
    shop.sagas.orchestrator.perform(first, "a", 1)
    for _ in range(2):
        clock.later(hours=1)
        shop.look()
        shop.look()
    assert shop.ticks() == ["12:00 STARTED", "13:00 SKIPPED", "14:00 QUEUED"]  # 13:00 waited until 14:00 came
    record = shop.store.load(first)
    assert record.status is SagaStatus.COMPENSATING
    entry = shop.store.queries.history(first)[-1]
    assert (entry.actor, entry.what) == ("schedule hourly", "compensation started")
    assert shop.dispatched == [first, first]  # forward, and once back
    shop.sagas.orchestrator.perform(first, "a", record.epoch)
    shop.look()
    assert shop.store.load(first).status is SagaStatus.COMPENSATED
    assert shop.ticks() == ["12:00 STARTED", "13:00 SKIPPED", "14:00 STARTED"]


def test_a_saga_past_its_pivot_is_waited_for(make: Callable[..., Shop], clock: Clock) -> None:
    saga = Saga("charge", Pivot("a", lambda: 1), Step("b", lambda: 1))
    shop = make(saga=saga, overlap="cancel")
    shop.look()
    clock.later(minutes=1)
    shop.look()
    [first] = shop.dispatched
    shop.sagas.orchestrator.perform(first, "a", 1)
    clock.later(hours=1)
    shop.look()
    assert shop.ticks() == ["12:00 STARTED", "13:00 QUEUED"]
    assert shop.store.load(first).status is SagaStatus.RUNNING
    shop.sagas.orchestrator.perform(first, "b", 1)
    shop.look()
    assert shop.ticks() == ["12:00 STARTED", "13:00 STARTED"]


def test_ticks_of_a_paused_schedule_are_skipped(make: Callable[..., Shop], clock: Clock) -> None:
    shop = make()
    shop.act("pause", "the bank is away")  # before any worker has seen it
    clock.later(hours=2)
    shop.look()
    assert shop.ticks() == ["12:00 SKIPPED", "13:00 SKIPPED"]
    assert shop.operations.ticks("hourly")[0].why == "the schedule is paused by ann: the bank is away"
    with pytest.raises(NotAllowed, match="paused already, by ann: the bank is away"):
        shop.act("pause")
    shop.act("resume")
    with pytest.raises(NotAllowed, match="not paused"):
        shop.act("resume")
    clock.later(hours=1)
    shop.look()
    assert shop.ticks() == ["12:00 SKIPPED", "13:00 SKIPPED", "14:00 STARTED"]
    done = [(entry.what, entry.actor, entry.reason, entry.count) for entry in audit.audit(shop.store)]
    assert done == [("resume schedule", "ann", "month end", 0), ("pause schedule", "ann", "the bank is away", 0)]


def test_a_start_by_hand(make: Callable[..., Shop], clock: Clock) -> None:
    shop = make()
    tick = shop.act("run")
    assert (tick.outcome, tick.actor, tick.why) == ("STARTED", "ann", "by hand: month end")
    assert shop.dispatched == [tick.saga_id]
    with pytest.raises(
        NotAllowed, match=f"saga {tick.saga_id} of an earlier tick is PENDING, and its overlap is 'skip'"
    ):
        shop.act("run")
    with pytest.raises(NotAllowed, match="say why"):
        shop.act("run", " ")
    shop.act("pause")
    shop.end()
    clock.later(seconds=1)
    assert shop.act("run").outcome == "STARTED"  # also of a paused one
    clock.later(seconds=59)
    shop.look()
    assert shop.ticks() == ["11:59 STARTED", "11:59 STARTED", "12:00 SKIPPED"]
    assert [entry.what for entry in audit.audit(shop.store)].count("run schedule") == 2
    with pytest.raises(NotAllowed, match="no schedule 'daily'; there is: hourly"):
        shop.operations.act(ScheduleAction.RUN, "daily", actor="ann", reason="x")


def test_a_start_by_hand_waits_too(make: Callable[..., Shop], clock: Clock) -> None:
    shop = make(overlap="queue")
    shop.act("run")
    clock.later(seconds=1)
    waits = shop.act("run")
    assert waits.outcome == "QUEUED"
    shop.end()
    shop.look()
    [tick, _] = shop.operations.ticks("hourly")
    assert (tick.at, tick.outcome, tick.actor) == (waits.at, "STARTED", "ann")


@pytest.mark.parametrize(("given", "says"), [("boom", "ZeroDivisionError"), ("wrong", "InvalidInput: saga 'day'")])
def test_a_tick_whose_input_is_wrong_says_so(make: Callable[..., Shop], clock: Clock, given: str, says: str) -> None:
    day = Saga("day", Step("a", lambda number: 1, compensation=None), input=Day)
    broken = True

    def input_(tick: datetime) -> Any:
        if not broken:
            return Day(1)
        return 1 / 0 if given == "boom" else {"nummer": 1}

    shop = make(saga=day, input=input_)
    shop.look()
    clock.later(hours=1)
    shop.look()
    broken = False
    clock.later(hours=1)
    shop.look()
    assert shop.ticks() == ["12:00 FAILED", "13:00 STARTED"]
    failed = shop.operations.ticks("hourly")[1]
    assert failed.why.startswith(says)
    assert failed.saga_id is None
    assert shop.started() == ["hourly@2026-05-01T13:00:00Z"]


def test_the_definition_of_the_worker_that_started_last_holds(make: Callable[..., Shop], clock: Clock) -> None:
    old, new = make(), make(cron="30 * * * *")
    old.look()
    clock.later(hours=2, minutes=10)
    new.look()
    assert old.ticks() == ["12:00 MISSED", "13:00 MISSED", "14:00 MISSED"]
    for _ in range(60):
        clock.later(minutes=1)
        old.look()  # it leaves the schedule to the new ones
        new.look()
    assert old.ticks()[3:] == ["14:30 STARTED"]
    old.end()
    for _ in range(60):  # the new ones are gone: an old one takes over, for its own times
        clock.later(minutes=1)
        old.look()
    assert old.ticks()[4:] == ["16:00 STARTED"]


def test_workers_say_which_schedules_they_have(make: Callable[..., Shop], clock: Clock) -> None:
    shop = make()
    [view] = shop.operations.list()
    assert (view.state, view.abandoned, view.allowed) == (None, True, ("pause", "run"))
    for _ in range(3):
        shop.look()
        shop.look()
        clock.later(seconds=170)
        assert not shop.operations.list()[0].abandoned
    clock.later(seconds=170)
    assert shop.operations.list()[0].abandoned


def test_a_clock_that_was_ahead_costs_no_tick_and_starts_none_twice(make: Callable[..., Shop], clock: Clock) -> None:
    shop = make(overlap="allow", catch_up="all")
    shop.look()
    before = clock.now
    clock.later(hours=5)
    shop.look()
    assert len(shop.ticks()) == 5
    clock.now = before + timedelta(minutes=10)  # it was wrong, and is set back
    for _ in range(20):
        clock.later(minutes=20)
        shop.look()
    assert shop.ticks() == [f"{hour}:00 STARTED" for hour in range(12, 19)]
    assert len(shop.started()) == 7


def test_old_ticks_are_purged(make: Callable[..., Shop], clock: Clock) -> None:
    shop = make(overlap="queue")
    shop.look()
    clock.later(hours=5)
    shop.look()  # four are missed, one runs
    clock.later(hours=1)
    shop.look()  # one waits
    clock.later(days=30)
    assert stored.count_old(shop.store, timedelta(days=7)) == 4
    assert stored.count_old(shop.store, timedelta(days=7), "another") == 0
    assert list(stored.purge(shop.store, timedelta(days=7), "another", reason="policy")) == []
    assert list(stored.purge(shop.store, timedelta(days=7), reason="policy", actor="ann")) == [4]
    assert shop.ticks() == ["16:00 STARTED", "17:00 QUEUED"]
    [entry] = audit.audit(shop.store)
    assert (entry.what, entry.count, entry.actor) == ("purge", 4, "ann")
    shop.end()
    shop.look()  # the one that waited starts; the many since then are missed
    assert len(shop.ticks()) > 700


def test_the_schedule_of_code_that_is_gone_is_purged_with_its_ticks(make: Callable[..., Shop], clock: Clock) -> None:
    shop = make()
    shop.look()
    clock.later(hours=5)
    shop.look()
    shop.end()
    clock.later(days=30)
    list(stored.purge(shop.store, timedelta(days=7), reason="policy"))
    assert stored.states(shop.store) == []


@pytest.mark.parametrize(
    ("store", "known", "schedules", "error", "says"),
    [
        (SqlStore, [], ["hourly"], ConfigurationError, "not registered with this app"),
        (SqlStore, ["saga"], ["hourly", "again"], DuplicateName, "already a schedule 'hourly'"),
        (lambda _: MemoryStore(), ["saga"], ["hourly"], ConfigurationError, "needs a SqlStore"),
        (SqlStore, ["saga"], ["saga"], ConfigurationError, "not a Schedule"),
    ],
)
def test_what_a_schedule_needs(store: Any, known: list[str], schedules: list[str], error: Any, says: str) -> None:
    saga = Saga("bill", Step("a", lambda: 1, compensation=None))
    there: dict[str, Any] = {
        "saga": saga,
        "hourly": Schedule("hourly", saga, cron="0 * * * *"),
        "again": Schedule("hourly", saga, cron="1 * * * *"),
    }
    app = Celery("shop", broker="memory://", set_as_current=False)
    with pytest.raises(error, match=says):
        Sagas(app, store("sqlite://"), [there[name] for name in known], schedules=[there[name] for name in schedules])


# -- several workers at once ------------------------------------------------------------------------------------------

WORKERS, TICKS = 6, 12


def race(make: Callable[..., Shop], clock: Clock, **options: Any) -> tuple[Counter[str], Sequence[Shop]]:
    """Let workers look all at once, tick by tick. Return how many sagas each tick started."""
    shops = [make(**options) for _ in range(WORKERS)]

    def next_hour() -> None:
        clock.later(hours=1)

    barrier = threading.Barrier(WORKERS, action=next_hour)

    def work(shop: Shop) -> None:
        for _ in range(TICKS):
            barrier.wait(30)
            shop.look()
            shop.look()

    with ThreadPoolExecutor(WORKERS) as executor:
        for done in [executor.submit(work, shop) for shop in shops]:
            done.result()
    return Counter(key.split("#")[0] for key in shops[0].started()), shops


def test_any_number_of_workers_start_a_tick_once(make: Callable[..., Shop], clock: Clock) -> None:
    starts, shops = race(make, clock, overlap="allow")
    assert set(starts.values()) == {1}
    assert len(starts) == TICKS - 1  # at the first look it was declared
    assert shops[0].ticks() == [f"{tick % 24:02}:00 STARTED" for tick in range(13, 13 + TICKS - 1)]
    dispatched = [saga_id for shop in shops for saga_id in shop.dispatched]
    assert len(dispatched) == len(set(dispatched)) == TICKS - 1


def test_any_number_of_workers_overlap_as_one(make: Callable[..., Shop], clock: Clock) -> None:
    starts, shops = race(make, clock, overlap="queue")
    assert set(starts.values()) == {1}
    assert [tick.split()[1] for tick in shops[0].ticks()] == ["STARTED", "QUEUED"] + ["SKIPPED"] * (TICKS - 3)


def test_the_race_finds_a_store_that_lets_two_decide(
    make: Callable[..., Shop], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bug that the tests above are there for: neither a compare-and-set nor a unique key."""

    def careless_set(connection: Any, before: Any, after: Any) -> bool:
        connection.execute(update(schema.schedules).values(next_at=after.next_at))
        return True

    ask = stored.running

    def slowly(store: SqlStore, name: str) -> Any:
        found = ask(store, name)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(stored, "running", slowly)
    monkeypatch.setattr(stored, "_compare_and_set", careless_set)
    monkeypatch.setattr(stored, "_write", lambda connection, ticks: {tick.at for tick in ticks})
    monkeypatch.setattr(Schedule, "key_of", lambda self, tick: f"{tick}#{uuid4()}")
    starts, _ = race(make, clock, overlap="allow")
    assert max(starts.values()) > 1


def test_a_worker_that_dies_in_the_middle_leaves_nothing(make: Callable[..., Shop], clock: Clock) -> None:
    shop = make()
    shop.look()
    clock.later(minutes=1)

    class Died(BaseException):
        pass

    def die(connection: Any) -> None:
        raise Died

    event.listen(shop.store.engine, "commit", die)
    with pytest.raises(Died):
        shop.look()
    event.remove(shop.store.engine, "commit", die)
    assert (shop.ticks(), shop.started(), shop.dispatched) == ([], [], [])
    make().look()
    assert shop.ticks() == ["12:00 STARTED"]
    with shop.store.engine.connect() as connection:
        [saga_id] = connection.execute(select(schema.ticks.c.saga_id)).scalars()
    assert shop.store.load(saga_id).status is SagaStatus.PENDING
