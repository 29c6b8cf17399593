"""What becomes of sagas that one call started: on workers, inline, eagerly, and where the broker is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

import pytest
from celery import Celery
from kombu.messaging import Producer
from sqlalchemy.orm import Session

from sagas import (
    Parallel,
    Retry,
    Saga,
    SagaHandle,
    SagaNotFound,
    SagaRecord,
    Sagas,
    SagaStatus,
    SqlStore,
    StartStatus,
    Step,
    TerminalError,
)
from sagas.causes import Cause, within
from sagas.checkpoints import HistoryEntry
from sagas.observers import Attempt, Handling, Observer, Start
from sagas.testing import Inline
from tests.conftest import MakeRig
from tests.rig import Faults
from tests.servers import free_port


def all_of(results: Any) -> list[SagaHandle]:
    return [result.handle for result in results if result.handle is not None]


@pytest.mark.parametrize(("broker", "database"), [("redis", "postgres"), ("rabbitmq", "mariadb")])
def test_workers_run_them(make_rig: MakeRig, broker: str, database: str) -> None:
    rig = make_rig(broker, database)
    rig.worker()
    plain = all_of(rig.saga("line").start_many((Faults(), f"o-{n}") for n in range(20)))
    wide = all_of(rig.saga("full").start_many([Faults(), Faults()]))
    assert len({*plain, *wide}) == 22
    waited: list[bool] = []  # for recovery
    for handle in (*plain, *wide):
        rig.assert_done(handle, 60)
        waited.append(handle.record.dispatches > 1)
    assert sum(waited) < 11


def test_a_broker_that_is_away_is_asked_once(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr("sagas.canvas.logger.warning", lambda text, *_: warned.append(text))
    app = Celery("t", broker=f"redis://127.0.0.1:{free_port()}/0", set_as_current=False)
    app.conf.broker_transport_options = {"socket_connect_timeout": 1}
    saga = Saga("away", Step("a", lambda: 1, compensation=None))
    Sagas(app, store, [saga])
    before = time.monotonic()
    results = saga.start_many(None for _ in range(50))
    assert time.monotonic() - before < 15  # each of them would take a second
    assert {result.status for result in results} == {StartStatus.STARTED}
    assert all(handle.record.next_check_at is not None for handle in all_of(results))
    assert warned == ["recovery will dispatch the sagas that were not sent: %r"]
    app.close()


@pytest.fixture
def make(store: SqlStore) -> Callable[..., Sagas]:
    def make(*sagas: Saga, eager: bool = True, **options: Any) -> Sagas:
        app = Celery("t", broker="memory://", set_as_current=False)
        app.conf.task_always_eager = eager
        app.conf.task_eager_propagates = True
        return Sagas(app, store, sagas, **options)

    return make


def pay(n: int) -> int:
    if n == 1:
        raise TerminalError("declined")
    if n == 2:
        raise ZeroDivisionError
    return n


class Number(TypedDict):
    n: int


def payment() -> Saga[Number]:
    return Saga("pay", Step("pay", pay, compensation=None, retry=Retry(max_attempts=1)), input=Number)


def statuses(results: Any) -> list[SagaStatus]:
    return [handle.status for handle in all_of(results)]


DONE, UNDONE, WAITS = SagaStatus.COMPLETED, SagaStatus.COMPENSATED, SagaStatus.PENDING


def test_eagerly_each_runs_to_its_end_and_then_a_flaw_is_raised(make: Callable[..., Sagas], store: SqlStore) -> None:
    saga = payment()
    make(saga)
    assert statuses(saga.start_many([{"n": 0}, {"n": 1}, {"n": 3}])) == [DONE, UNDONE, DONE]
    with pytest.raises(ZeroDivisionError):
        saga.start_many([({"n": 2}, "flaw"), ({"n": 3}, "after it")])
    assert store.find("pay", "after it").status is DONE
    with Session(store.engine) as session:
        results = saga.start_many([{"n": 4}], session=session)
        session.commit()
    assert statuses(results) == [DONE]


def test_inline_each_runs_to_its_end() -> None:
    inline = Inline()
    saga = payment()
    results = inline.start_many(saga, [({"n": 0}, "k"), ({"n": 1}, "l"), ({"n": 0}, "k"), ({"n": 9}, "k")])
    assert statuses(results) == [DONE, UNDONE, DONE]
    assert [result.status.value for result in results] == ["STARTED", "STARTED", "EXISTING", "REFUSED"]

    def inputs() -> Iterator[Any]:
        yield {"n": 0}, "gone"
        raise KeyError

    with pytest.raises(KeyError):
        inline.start_many(saga, inputs())
    with pytest.raises(SagaNotFound):
        inline.store.find("pay", "gone")


class Watching(Observer):
    def __init__(self) -> None:
        self.started: list[str] = []
        self.stored: list[str] = []

    @contextmanager
    def during(self, work: Start | Attempt | Handling) -> Iterator[None]:
        if isinstance(work, Start):
            work.traceparent = f"00-{len(self.started):032x}-0000000000000001-01"
            self.started.append(work.record.key)
        yield

    def changed(self, before: SagaRecord | None, after: SagaRecord, history: Sequence[HistoryEntry]) -> None:
        if before is None:
            self.stored.append(after.key)


def test_observers_and_causes_as_with_start(make: Callable[..., Sagas], store: SqlStore) -> None:
    saga, watching = payment(), Watching()
    make(saga, eager=False, observers=[watching])
    with Session(store.engine) as session, within(Cause("e-1", "c-1", hops=3)):
        saga.start_many([({"n": 0}, "gone")], session=session)
        session.rollback()
        results = saga.start_many([({"n": 0}, "a"), ({"n": 0}, "b"), ({"n": 0}, "a")], session=session)
        assert watching.stored == []
        session.commit()
    assert watching.started == ["gone", "a", "b"]
    assert watching.stored == ["a", "b"]
    first, second, _ = (handle.record for handle in all_of(results))
    assert first.traceparent != second.traceparent is not None
    assert first.caused_by == Cause("e-1", "c-1", hops=3)
    assert {first.correlation_id, second.correlation_id} == {"c-1"}
    [of_its_own] = all_of(saga.start_many([{"n": 0}], correlation_id="c-2"))
    assert of_its_own.record.correlation_id == "c-2"


def test_a_parallel_stage_may_come_first(make: Callable[..., Sagas], monkeypatch: pytest.MonkeyPatch) -> None:
    saga = Saga("wide", Parallel(Step("l", lambda: 1, compensation=None), Step("r", lambda: 1, compensation=None)))
    make(saga, eager=False)
    sent: list[str] = []
    publish: Any = Producer.publish

    def counted(self: Producer, body: Any, **options: Any) -> Any:
        sent.append(options["headers"]["task"])
        return publish(self, body, **options)

    monkeypatch.setattr(Producer, "publish", counted)
    saga.start_many([None, None])
    assert sent == ["wide.l", "wide.r"] * 2
