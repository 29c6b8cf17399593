"""What `start()` stores, refuses and dispatches."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sagas import (
    ConfigurationError,
    DuplicateName,
    InvalidInput,
    KeyConflict,
    PayloadTooLarge,
    Pivot,
    Saga,
    SagaNotCompleted,
    SagaNotFound,
    Sagas,
    SagaStatus,
    SqlStore,
    StartError,
    Step,
    StoreUnavailable,
    WaitTimeout,
)
from sagas.operations import Operations
from tests.conftest import Rig
from tests.rig import Faults
from tests.servers import free_port


@dataclass
class Order:
    order_id: str
    amount: Decimal
    note: str = ""


def charge(amount: Decimal) -> Decimal:
    return amount


@pytest.fixture
def order() -> Saga:
    return Saga("order", Step("charge", charge, compensation=None), input=Order)


@pytest.fixture
def sagas(tmp_path: Path, order: Saga) -> Any:
    store = SqlStore(f"sqlite:///{tmp_path / 's.db'}")
    store.upgrade()
    yield Sagas(Celery("t", broker="memory://", set_as_current=False), store, [order], max_payload=1000)
    store.engine.dispose()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"order_id": "1", "amount": "1", "colour": "red"}, InvalidInput, "unknown field 'colour'; Order has order_id"),
        ({"order_id": "1"}, InvalidInput, "missing required field `amount`"),
        ({"order_id": 1, "amount": "1"}, InvalidInput, r"Expected `str`, got `int` - at `\$.order_id`"),
        (Order("1", "x"), InvalidInput, "amount"),  # type: ignore[arg-type]
        (Order("1", object()), InvalidInput, "cannot be stored as JSON"),  # type: ignore[arg-type]
        (Order("1", Decimal("NaN")), InvalidInput, "come back"),
        (None, InvalidInput, "Order"),
        ([1], InvalidInput, "Order"),
        (Order("1", Decimal(1), "x" * 1000), PayloadTooLarge, "more than max_payload=1,000"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    sagas: Sagas, order: Saga, given: Any, error: type[StartError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        order.start(given)
    assert "saga 'order'" in str(caught.value)
    assert Operations(sagas).queries.select() == []


@pytest.mark.parametrize("key", ["", " x", "x" * 201])
def test_a_bad_key_is_refused(sagas: Sagas, order: Saga, key: str) -> None:
    with pytest.raises(InvalidInput, match="key"):
        order.start(Order("1", Decimal(1)), key=key)
    assert Operations(sagas).queries.select() == []


def test_the_same_key_is_the_same_saga(sagas: Sagas, order: Saga) -> None:
    first = order.start(Order("1", Decimal("1.50")), key="k")
    assert order.start({"order_id": "1", "amount": "1.50"}, key="k") == first
    assert sagas.find("order", "k") == first
    with pytest.raises(KeyConflict, match="another input"):
        order.start(Order("1", Decimal(2)), key="k")
    assert len(Operations(sagas).queries.select()) == 1


def test_unknown_things(sagas: Sagas) -> None:
    with pytest.raises(SagaNotFound, match="no saga 'oder' is registered; there is: order"):
        sagas.start_by_name("oder", {})
    with pytest.raises(SagaNotFound):
        sagas.handle("nope")
    with pytest.raises(SagaNotFound):
        sagas.find("order", "nope")
    with pytest.raises(SagaNotFound):
        sagas.cancel("nope")


def test_a_handle_before_the_end(sagas: Sagas, order: Saga) -> None:
    handle = sagas.start_by_name("order", {"order_id": "1", "amount": "1"}, correlation_id="c-1")
    assert handle.record.correlation_id == "c-1"
    with pytest.raises(SagaNotCompleted, match="is PENDING"):
        _ = handle.result
    with pytest.raises(WaitTimeout, match="goes on without you"):
        handle.wait(timeout=0.05)


def test_names_are_taken_once(sagas: Sagas) -> None:
    with pytest.raises(DuplicateName, match="'order' of version 1"):
        sagas.register(Saga("order", Step("x", charge, compensation=None), input=Order))

    @sagas.app.task(name="other.x")  # type: ignore[untyped-decorator]
    def x() -> None: ...

    with pytest.raises(DuplicateName, match="another task named 'other.x'"):
        sagas.register(Saga("other", Step("x", charge, compensation=None), input=Order))


def test_an_app_that_is_not_fit(sagas: Sagas, order: Saga) -> None:
    with pytest.raises(ConfigurationError, match="already has its Sagas"):
        Sagas(sagas.app, sagas.store)
    unsafe = Celery("u", broker="memory://", set_as_current=False)
    unsafe.conf.accept_content = ["json", "pickle"]
    with pytest.raises(ConfigurationError, match="pickle"):
        Sagas(unsafe, sagas.store)
    other = Celery("o", broker="memory://", set_as_current=False)
    with pytest.raises(ConfigurationError, match="already registered with another"):
        Sagas(other, sagas.store, [order])


def test_a_saga_commits_and_rolls_back_with_its_caller(rig: Rig) -> None:
    store = rig.sagas.store
    assert isinstance(store, SqlStore)
    rig.worker()
    line = rig.saga("line")
    with Session(store.engine) as session:
        line.start(Faults(), key="gone", session=session)
        session.rollback()
        kept = line.start(Faults(), key="kept", session=session)
        assert line.start(Faults(), key="kept", session=session) == kept
        with pytest.raises(SagaNotFound):
            rig.sagas.handle(kept.id)  # nobody else sees it, and no message was sent
        session.commit()
    rig.assert_done(kept)
    with store.engine.begin() as connection:
        by_connection = line.start(Faults(), session=connection)
    rig.assert_done(by_connection)
    with pytest.raises(SagaNotFound):
        rig.sagas.find("line", "gone")


def test_a_broker_that_is_away_is_no_error(tmp_path: Path, order: Saga) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 's.db'}")
    store.upgrade()
    app = Celery("t", broker=f"redis://127.0.0.1:{free_port()}/0", set_as_current=False)
    app.conf.broker_transport_options = {"socket_connect_timeout": 1}
    Sagas(app, store, [order])
    handle = order.start(Order("1", Decimal(1)))
    assert handle.status is SagaStatus.PENDING
    assert handle.record.next_check_at is not None
    store.engine.dispose()
    app.close()


def test_a_database_that_is_away_is_an_error(order: Saga) -> None:
    store = SqlStore(f"postgresql+psycopg://x@127.0.0.1:{free_port()}/x")
    Sagas(Celery("t", broker="memory://", set_as_current=False), store, [order])
    with pytest.raises(StoreUnavailable):
        order.start(Order("1", Decimal(1)))


def test_a_saga_from_another_database_is_refused(sagas: Sagas, order: Saga) -> None:
    engine = create_engine("mysql+pymysql://x@127.0.0.1:1/x")
    with pytest.raises((ConfigurationError, StoreUnavailable, Exception)), Session(engine) as session:
        order.start(Order("1", Decimal(1)), session=session)
    assert Operations(sagas).queries.select() == []


def test_only_before_the_pivot(sagas: Sagas) -> None:
    pivot = Saga("paid", Pivot("pay", charge), input=Order)
    sagas.register(pivot)
    handle = pivot.start(Order("1", Decimal(1)))
    assert handle.cancel("never mind") is SagaStatus.COMPENSATED
    assert handle.error == "never mind"
