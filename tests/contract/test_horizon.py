"""How far a reader of all events may go on PostgreSQL, where writers overlap and nobody waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from sagas import ConfigurationError, SqlStore
from sagas.events import NO_STREAM, EventStore
from tests.contract.conftest import empty
from tests.contract.test_event_store import TYPES, contents, deposits
from tests.servers import Postgres


@pytest.fixture(scope="module")
def migrated(postgres: Postgres) -> Iterator[SqlStore]:
    kept = SqlStore(postgres.database())
    kept.upgrade()
    yield kept
    kept.engine.dispose()


@pytest.fixture
def store(migrated: SqlStore) -> EventStore:
    empty(migrated.engine)
    return EventStore(migrated.engine, TYPES)


def test_what_is_older_than_all_writers_is_shown(store: EventStore) -> None:
    store.append(None, "a", deposits(1), expected=NO_STREAM)
    with Session(store.engine) as session:
        store.append(session, "b", deposits(2), expected=NO_STREAM)
        store.append(session, "b", deposits(3), expected=1)  # the mark of the first append stays
        store.append(None, "c", deposits(4), expected=NO_STREAM)
        assert [each.event.cents for each in store.read_all()] == [1]
        session.commit()
    assert [each.event.cents for each in store.read_all()] == [1, 2, 3, 4]


def test_marks_and_savepoints(store: EventStore) -> None:
    with Session(store.engine) as session:
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            store.append(session, "a", deposits(1), expected=NO_STREAM)
            raise ZeroDivisionError
        store.append(None, "b", deposits(2), expected=NO_STREAM)
        assert [each.event.cents for each in store.read_all()] == [2]  # the mark went with the savepoint
        with session.begin_nested():
            store.append(session, "a", deposits(3), expected=NO_STREAM)
        store.append(None, "b", deposits(4), expected=1)
        assert [each.event.cents for each in store.read_all()] == [2]  # and is kept with one
        session.commit()
    assert [each.event.cents for each in store.read_all()] == [2, 3, 4]


@pytest.mark.parametrize("last", [2**31 - 1, 2**32 - 1])
def test_positions_beyond_what_a_lock_can_name(store: EventStore, last: int) -> None:
    with store.engine.begin() as connection:
        connection.execute(select(func.setval("events_event_position_seq", last - 1)))
    store.append(None, "a", deposits(1), expected=NO_STREAM)
    assert store.safe_position() == last
    with Session(store.engine) as session:
        store.append(session, "b", deposits(2), expected=NO_STREAM)
        with Session(store.engine) as later:
            store.append(later, "c", deposits(3), expected=NO_STREAM)
            session.commit()
            assert store.safe_position() == last + 1
            assert [each.event.cents for each in store.read_all()] == [1, 2]
            later.commit()
    assert store.safe_position() == last + 2


def test_many_appends_take_one_lock(store: EventStore) -> None:
    with Session(store.engine) as session:
        for number in range(20):
            store.append(session, f"s{number}", deposits(number), expected=NO_STREAM)
        locks = session.scalar(text("select count(*) from pg_locks where locktype = 'advisory'"))
        assert locks == 1


def test_each_schema_has_marks_of_its_own(store: EventStore) -> None:
    with store.engine.begin() as connection:
        connection.execute(text("create schema other"))
    url = store.engine.url.update_query_dict({"options": "-csearch_path=other"})
    kept = SqlStore(url.render_as_string(hide_password=False))
    kept.upgrade()
    other = EventStore(kept.engine, TYPES)
    with Session(store.engine) as session:
        store.append(session, "a", deposits(1), expected=NO_STREAM)
        session.execute(text("set local search_path to other"))
        other.append(session, "a", deposits(2), expected=NO_STREAM)
        other.append(None, "b", deposits(3), expected=NO_STREAM)
        assert other.read_all() == []
        session.commit()
    assert [each.event.cents for each in store.read_all()] == [1]
    assert [each.event.cents for each in other.read_all()] == [2, 3]
    kept.engine.dispose()


def test_a_replica_is_refused() -> None:
    with Postgres() as server:
        kept = SqlStore(server.database())
        kept.upgrade()
        store = EventStore(kept.engine, TYPES)
        store.append(None, "a", deposits(1), expected=NO_STREAM)
        server.kill()
        (server.folder / "data" / "standby.signal").touch()
        server.start()
        kept.engine.dispose()
        with pytest.raises(ConfigurationError, match="a replica"):
            store.read_all()
        assert contents(store, "a") == [1]
        kept.engine.dispose()
