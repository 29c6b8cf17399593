"""What code of yours may raise beside an `Exception`, and what only looks as if it were your code's."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import billiard.common
import celery.worker.state
import pytest
from celery.exceptions import WorkerShutdown, WorkerTerminate
from gevent import GreenletExit, Timeout
from hypothesis.errors import StopTest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sagas import Retry, RetryableError, Saga, SagaHandle, SagaStatus, SqlStore, Step, StepContext, TerminalError
from sagas.checkpoints import HistoryKind, SagaRecord
from sagas.endings import ProcessEnd, ends_process, interruptible, meant
from sagas.errors import HandlersFailed, InvalidMessage, ProjectionStopped
from sagas.events import NO_STREAM, Events, EventStore, LocalBus, Projection, Projections, Service, StoredEvent, event
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.inbox import Call, End
from sagas.events.messages import type_of
from sagas.observers import Attempt, Handling, Observer, Start
from sagas.testing import Inline
from sagas.testing.memory import MemoryStore
from tests.rig import NO_EXCEPTIONS

OURS = [*NO_EXCEPTIONS.values(), Timeout]
ONCE = Retry(max_attempts=1)


def _raise(error: BaseException) -> Any:
    raise error


def _failures(inline: Inline, handle: SagaHandle) -> list[str]:
    assert isinstance(inline.store, MemoryStore)
    return [entry.detail for entry in inline.store.queries.history(handle.id) if entry.what == HistoryKind.STEP_FAILED]


def _fails_by(error: Callable[[], BaseException], **options: Any) -> Saga:
    return Saga("odd", Step("pay", lambda: _raise(error()), compensation=lambda: None, **options))


# -- which is which -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ValueError, TerminalError, *(kind for kind in OURS if kind is not KeyboardInterrupt)])
def test_what_code_raises_is_its_failure(kind: type[BaseException]) -> None:
    assert not ends_process(kind())


@pytest.mark.parametrize("kind", [ProcessEnd, WorkerShutdown, WorkerTerminate, GreenletExit, pytest.fail.Exception])
def test_what_is_thrown_in_from_outside_is_not(kind: type[BaseException]) -> None:
    assert ends_process(kind())
    assert ends_process(BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [kind()])]))


def test_a_tool_that_steers_a_test_is_let_through() -> None:
    assert ends_process(StopTest(1))


def test_a_child_that_was_told_to_terminate_ends_by_whatever_it_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(billiard.common, "_should_have_exited", [True])
    assert ends_process(SystemExit(-241))
    assert ends_process(ValueError("in a finally on the way out"))


@pytest.mark.parametrize(("told", "ends"), [(None, False), (False, False), (0, True), (True, True)])
def test_a_worker_that_was_told_to_terminate_too(monkeypatch: pytest.MonkeyPatch, told: Any, ends: bool) -> None:
    monkeypatch.setattr(celery.worker.state, "should_terminate", told)
    assert ends_process(NotImplementedError("kill_job")) is ends


def test_ctrl_c_is_told_from_an_interrupt_that_a_step_raises() -> None:
    assert ends_process(KeyboardInterrupt())  # here Python's own handler would raise it
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(ends_process(KeyboardInterrupt())))
    thread.start()
    thread.join()
    assert seen == [False]
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        assert not ends_process(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt) as pressed:
            _press_ctrl_c()
        assert ends_process(pressed.value)
    assert signal.getsignal(signal.SIGINT) is before


def _press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)  # it is interrupted


# -- steps in the calling thread ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OURS)
def test_inline_it_is_an_attempt_that_failed(kind: type[BaseException]) -> None:
    inline = Inline()
    handle = inline.start(_fails_by(lambda: kind(5)))
    assert handle.status is SagaStatus.COMPENSATED
    told = f"{kind.__name__}: {kind(5)}"
    assert handle.error == f"step 'pay' is in doubt: {told}"
    assert _failures(inline, handle) == [told] * 3


@pytest.mark.parametrize("kind", NO_EXCEPTIONS.values())
def test_inline_a_compensation_too(kind: type[BaseException]) -> None:
    undo = Step("pay", lambda: None, compensation=lambda: _raise(kind("gone")), compensation_retry=ONCE)
    handle = Inline().start(Saga("odd", undo, Step("ship", lambda: _raise(TerminalError("no")), compensation=None)))
    assert handle.status is SagaStatus.STUCK
    assert handle.record.steps["pay"].error == f"{kind.__name__}: gone"


@pytest.mark.parametrize("kind", NO_EXCEPTIONS.values())
def test_what_it_wrote_through_its_session_is_rolled_back(tmp_path: Path, kind: type[BaseException]) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'x.db'}")
    store.upgrade()
    with store.engine.begin() as connection:
        connection.exec_driver_sql("create table effect (n integer)")

    def pay(step: StepContext) -> None:
        step.session.connection().exec_driver_sql("insert into effect values (1)")
        raise kind

    handle = Inline(store).start(Saga("odd", Step("pay", pay, compensation=None, retry=ONCE)))
    assert handle.status is SagaStatus.COMPENSATED
    with store.engine.begin() as connection:
        assert connection.exec_driver_sql("select count(*) from effect").scalar() == 0
    store.engine.dispose()


def test_a_test_that_fails_in_a_step_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match="must not be called"):
        Inline().start(_fails_by(lambda: pytest.fail.Exception("must not be called")))


def test_ctrl_c_ends_a_run() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Inline().start(Saga("odd", Step("pay", _press_ctrl_c, compensation=None)))
    assert signal.getsignal(signal.SIGINT) is before


# -- groups -------------------------------------------------------------------------------------------------------


class Declined(TerminalError):
    pass


def test_a_group_of_nothing_but_terminal_is_terminal() -> None:
    nested = ExceptionGroup("", [Declined("declined"), ExceptionGroup("", [TerminalError("gone")])])
    inline = Inline()
    handle = inline.start(_fails_by(lambda: nested))
    assert handle.error == "step 'pay' failed: declined; gone"
    assert _failures(inline, handle) == ["declined; gone"]


def test_a_group_of_other_things_is_tried_again() -> None:
    for mixed in (
        [TerminalError("a"), ValueError("b")],
        [TerminalError("a"), RetryableError("b", after=5)],
        [ValueError("b")],
    ):
        group = ExceptionGroup("several", mixed)
        assert meant(group) is group
        inline = Inline()
        handle = inline.start(_fails_by(functools.partial(_same, group)))
        assert len(_failures(inline, handle)) == 3


def _same(error: BaseException) -> BaseException:
    return error


def test_a_group_that_is_a_signal_itself_stays_what_it_is() -> None:
    class Both(TerminalError, ExceptionGroup[Exception]):
        pass

    assert isinstance(both := Both("no", [ValueError()]), TerminalError)
    assert meant(both) is both


def test_a_group_of_nothing_but_retryable_waits_for_the_longest() -> None:
    group = ExceptionGroup(
        "", [RetryableError("busy", after=7), ExceptionGroup("", [RetryableError("away", after=900)])]
    )
    store = Inline()
    failed = [False]

    def pay() -> None:
        if not failed[0]:
            failed[0] = True
            raise group

    before = store.now
    assert store.start(Saga("odd", Step("pay", pay, compensation=None))).status is SagaStatus.COMPLETED
    assert 890 < (store.now - before).total_seconds() < 930
    told = meant(ExceptionGroup("", [RetryableError("busy"), RetryableError("away")]))
    assert isinstance(told, RetryableError)
    assert (str(told), told.after) == ("busy; away", None)


def test_a_terminal_raised_from_another_error_is_terminal() -> None:
    def pay() -> None:
        try:
            asyncio.run(_cancelled())
        except asyncio.CancelledError as error:
            raise Declined("declined") from error

    inline = Inline()
    assert _failures(inline, inline.start(Saga("odd", Step("pay", pay, compensation=lambda: None)))) == ["declined"]


async def _cancelled() -> None:
    raise asyncio.CancelledError


# -- handlers, projections, observers, upcasters, the bus in the process -------------------------------------------


@event("shop.order.placed", version=2, upcasters={1: lambda _: _raise(SystemExit("no way up"))})
class Placed:
    order: str


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    store = SqlStore(f"sqlite:///{tmp_path / 'x.db'}")
    store.upgrade()
    yield store.engine
    store.engine.dispose()


def _handled(engine: Engine, error: BaseException) -> Any:
    shop = Service("shop", publishes=[Placed])

    @shop.on(Placed)
    def count(event: Placed) -> None:
        raise error

    events = Events([shop], engine=engine, broker=MemoryBroker())
    with Session(engine) as session, session.begin():
        envelope = events.publish(Placed(order="1"), session)
    return events.handle(Call("shop.count", envelope.topic, envelope.encode(), attempt=1, redelivered=False))


@pytest.mark.parametrize("kind", [kind for kind in OURS if kind is not KeyboardInterrupt])
def test_a_handler(engine: Engine, kind: type[BaseException]) -> None:
    outcome = _handled(engine, kind(5))
    assert outcome.end is End.FAILED
    assert outcome.error.startswith(f"{kind.__name__}: ")


def test_a_handler_that_raises_a_group(engine: Engine) -> None:
    assert _handled(engine, ExceptionGroup("", [TerminalError("no")])).end is End.REJECTED
    outcome = _handled(engine, ExceptionGroup("", [RetryableError("a", after=3), RetryableError("b", after=8)]))
    assert (outcome.end, outcome.after) == (End.FAILED, 8)


def test_the_end_of_the_process_is_no_outcome_of_a_handler(engine: Engine) -> None:
    with pytest.raises(ProcessEnd):
        _handled(engine, ProcessEnd())


def test_an_upcaster(engine: Engine) -> None:
    with pytest.raises(InvalidMessage, match="its upcaster failed: SystemExit: no way up"):
        type_of(Placed).load(b'{"order":"1"}', 1)


def test_a_projection_stops_at_it(engine: Engine) -> None:
    store = EventStore(engine, [Placed])
    store.append(None, "orders", [Placed(order="1")], expected=NO_STREAM)
    projection = Projection("count")

    @projection.on(Placed)
    def count(stored: StoredEvent[Placed], session: Session) -> None:
        raise SystemExit("gone")

    with pytest.raises(ProjectionStopped, match="SystemExit at event .*: gone"):
        Projections(store, [projection]).advance(projection)


class Rude(Observer):
    def during(self, work: Start | Attempt | Handling) -> AbstractContextManager[object]:
        return self._around()

    @contextmanager
    def _around(self) -> Iterator[None]:
        yield
        raise SystemExit("an observer")

    def changed(self, before: SagaRecord | None, after: SagaRecord, history: Any) -> None:
        raise asyncio.CancelledError


def test_an_observer_harms_no_saga(caplog: pytest.LogCaptureFixture) -> None:
    inline = Inline()
    inline.orchestrator.observers.add(Rude())
    with caplog.at_level(logging.ERROR):
        handle = inline.start(Saga("odd", Step("pay", lambda: "paid", compensation=None)))
    assert handle.status is SagaStatus.COMPLETED
    assert "observer Rude failed in during" in caplog.text
    assert "observer Rude failed in changed" in caplog.text


def test_the_bus_in_the_process(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    bus, called = LocalBus(), []
    bus.subscribe(Placed, lambda event: _raise(SystemExit("gone")))
    bus.subscribe(Placed, lambda event: called.append(event.order))
    with pytest.raises(HandlersFailed, match="SystemExit: gone") as failed:
        bus.publish(Placed(order="1"))
    assert called == ["1"]
    assert isinstance(failed.value.exceptions[0].__cause__, SystemExit)
    later = LocalBus()
    later.subscribe(Placed, lambda event: _raise(GeneratorExit("gone")), when="after_commit")
    with caplog.at_level(logging.ERROR), Session(engine) as session, session.begin():
        later.publish(Placed(order="1"), session)
    assert "after the commit, failed" in caplog.text
