"""Recovery, one look at a time: what goes wrong with one saga keeps it from no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from kombu.exceptions import OperationalError

from sagas import (
    Retry,
    Saga,
    SagaHandle,
    Sagas,
    SagaStatus,
    Sleep,
    SqlStore,
    Step,
    StepContext,
    StepStatus,
    StoreUnavailable,
    transitions,
)
from sagas.batches import Batches
from sagas.checkpoints import Direction, HistoryKind
from sagas.observers import Observer
from sagas.plan import Plan
from sagas.stores import schema
from tests.servers import wait_for

REDISPATCH_AFTER = 30.0

BAD = Saga("bad", Step("a", lambda: 1, compensation=None))
GOOD = Saga("good", Step("a", lambda: 1, compensation=None))
NAPS = Saga("naps", Sleep("nap", 60), Step("a", lambda: 1, compensation=None))


class Watched(Observer):
    def __init__(self) -> None:
        self.failed: list[str] = []
        self.sent: list[str] = []

    def recovery_failed(self, saga: str) -> None:
        self.failed.append(saga)

    def recovered(self, dispatched: Any) -> None:
        self.sent += [record.key for record in dispatched]


class Shop:
    """An app whose broker loses what `start` sends, and a clock that the test moves."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        app = Celery("recovery", broker="memory://", set_as_current=False)
        self.store = SqlStore(f"sqlite:///{folder / 'x.db'}")
        self.store.upgrade()
        self.sagas = Sagas(app, self.store, [BAD, GOOD, NAPS], redispatch_after=REDISPATCH_AFTER, batch_size=8)
        BAD._starter = GOOD._starter = NAPS._starter = self.sagas
        self.watched = Watched()
        self.sagas.observers.add(self.watched)
        self._now, self._skipped = self.store.now, timedelta()
        self.dispatched: list[str] = []
        self.messages: list[int] = []  # how many sagas each one carried
        self.refuse: Callable[[Plan], Exception | None] = lambda plan: None
        monkeypatch.setattr(self.store, "now", lambda: self._now() + self._skipped)
        monkeypatch.setattr(self.sagas.canvas, "dispatch", self._dispatch)
        monkeypatch.setattr(self.sagas.canvas.shared, "send_one", self._dispatch_together)

    def _dispatch(self, plan: Plan | None, *, probe: Any = None, **_: Any) -> None:
        if plan:
            if error := self.refuse(plan):
                raise error
            self.dispatched.append(plan.saga_id)
            self.messages.append(1)
            if probe is not None:  # the queue is empty: what is sent arrives at once
                self.store.arrived(f"{plan.saga.name}.{plan.stages[0].steps[0]}", probe)

    def _dispatch_together(self, alike: Sequence[Plan]) -> None:
        for plan in alike:
            if error := self.refuse(plan):
                raise error
        self.dispatched += [plan.saga_id for plan in alike]
        self.messages.append(len(alike))

    def later(self, seconds: float) -> None:
        self._skipped += timedelta(seconds=seconds)

    def look(self) -> int:
        return self.sagas.recovery.run_once()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    made = Shop(tmp_path, monkeypatch)
    yield made
    made.store.engine.dispose()
    made.sagas.app.close()
    BAD._starter = GOOD._starter = NAPS._starter = None


@pytest.mark.parametrize("error", [KeyError("no queue 'typo'"), OperationalError("refused"), OSError("away")], ids=repr)
def test_sagas_that_cannot_be_sent_hold_up_no_other(shop: Shop, error: Exception) -> None:
    bad = [BAD.start(key=f"b{n}") for n in range(40)]
    good = [GOOD.start(key=f"g{n}") for n in range(5)]
    shop.dispatched.clear()
    shop.refuse = lambda plan: error if plan.saga is BAD else None
    shop.later(REDISPATCH_AFTER + 1)
    shop.look()
    shop.look()
    assert sorted(shop.dispatched) == sorted(handle.id for handle in good)
    assert shop.watched.failed.count("bad") >= 40
    for handle in bad:
        record = handle.record
        assert record.error is not None
        assert record.error.startswith("not sent: ")
        assert record.step("a").error == record.error
        assert record.status is SagaStatus.PENDING
        told = [entry.what for entry in shop.store.queries.history(handle.id)]
        assert told == (["not sent"] if isinstance(error, KeyError) else [])
    shop.refuse = lambda plan: None
    for _ in range(3):
        shop.later(2 * REDISPATCH_AFTER + 1)
        while shop.look():
            pass
    assert {handle.id for handle in bad} <= set(shop.dispatched)


def test_a_broker_that_takes_nothing_pauses_recovery(shop: Shop) -> None:
    handle = GOOD.start()
    shop.refuse = lambda plan: OperationalError("refused")
    shop.later(REDISPATCH_AFTER + 1)
    with pytest.raises(OperationalError):
        shop.look()
    assert handle.record.error == "not sent: OperationalError: refused"
    shop.refuse = lambda plan: None
    shop.dispatched.clear()
    shop.later(REDISPATCH_AFTER + 1)
    assert shop.look() == 1  # soon, however long the broker was away
    assert shop.dispatched == [handle.id]


def test_messages_that_are_lost_are_all_sent_again_once_one_of_them_has_arrived(shop: Shop) -> None:
    handles = [GOOD.start(key=str(n)) for n in range(20)]
    shop.dispatched.clear()
    shop.later(REDISPATCH_AFTER + 1)
    assert shop.look() == 20
    assert sorted(shop.dispatched) == sorted(handle.id for handle in handles)
    assert shop.look() == 0
    assert {handle.record.dispatches for handle in handles} == {2}


# -- who shares a message -------------------------------------------------------------------------------------------


def lost(shop: Shop, number: int) -> list[SagaHandle]:
    """Start sagas whose messages are lost, and let the time pass until they are overdue."""
    handles = [GOOD.start(key=str(n)) for n in range(number)]
    shop.dispatched.clear()
    shop.messages.clear()
    shop.later(REDISPATCH_AFTER + 1)
    return handles


def test_what_was_lost_shares_messages_after_the_probe(shop: Shop) -> None:
    handles = lost(shop, 20)
    assert shop.look() == 20
    assert shop.messages == [1, 8, 8, 3]
    assert sorted(shop.watched.sent) == sorted(handle.record.key for handle in handles)


def test_a_second_message_that_is_lost_is_followed_by_one_for_each(shop: Shop) -> None:
    """It may be what kills its workers before they can claim anything, or nobody knows what a batch is."""
    lost(shop, 9)
    shop.look()
    assert shop.messages == [1, 8]
    shop.messages.clear()
    shop.later(2 * REDISPATCH_AFTER + 1)
    assert shop.look() == 9
    assert shop.messages == [1] * 9


def test_those_that_wake_up_together_share_messages(shop: Shop) -> None:
    handles = [NAPS.start(key=str(n)) for n in range(20)]
    shop.later(1)
    while shop.look():
        pass
    shop.messages.clear()
    shop.later(61)
    assert shop.look() == 20
    assert shop.messages == [8, 8, 4]
    assert {handle.record.dispatches for handle in handles} == {2}


@pytest.mark.parametrize("outcome", ["failed", "lost"])
def test_one_that_did_not_come_through_has_a_message_to_itself(shop: Shop, outcome: str) -> None:
    """It may be what its worker died of: it must not take others along."""
    orchestrator = shop.sagas.orchestrator
    handles = [GOOD.start(key=str(n)) for n in range(6)]
    failure = transitions.Failure(transitions.Outcome.FAILED, "broken")
    for handle in handles[:3]:
        orchestrator.change(handle.id, lambda case: transitions.claim(case, "a", 1, "w"))
        if outcome == "failed":
            orchestrator.change(handle.id, lambda case: transitions.fail(case, "a", "w", Direction.FORWARD, failure))
    shop.dispatched.clear()
    shop.messages.clear()
    shop.later(REDISPATCH_AFTER + 1)
    while shop.look():
        pass
    assert sorted(shop.messages) == [1] * 4 + [2]
    assert sorted(shop.dispatched) == sorted(handle.id for handle in handles)


def test_batches_of_one_are_messages_of_their_own(shop: Shop) -> None:
    shop.sagas.canvas.batches = Batches(1, 1)
    lost(shop, 5)
    assert shop.look() == 5
    assert shop.messages == [1] * 5


def test_sagas_that_are_not_alike_share_nothing(shop: Shop) -> None:
    for n in range(4):
        BAD.start(key=str(n))
    lost(shop, 4)
    assert shop.look() == 8
    assert sorted(shop.messages) == [1, 1, 3, 3]


def test_one_that_is_refused_keeps_its_neighbours_from_nothing(shop: Shop) -> None:
    handles = lost(shop, 20)
    bad = handles[10]
    shop.refuse = lambda plan: ValueError("too large") if plan.saga_id == bad.id else None
    assert shop.look() == 19
    assert sorted(shop.dispatched) == sorted(handle.id for handle in handles if handle is not bad)
    assert bad.record.error == "not sent: ValueError: too large"
    assert [handle.id for handle in handles if handle.record.error] == [bad.id]
    assert shop.watched.failed == ["good"]


def test_a_broker_that_goes_away_is_told_to_each_that_was_to_share_a_message(shop: Shop) -> None:
    handles = lost(shop, 20)
    answered = iter([None])  # the probe
    shop.refuse = lambda plan: next(answered, OperationalError("refused"))
    assert shop.look() == 1
    sent = shop.dispatched[:]
    for handle in handles:
        error = None if handle.id in sent else "not sent: OperationalError: refused"
        assert handle.record.error == error
    assert len(shop.watched.failed) == 19
    shop.refuse = lambda plan: None
    shop.later(REDISPATCH_AFTER + 1)
    while shop.look():
        pass
    assert sorted(shop.dispatched) == sorted(handle.id for handle in handles)


def test_a_database_that_is_gone_leaves_nobody_unsent_that_was_held_back(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost(shop, 10)
    redispatch, calls = shop.sagas.orchestrator.redispatch, iter(range(100))

    def flaky(*given: Any) -> Any:
        if next(calls) > 4:
            raise StoreUnavailable("away")
        return redispatch(*given)

    monkeypatch.setattr(shop.sagas.orchestrator, "redispatch", flaky)
    with pytest.raises(StoreUnavailable):
        shop.look()
    assert shop.messages == [1, 4]


def test_messages_that_wait_are_left_alone(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop.store, "arrived", lambda *_: None)  # the queue is long: the probe is still in it
    handles = [GOOD.start(key=str(n)) for n in range(20)]
    shop.dispatched.clear()
    for _ in range(4):
        shop.later(REDISPATCH_AFTER + 1)
        shop.look()
    assert len(shop.dispatched) <= 3
    assert {handle.record.epoch for handle in handles} == {1}
    assert all(handle.record.idle_checks >= 2 for handle in handles if handle.record.dispatches == 1)


def test_a_saga_that_cannot_be_read_holds_up_no_other(shop: Shop) -> None:
    bad, good = BAD.start(), GOOD.start()
    with shop.store.engine.begin() as connection:
        connection.execute(schema.sagas.update().where(schema.sagas.c.id == bad.id).values(input="~aesgcm:gone:xx"))
    shop.dispatched.clear()
    shop.later(REDISPATCH_AFTER + 1)
    shop.look()
    assert shop.dispatched == [good.id]
    seen = shop.store.queries.summary(bad.id)
    assert "is encrypted, and this store has no codec" in (seen.error or "")
    assert shop.watched.failed == ["bad"]


def test_a_definition_that_is_missing_holds_up_no_other(shop: Shop) -> None:
    bad, good = BAD.start(), GOOD.start()
    del shop.sagas.orchestrator.sagas["bad", 1]
    shop.dispatched.clear()
    shop.later(REDISPATCH_AFTER + 1)
    shop.look()
    assert shop.dispatched == [good.id]
    assert "the running code has no saga of this name" in (bad.record.error or "")
    assert shop.watched.failed == ["bad"]


def away(_saga_ids: Any) -> Any:
    raise StoreUnavailable("away")


def test_a_database_that_does_not_answer_once_costs_one_saga_its_turn(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        GOOD.start(key=str(n))
    shop.dispatched.clear()
    shop.later(REDISPATCH_AFTER + 1)
    examine, calls = shop.sagas.orchestrator.examine, iter(range(100))

    def flaky(saga_id: str) -> Any:
        if next(calls) == 1:
            raise StoreUnavailable("away")
        return examine(saga_id)

    monkeypatch.setattr(shop.store, "summaries", away)
    monkeypatch.setattr(shop.sagas.orchestrator, "examine", flaky)
    assert shop.look() == 4


def test_a_database_that_is_gone_ends_the_look(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(5):
        GOOD.start(key=str(n))
    shop.later(REDISPATCH_AFTER + 1)
    tried = []

    def gone(saga_id: str) -> Any:
        tried.append(saga_id)
        raise StoreUnavailable("away")

    monkeypatch.setattr(shop.store, "summaries", away)
    monkeypatch.setattr(shop.sagas.orchestrator, "examine", gone)
    with pytest.raises(StoreUnavailable):
        shop.look()
    assert len(tried) == 3


# -- late ends, through the store and a worker ----------------------------------------------------------------------


@pytest.mark.parametrize("end", ["raises", "too large", "wrong type"])
def test_an_action_that_was_given_up_and_ends_badly_is_undone(tmp_path: Path, end: str) -> None:
    charged: set[str] = set()
    refunds: list[str] = []
    over = threading.Event()

    def charge(step: StepContext) -> int:
        over.wait(30)
        charged.add(step.idempotency_key)
        if end == "raises":
            raise TimeoutError("read timed out")
        return "x" * 2_000_000 if end == "too large" else object()  # type: ignore[return-value]

    def refund(step: StepContext) -> None:
        refunds.append(step.idempotency_key)
        charged.discard(step.idempotency_key)

    pay = Saga("pay", Step("charge", charge, compensation=refund, timeout=1, retry=Retry(max_attempts=1)))
    app = Celery("late", broker="memory://", set_as_current=False)
    app.conf.broker_transport_options = {"polling_interval": 0.01}
    store = SqlStore(f"sqlite:///{tmp_path / 'late.db'}")
    store.upgrade()
    Sagas(app, store, [pay], lease=1, redispatch_after=2, recovery_interval=0.2)
    with start_worker(app, pool="threads", concurrency=2, perform_ping_check=False):
        handle = pay.start()
        try:
            assert handle.wait(20) is SagaStatus.COMPENSATED
            assert len(refunds) == 1
        finally:
            over.set()
        wait_for(lambda: len(refunds) == 2, 20, "it is undone once more")
        wait_for(lambda: handle.status is SagaStatus.COMPENSATED, 20, "the saga is at its end")
    assert not charged
    assert handle.record.step("charge").status is StepStatus.COMPENSATED
    assert HistoryKind.LATE_OUTCOME in [entry.what for entry in store.queries.history(handle.id)]
    store.engine.dispose()
