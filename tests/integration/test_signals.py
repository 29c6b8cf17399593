"""Signals through the store and the command line: in the caller's transaction, at the same time, from a script."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from sqlalchemy.orm import Session

from sagas import (
    Parallel,
    Saga,
    SagaHandle,
    SagaNotFound,
    Sagas,
    SagaStatus,
    SignalRefused,
    SqlStore,
    Step,
    StepContext,
    StepStatus,
    TerminalError,
    Wait,
)
from sagas.cli.signal import signal
from sagas.testing import Inline
from tests.conftest import MakeRig
from tests.terminal import invoke

SAGA = Saga("asks", Wait("approval", int, timeout=60), Step("last", lambda: None, compensation=None))


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def sagas(request: pytest.FixtureRequest, make_rig: MakeRig) -> Iterator[Sagas[SqlStore]]:
    rig = make_rig("filesystem", request.param)
    app = Celery("asks", broker="memory://", set_as_current=False)
    store = SqlStore(rig.settings["database"])
    SAGA._starter = None
    yield Sagas(app, store, [SAGA])
    SAGA._starter = None
    store.engine.dispose()
    app.close()


def status(handle: SagaHandle) -> str:
    return handle.record.step("approval").status.value


def test_in_the_callers_transaction(sagas: Sagas[SqlStore]) -> None:
    handle = SAGA.start(key="k")
    with Session(sagas.store.engine) as session:
        sagas.signal("asks", "k", "approval", 7, session=session)
        session.rollback()
    assert status(handle) == "PENDING"
    with Session(sagas.store.engine) as session:
        sagas.signal("asks", "k", "approval", 7, id="a", session=session)
        session.commit()
    assert status(handle) == "DONE"
    with pytest.raises(SignalRefused, match="'a'"), Session(sagas.store.engine) as session:
        sagas.signal("asks", "k", "approval", 8, id="b", session=session)


@pytest.mark.parametrize("reached", [False, True])
def test_a_wait_that_never_asked_is_not_compensated(sagas: Sagas[SqlStore], reached: bool) -> None:
    """Its signal came before its stage was reached, or before a worker called `begin`."""
    inline, log = Inline(sagas.store), list[str]()

    def first(step: StepContext) -> None:
        inline.send_signal(step.saga_id, "approval", 7)

    def refuse() -> None:
        raise TerminalError("no")

    asks = Wait(
        "approval", int, timeout=60, begin=lambda: log.append("mail"), compensation=lambda: log.append("withdraw")
    )
    nodes: Any = Step("first", first, compensation=None), asks
    stages = (Parallel(*nodes),) if reached else nodes
    handle = inline.start(Saga("never_asks", *stages, Step("last", refuse, compensation=None)))
    assert handle.status is SagaStatus.COMPENSATED
    assert log == []
    step = sagas.store.load(handle.id).step("approval")
    assert (step.status, step.result) == (StepStatus.COMPENSATED, "7")


def test_to_a_saga_that_was_started_in_the_same_transaction(sagas: Sagas[SqlStore]) -> None:
    with Session(sagas.store.engine) as session:
        handle = SAGA.start(key="k", session=session)
        sagas.send_signal(handle.id, "approval", 7, session=session)
        session.commit()
    assert status(handle) == "DONE"


def test_of_many_at_once_one_counts(sagas: Sagas[SqlStore]) -> None:
    handle = SAGA.start(key="k")
    refused: list[str] = []
    ready = threading.Barrier(8)

    def send(number: int) -> None:
        ready.wait()
        try:
            handle.signal("approval", number, id=str(number))
        except SignalRefused as error:
            refused.append(str(error))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = handle.record.step("approval").result
    assert len(refused) == 7
    assert all(f"has a signal 'approval' already: '{winner}'" in text for text in refused)


def test_from_the_command_line(sagas: Sagas[SqlStore]) -> None:
    handle = SAGA.start(key="k")
    obj: Any = SimpleNamespace(app=sagas.app)
    for words, code, said in (
        (("k", "approval", "--payload", "{"), 2, "is not JSON"),
        (("k", "approval", "--payload", '"x"'), 2, "approval"),
        (("k", "other"), 2, "has no wait 'other'; it has approval"),
        (("none", "approval"), 2, "none"),
        (("k", "approval", "--payload", "7", "--id", "a", "--sender", "ann"), 0, "saga asks k has the signal approval"),
        (("k", "approval", "--payload", "8", "--id", "b"), 2, "'a' of ann"),
    ):
        done = invoke(signal, words, obj)
        assert (done.exit_code, said in done.output) == (code, True), (words, done.output)
    assert handle.record.step("approval").result == "7"
    with pytest.raises(SagaNotFound):
        sagas.signal("asks", "none", "approval", 7)
