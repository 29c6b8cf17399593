"""SQLite in memory: all connections of a thread are one, so nothing may end the transaction that the caller has open."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.orm import Session

from sagas import ConfigurationError, Saga, Sagas, SagaStatus, SqlStore, Step
from sagas.stores import schema


@pytest.fixture
def shop() -> Iterator[tuple[Engine, Sagas, Saga]]:
    engine = create_engine("sqlite:///:memory:")
    store = SqlStore(engine)
    store.upgrade()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id INTEGER)"))
    app = Celery("memory", broker="memory://", set_as_current=False)
    saga = Saga("greet", Step("hello", lambda: "hi", compensation=None))
    yield engine, Sagas(app, SqlStore(engine), [saga]), saga  # of a store that has not asked for the time yet
    app.close()
    engine.dispose()


def rows(engine: Engine) -> tuple[int, int]:
    with engine.connect() as connection:
        orders = connection.execute(text("SELECT count(*) FROM orders")).scalar_one()
        sagas = connection.execute(select(func.count()).select_from(schema.sagas)).scalar_one()
    return orders, sagas


def test_a_start_in_the_callers_transaction_keeps_what_that_has_written(shop: tuple[Engine, Sagas, Saga]) -> None:
    engine, _, saga = shop
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO orders VALUES (1)"))
        saga.start(key="1", session=connection)
    assert rows(engine) == (1, 1)
    with Session(engine) as session, session.begin():
        session.execute(text("INSERT INTO orders VALUES (2)"))
        assert [started.status for started in saga.start_many([None, None], session=session)] == ["STARTED"] * 2
    assert rows(engine) == (2, 3)


def test_beside_an_open_transaction_the_store_is_refused_and_nothing_is_lost(shop: tuple[Engine, Sagas, Saga]) -> None:
    engine, sagas, saga = shop
    handle = saga.start(key="1")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO orders VALUES (1)"))
        for ask in (
            lambda: handle.status,
            lambda: saga.start(key="2"),
            lambda: saga.start_many([None]),
            lambda: sagas.store.queries.history(handle.id),
            lambda: handle.cancel(),
        ):
            with pytest.raises(ConfigurationError, match="in memory has one connection for each thread"):
                ask()
    assert rows(engine) == (1, 1)
    assert handle.status is SagaStatus.PENDING
