"""The connections that are kept for the hot statements, on a real PostgreSQL."""

from __future__ import annotations

import gc
import os
import signal
import weakref
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from sagas.stores.drivers import Kept
from tests.servers import Postgres, wait_for


@pytest.fixture
def engine(postgres: Postgres) -> Iterator[Engine]:
    engine = create_engine(postgres.database())
    yield engine
    engine.dispose()


@pytest.fixture
def kept(engine: Engine) -> Kept:
    return Kept(engine, most=2)


def session_of(kept: Kept) -> int:
    with kept.lend() as (driver, _):
        found: int = driver.execute("SELECT pg_backend_pid()").fetchone()[0]
        return found


def lives(engine: Engine, session: int) -> bool:
    with engine.connect() as connection:
        query = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :session")
        return bool(connection.execute(query, {"session": session}).scalar_one())


def test_a_connection_is_kept_and_each_statement_is_a_transaction(engine: Engine, kept: Kept) -> None:
    with kept.lend() as (driver, is_kept):
        assert is_kept
        driver.execute("CREATE TABLE written (n int)")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM written")).scalar_one() == 0
    assert session_of(kept) == session_of(kept)


def test_whoever_finds_none_gets_one_of_the_pools(kept: Kept) -> None:
    with kept.lend() as (_, first), kept.lend() as (_, second), kept.lend() as (third, is_kept):
        assert (first, second, is_kept) == (True, True, False)
        assert third.execute("SELECT 1").fetchone() == (1,)
    with kept.lend() as (_, first), kept.lend() as (_, second):
        assert (first, second) == (True, True), "they were given back"


def test_none_is_kept_beside_a_pool_that_keeps_none(engine: Engine) -> None:
    with Kept(create_engine(engine.url, poolclass=NullPool), most=2).lend() as (_, is_kept):
        assert not is_kept


def test_a_statement_that_fails_does_not_cost_the_connection(kept: Kept) -> None:
    session = session_of(kept)
    with pytest.raises(DBAPIError, match="division by zero"), kept.lend() as (driver, _):
        driver.execute("SELECT 1 / 0")
    assert session_of(kept) == session


def test_a_lost_connection_is_replaced(engine: Engine, kept: Kept) -> None:
    with kept.lend() as (_, _), kept.lend() as (_, _):
        pass
    session = session_of(kept)
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:session)"), {"session": session})
    with pytest.raises(DBAPIError) as raised, kept.lend() as (driver, _):
        driver.execute("SELECT 1")
    assert raised.value.connection_invalidated
    assert session_of(kept) != session
    with kept.lend() as (_, first), kept.lend() as (_, second):
        assert (first, second) == (True, True), "as many are kept as before"


def test_what_interrupts_a_statement_costs_the_connection(engine: Engine, kept: Kept) -> None:
    """It may be in the middle of an answer, which the next one would read as its own."""
    session = session_of(kept)
    with pytest.raises(TimeoutError), kept.lend() as (driver, _):
        driver.pgconn.send_query(b"SELECT pg_sleep(0.1)")
        raise TimeoutError
    assert session_of(kept) != session
    wait_for(lambda: not lives(engine, session), 30, "it is closed")
    with kept.lend() as (_, first), kept.lend() as (_, second):
        assert (first, second) == (True, True)


def test_they_are_closed_with_the_engines(engine: Engine, kept: Kept) -> None:
    session = session_of(kept)
    with kept.lend() as (driver, _):
        engine.dispose()
        assert driver.execute("SELECT 1").fetchone() == (1,), "but not under whoever has one"
    wait_for(lambda: not lives(engine, session), 30, "it is closed")
    session = session_of(kept)
    engine.dispose()
    wait_for(lambda: not lives(engine, session), 30, "it is closed")


def test_all_who_use_an_engine_share_them_and_it_can_be_collected(postgres: Postgres) -> None:
    engine = create_engine(postgres.database())
    session = session_of(Kept.of(engine))
    assert session_of(Kept.of(engine)) == session, "a store that is made for each request opens no more"
    engine.dispose()
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


def test_an_old_one_is_replaced(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(kept)
    monkeypatch.setattr("sagas.stores.drivers._RECYCLE", 0)
    assert session_of(kept) != session


@pytest.mark.parametrize("disposed", [False, True])
def test_a_forked_child_has_its_own_and_leaves_its_parent_theirs(engine: Engine, kept: Kept, disposed: bool) -> None:
    session = session_of(kept)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        engine.dispose(close=False)
        if disposed:
            engine.dispose()
        os._exit(0 if session_of(kept) != session else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert session_of(kept) == session
