"""Many sagas in one call, on every database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import create_engine, event
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from sagas import (
    InvalidInput,
    KeyConflict,
    PayloadTooLarge,
    Saga,
    Sagas,
    SagaStatus,
    SqlStore,
    StartResult,
    StartStatus,
    Step,
    StoreRefused,
)
from sagas.stores import bulk, schema
from sagas.stores.codecs import PLAIN
from sagas.stores.encryption import AesGcm
from tests.databases import migrated_store

STARTED, EXISTING, REFUSED = StartStatus.STARTED, StartStatus.EXISTING, StartStatus.REFUSED


@dataclass
class Order:
    number: int
    note: str = ""


@pytest.fixture(scope="module", params=["sqlite", "postgres", "mariadb", "postgres encrypted"])
def migrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlStore]:
    database, _, encrypted = request.param.partition(" ")
    codec = AesGcm({"k": bytes(32)}, current="k") if encrypted else PLAIN
    with migrated_store(request, database, tmp_path_factory.mktemp("many"), codec) as store:
        yield store


@pytest.fixture
def store(migrated: SqlStore) -> SqlStore:
    with migrated.engine.begin() as connection:
        connection.execute(schema.sagas.delete())
    return SqlStore(migrated.engine, codec=migrated.codec)


@pytest.fixture
def order(store: SqlStore) -> Saga[Order]:
    saga = Saga("order", Step("a", lambda: 1, compensation=None), input=Order)
    Sagas(Celery("t", broker="memory://", set_as_current=False), store, [saga], max_payload=1000)
    return saga


def stored(store: SqlStore) -> set[str]:
    return {saga.key for saga in store.queries.select(limit=10_000)}


def ends(results: Any) -> list[StartStatus]:
    return [result.status for result in results]


def test_each_input_has_its_outcome_in_order(store: SqlStore, order: Saga[Order]) -> None:
    there = order.start(Order(1), key="there")
    order.start(Order(1), key="other")
    results = order.start_many(
        [
            (Order(1), "there"),
            (Order(2), "new"),
            ({"number": 2, "note": ""}, "new"),
            (Order(3), "new"),
            (Order(9), "other"),
            ({"number": "x"}, "bad"),
            (Order(1), ""),
            (Order(1, "x" * 1000), "large"),
            Order(4),
            (Order(5), "a 'quoted' %s :key ü💶"),
        ]
    )
    assert ends(results) == [
        EXISTING, STARTED, EXISTING, REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, STARTED, STARTED
    ]  # fmt: skip
    assert results[0].handle == there
    assert results[1].handle == results[2].handle
    kinds = [None if result.error is None else type(result.error) for result in results]
    assert kinds[3:8] == [KeyConflict, KeyConflict, InvalidInput, InvalidInput, PayloadTooLarge]
    assert all((result.handle is None) == (result.error is not None) for result in results)
    assert "belongs to" in str(results[3].error)
    new = results[1].handle
    assert new is not None
    assert new.record == store.find("order", "new")
    assert new.status is SagaStatus.PENDING
    assert new.record.next_check_at is not None
    assert len(stored(store)) == 5


def test_nothing_is_many_too(store: SqlStore, order: Saga[Order]) -> None:
    assert order.start_many([]) == []
    assert ends(order.start_many([({}, "bad")])) == [REFUSED]
    assert stored(store) == set()


def test_thousands_take_a_few_statements(store: SqlStore, order: Saga[Order]) -> None:
    statements: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(store.engine, "before_cursor_execute", count)
    results = order.start_many((Order(n), f"o-{n % 1200}") for n in range(1500))
    event.remove(store.engine, "before_cursor_execute", count)
    assert ends(results) == [STARTED] * 1200 + [REFUSED] * 300
    assert len(statements) <= 15
    assert len(stored(store)) == 1200
    assert ends(order.start_many((Order(n), f"o-{n}") for n in range(1200))) == [EXISTING] * 1200


def test_inputs_are_taken_as_they_are_stored(store: SqlStore, order: Saga[Order], monkeypatch: Any) -> None:
    """A chunk is bounded by what its inputs weigh, too, and no more than one is in memory."""
    monkeypatch.setattr("sagas.bulk._CHARACTERS", 3000)
    chunks: list[int] = []
    insert_many = bulk.insert_many

    def counted(connection: Any, statement: Any, records: Any, *rest: Any) -> Any:
        chunks.append(len(records))
        return insert_many(connection, statement, records, *rest)

    monkeypatch.setattr(bulk, "insert_many", counted)
    order.start_many(Order(n, "x" * 900) for n in range(10))
    assert chunks == [4, 4, 2]


@pytest.mark.parametrize("raised", [ZeroDivisionError(), OperationalError("x", {}, Exception("theirs")), KeyboardInterrupt()])  # fmt: skip
def test_what_the_iterable_raises_comes_through_and_leaves_nothing(
    store: SqlStore, order: Saga[Order], raised: BaseException
) -> None:
    def inputs() -> Iterator[Any]:
        yield from ((Order(n), f"o-{n}") for n in range(1200))
        raise raised

    with pytest.raises(type(raised)) as caught:
        order.start_many(inputs())
    assert caught.value is raised
    assert stored(store) == set()
    with Session(store.engine) as session:
        order.start(Order(1), key="before", session=session)
        with pytest.raises(type(raised)):
            order.start_many(inputs(), session=session)
        session.commit()  # the caller's transaction is as good as before
    assert stored(store) == {"before"}


def test_they_commit_and_roll_back_with_the_caller(store: SqlStore, order: Saga[Order]) -> None:
    with Session(store.engine) as session:
        order.start_many([(Order(1), "gone")], session=session)
        session.rollback()
        order.start_many([(Order(1), "kept")], session=session)
        assert ends(order.start_many([(Order(1), "kept"), (Order(2), "kept 2")], session=session)) == [
            EXISTING,
            STARTED,
        ]
        session.commit()
    with store.engine.begin() as connection:
        order.start_many([(Order(1), "by connection")], session=connection)
    assert stored(store) == {"kept", "kept 2", "by connection"}


def test_an_engine_of_the_callers_rolls_back_too(store: SqlStore, order: Saga[Order]) -> None:
    """SQLite's driver begins late; the end of a savepoint would commit."""
    engine = create_engine(store.engine.url)
    with Session(engine) as session:
        order.start_many([(Order(1), "gone")], session=session)
        session.rollback()
    assert stored(store) == set()
    engine.dispose()


def test_what_the_database_refuses_leaves_the_callers_transaction_good(
    store: SqlStore, order: Saga[Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(store.engine) as session:
        order.start(Order(1), key="kept", session=session)

        def duplicate(*_: Any) -> Any:
            raise IntegrityError("insert", {"input": "secret"}, Exception("it is refused"))

        with monkeypatch.context() as patch:
            patch.setattr("sagas.stores.bulk._insert", duplicate)
            with pytest.raises(StoreRefused, match="refused") as caught:
                order.start_many([(Order(2), "gone")], session=session)
        assert "secret" not in str(caught.value)
        session.commit()
    assert stored(store) == {"kept"}


def test_two_callers_with_the_same_keys_start_each_once(store: SqlStore, order: Saga[Order]) -> None:
    found: list[list[StartResult]] = []
    keys = [f"o-{n}" for n in range(300)]
    barrier = threading.Barrier(2)

    def start(mine: list[str]) -> None:
        barrier.wait()
        found.append(list(order.start_many((Order(1), key) for key in mine)))

    threads = [threading.Thread(target=start, args=(mine,)) for mine in (keys, keys[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, two = found
    by_key = {result.handle: result.status for result in two}
    assert all({result.status, by_key[result.handle]} == {STARTED, EXISTING} for result in one)
    assert stored(store) == set(keys)
