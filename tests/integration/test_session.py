"""`step.session`: an effect in the database that holds the sagas happens exactly once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from sqlalchemy import text

from sagas import Retry, Saga, SagaHandle, Sagas, SagaStatus, SqlStore, Step, StepContext, Wait
from sagas.testing import Inline
from tests.servers import Postgres, wait_for

turned = threading.Event()


def count(step: StepContext) -> None:
    step.session.execute(text("insert into effect values (:key)"), {"key": step.idempotency_key})


def count_then_fail(step: StepContext) -> None:
    count(step)
    if step.attempt == 1:
        raise RuntimeError("after its effect")


def count_slowly(step: StepContext) -> None:
    count(step)
    turned.wait(10)


def wrong(step: StepContext) -> None:
    step.session.execute(text("insert into no_such_table values (1)"))


def uncount(step: StepContext) -> None:
    step.session.execute(text("delete from effect where n = :key"), {"key": step.idempotency_key})


def count_and_agree(step: StepContext) -> bool:
    count(step)
    return True


def count_and_refuse(step: StepContext) -> bool:
    count(step)
    return False


def count_slowly_and_agree(step: StepContext) -> bool:
    count_slowly(step)
    return True


def count_and_be_answered(step: StepContext) -> None:
    """The other system is quicker than this function."""
    count(step)
    SAGAS[7]._starter.complete(step.token, 7)  # type: ignore[union-attr]


RETRY = Retry(delay=0.01)
DEFERRED: dict[str, Any] = {"deferred": True, "deadline": 60, "result": int}
SAGAS = [
    Saga("once", Step("count", count, compensation=uncount)),
    Saga("again", Step("count", count_then_fail, compensation=uncount, retry=RETRY)),
    Saga("slow", Step("count", count_slowly, compensation=uncount), Step("never", count, compensation=uncount)),
    Saga("wrong", Step("wrong", wrong, compensation=uncount, retry=RETRY)),
    Saga("agreed", Step("count", count_then_fail, compensation=uncount, retry=RETRY, when=count_and_agree)),
    Saga("refused", Step("count", count, compensation=uncount, when=count_and_refuse)),
    Saga("asked", Step("count", count, compensation=None, when=count_slowly_and_agree)),
    Saga(
        "answered",
        Step("count", count_and_be_answered, compensation=uncount, **DEFERRED),
        Step("after", count, compensation=uncount),
    ),
]


@pytest.fixture(params=["sqlite", "postgres"])
def sagas(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sagas]:
    url = f"sqlite:///{tmp_path / 's.db'}"
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.database()
    store = SqlStore(url)
    store.upgrade()
    with store.engine.begin() as connection:
        connection.execute(text("create table effect (n varchar(100))"))
    app = Celery("t", broker="memory://", set_as_current=False)
    app.conf.broker_transport_options = {"polling_interval": 0.01}
    for saga in SAGAS:
        monkeypatch.setattr(saga, "_starter", None)
    sagas = Sagas(app, store, SAGAS, recovery_interval=0.1)
    turned.clear()
    with start_worker(app, pool="threads", concurrency=3, perform_ping_check=False, shutdown_timeout=20):
        yield sagas
    store.engine.dispose()


def effects(handle: SagaHandle, sagas: Sagas) -> int:
    assert isinstance(sagas.store, SqlStore)
    with sagas.store.engine.connect() as connection:
        return len(connection.execute(text("select n from effect")).all())


def test_effect_and_checkpoint_commit_together(sagas: Sagas) -> None:
    handle = SAGAS[0].start()
    assert handle.wait(60) is SagaStatus.COMPLETED
    assert effects(handle, sagas) == 1


def test_a_failed_attempt_leaves_nothing(sagas: Sagas) -> None:
    handle = SAGAS[1].start()
    assert handle.wait(60) is SagaStatus.COMPLETED
    assert handle.record.step("count").attempt == 2
    assert effects(handle, sagas) == 1


@pytest.mark.parametrize("sagas", ["postgres"], indirect=True)
def test_a_late_effect_is_rolled_back(sagas: Sagas) -> None:
    """The saga turned back while the action was at work: its transaction is refused, so there is nothing to undo.

    Not on SQLite: it has one writer, so nobody can turn the saga back while the action holds its lock.
    """
    handle = SAGAS[2].start()
    wait_for(lambda: handle.record.step("count").held, 60)
    handle.cancel()
    turned.set()
    assert handle.wait(60) is SagaStatus.COMPENSATED
    assert effects(handle, sagas) == 0
    assert "rolled back" in [entry.detail.split(":")[0] for entry in sagas.store.queries.history(handle.id)]


def test_an_error_of_the_database_is_the_steps_own(sagas: Sagas) -> None:
    """Not taken for a database that is away, nor for a dead worker: it is tried again as the policy says."""
    handle = SAGAS[3].start()
    assert handle.wait(60) is SagaStatus.COMPENSATED
    assert "no_such_table" in (handle.error or "")
    assert [entry.what for entry in sagas.store.queries.history(handle.id)] == ["step failed"] * 3 + [
        "compensation started"
    ]


def test_a_condition_shares_its_transaction_with_its_answer(sagas: Sagas) -> None:
    """It ends with the answer: on SQLite, keeping a yes would otherwise wait for a lock that this step holds itself."""
    agreed, refused = SAGAS[4].start(), SAGAS[5].start()
    assert agreed.wait(60) is SagaStatus.COMPLETED
    assert agreed.record.step("count").attempt == 2
    assert refused.wait(60) is SagaStatus.COMPLETED
    assert refused.record.step("count").status == "SKIPPED"
    assert effects(agreed, sagas) == 3, "two of conditions, and one of an action whose first attempt was rolled back"


@pytest.mark.parametrize("sagas", ["postgres"], indirect=True)
def test_a_late_yes_is_rolled_back(sagas: Sagas) -> None:
    handle = SAGAS[6].start()
    wait_for(lambda: handle.record.step("count").held, 60)
    handle.cancel()
    turned.set()
    assert handle.wait(60) is SagaStatus.COMPENSATED
    assert effects(handle, sagas) == 0


@pytest.mark.parametrize("sagas", ["postgres"], indirect=True)
def test_a_step_that_was_completed_before_it_returned_keeps_its_effect(sagas: Sagas) -> None:
    """Not on SQLite: nobody can complete the step while the action holds the only lock."""
    handle = SAGAS[7].start()
    assert handle.wait(60) is SagaStatus.COMPLETED
    assert handle.result["count"] == 7
    wait_for(lambda: effects(handle, sagas) == 2, 20, "both steps have had their effect")


@pytest.mark.parametrize("is_cancelled", [False, True])
@pytest.mark.parametrize("kind", ["deferred", "wait"])
def test_what_a_completed_step_wrote_counts_unless_the_saga_compensates(
    postgres: Postgres, is_cancelled: bool, kind: str
) -> None:
    store = SqlStore(postgres.database())
    store.upgrade()
    with store.engine.begin() as connection:
        connection.execute(text("create table effect (n varchar(100))"))
    inline = Inline(store)

    def ask(step: StepContext) -> None:
        count(step)
        if kind == "wait":
            inline.send_signal(step.saga_id, "count", 7, id="s")
        else:
            inline.complete(step.token, 7)
        if is_cancelled:
            inline.cancel(step.saga_id)

    def undo_nothing(result: int | None) -> None:
        """What is left then was not rolled back."""

    asks: Step | Wait = Step("count", ask, compensation=undo_nothing, **DEFERRED)
    if kind == "wait":
        asks = Wait("count", int, timeout=60, begin=ask, compensation=undo_nothing)
    saga = Saga("asks", asks, Step("after", count, compensation=uncount))
    handle = inline.start(saga)
    assert handle.status is (SagaStatus.COMPENSATED if is_cancelled else SagaStatus.COMPLETED)
    with store.engine.connect() as connection:
        assert len(connection.execute(text("select n from effect")).all()) == (0 if is_cancelled else 2)
    store.engine.dispose()
