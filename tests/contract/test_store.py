"""What the engine asks of a store, of every database that it runs on."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.orm import Session

from sagas import (
    AmbiguousSaga,
    ConfigurationError,
    Direction,
    KeyConflict,
    PayloadUnreadable,
    SagaNotFound,
    SagaRecord,
    SagaStatus,
    SqlStore,
    StepRecord,
    StepStatus,
    StoreRefused,
    StoreUnavailable,
)
from sagas.checkpoints import DeadLetter, HistoryEntry, HistoryKind, SagaSummary
from sagas.stores import Filter, InFlight, Payloads, StatusCount, migrate, schema
from sagas.stores.codecs import PLAIN, STEP_PAYLOADS
from sagas.stores.encryption import AesGcm
from sagas.stores.engines import lacks_tables
from sagas.stores.filters import Standing
from sagas.stores.postgres import FastPath
from sagas.stores.rows import FIXED_FIELDS
from sagas.testing.memory import MemoryStore
from tests.databases import migrated_store

HOUR = timedelta(hours=1)


DATABASES = ["sqlite", "postgres", "mariadb"]


WAYS = [*DATABASES, "pgbouncer", *(f"{name} encrypted" for name in DATABASES), "postgres by SQLAlchemy alone"]


@pytest.fixture(scope="module", params=WAYS)
def migrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlStore]:
    """A database with the tables, one for all tests: migrating takes longer than they do."""
    database, _, way = request.param.partition(" ")
    codec = AesGcm({"k": bytes(32)}, current="k") if way == "encrypted" else PLAIN
    with migrated_store(request, database, tmp_path_factory.mktemp("store"), codec) as store:
        yield store


@pytest.fixture
def store(migrated: SqlStore, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SqlStore:
    if "SQLAlchemy alone" in request.node.name:  # the oracle: what the prepared statements do, this does, too
        monkeypatch.setattr(FastPath, "of", lambda *_: None)
    with migrated.engine.begin() as connection:
        for table in (schema.outbox, schema.arrivals, schema.sagas):  # the others follow
            connection.execute(table.delete())
    return SqlStore(migrated.engine, codec=migrated.codec)


def record(number: int = 1, **changes: Any) -> SagaRecord:
    now = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    values: dict[str, Any] = {
        "id": f"id-{number:04}", "name": "order", "version": 1, "key": f"key-{number}",
        "outline": '[{"step": "a"}, {"step": "b"}]',
        "correlation_id": f"c-{number}", "input": '{"x":"ü\\u0000💶"}', "created_at": now, "updated_at": now,
        "stage_ready_at": now, "next_check_at": now, "deadline": now + timedelta(hours=1),
    }  # fmt: skip
    return SagaRecord(**{**values, **changes})


STEP = StepRecord(
    node="a", seq=1, status=StepStatus.RUNNING, started_seq=1, failures=2, lost=3, owner="me",
    lease_until=datetime(2026, 1, 1, tzinfo=UTC), result="1" * 100_000, error="ü💶",
)  # fmt: skip


def test_a_record_comes_back_as_it_was(store: SqlStore) -> None:
    stored = store.insert(record())
    assert store.load(stored.id) == stored
    saved = store.save(stored, replace(stored, epoch=2, steps={"a": STEP}))
    assert saved is not None
    assert saved.revision == 2
    assert store.load(stored.id) == saved
    assert store.load(stored.id).created_at.tzinfo is UTC
    assert store.find("order", "key-1") == saved


def test_a_save_of_an_old_revision_changes_nothing(store: SqlStore) -> None:
    first = store.insert(record())
    second = store.save(first, replace(first, epoch=2, steps={"a": STEP}))
    assert store.save(first, replace(first, epoch=9, steps={"b": replace(STEP, node="b", seq=2)})) is None
    assert store.save(first, replace(first, epoch=9)) is None
    entry = HistoryEntry(at=first.created_at, what="x", epoch=1)
    assert store.save(first, replace(first, epoch=9, steps={"b": replace(STEP, node="b", seq=2)}), [entry]) is None
    assert store.load(first.id) == second
    assert store.queries.history(first.id) == []


def _outgoing(store: SqlStore) -> list[str]:
    with store.engine.connect() as connection:
        return list(connection.execute(select(schema.outbox.c.event_id).order_by(schema.outbox.c.id)).scalars())


def message(event_id: str) -> dict[str, Any]:
    """Return a row of the outbox."""
    return {
        "shard": 0, "event_id": event_id, "type": "a.b.done", "version": 1, "source": "a", "key": None,
        "correlation_id": "c", "causation_id": None, "queue": None, "body": "{}", "created_at": STEP.lease_until,
    }  # fmt: skip


def test_messages_leave_with_the_save_that_stores_them(store: SqlStore) -> None:
    row = message
    first = store.insert(record())
    second = store.save(first, replace(first, epoch=2, steps={"a": STEP}), outbox=[row("e-1"), row("e-2")])
    assert second is not None
    assert store.save(first, replace(first, epoch=9), outbox=[row("late")]) is None
    with store.transaction() as session:
        third = store.save(second, replace(second, epoch=3), outbox=[row("e-3")], session=session)
    assert third is not None
    with pytest.raises(ZeroDivisionError), store.transaction() as session:
        store.save(third, replace(third, epoch=4), outbox=[row("rolled back")], session=session)
        raise ZeroDivisionError
    assert _outgoing(store) == ["e-1", "e-2", "e-3"]
    assert store.load(first.id) == third


def test_of_many_savers_one_wins(store: SqlStore) -> None:
    first = store.insert(record())
    won: list[int] = []
    barrier = threading.Barrier(8)

    def race(number: int) -> None:
        barrier.wait()
        if store.save(first, replace(first, epoch=number)) is not None:
            won.append(number)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.load(first.id).epoch == won[0]


def test_the_same_key_is_the_same_saga(store: SqlStore) -> None:
    first = store.insert(record(1))
    assert store.insert(record(2, key="key-1")) == first
    assert store.insert(record(3, key="KEY-1")).id == "id-0003"  # keys are told apart by case everywhere
    assert store.insert(record(4, key="key-1", name="other")).id == "id-0004"
    with pytest.raises(SagaNotFound):
        store.load("id-0002")


def test_of_many_inserts_of_one_key_one_wins(store: SqlStore) -> None:
    found: list[str] = []
    barrier = threading.Barrier(8)

    def race(number: int) -> None:
        barrier.wait()
        found.append(store.insert(record(number, key="one")).id)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_what_is_not_there(store: SqlStore) -> None:
    with pytest.raises(SagaNotFound, match="id 'nope'"):
        store.load("nope")
    with pytest.raises(SagaNotFound, match="'order' with the key 'nope'"):
        store.find("order", "nope")


def test_what_was_written_in_the_future_is_due(store: SqlStore) -> None:
    """The database's clock was set back since. A process sees that when it looks at the clock."""
    now = store.now()
    later = now + timedelta(hours=3)
    store.insert(record(1, next_check_at=later, updated_at=later))
    store.insert(record(2, next_check_at=later, updated_at=now))
    store.insert(record(3, next_check_at=None, updated_at=later))
    assert store.due(10, lease=30) == ["id-0001"]
    assert store.due(10, lease=30) == []


def test_due_are_taken_once(store: SqlStore) -> None:
    now = store.now()
    for number in range(10):
        store.insert(record(number, next_check_at=now - timedelta(seconds=number)))
    store.insert(record(10, next_check_at=now + timedelta(hours=1)))
    store.insert(record(11, next_check_at=None))
    assert list(store.due(3, 60)) == ["id-0009", "id-0008", "id-0007"]
    taken: list[str] = []
    threads = [threading.Thread(target=lambda: taken.extend(store.due(2, 60))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken.extend(store.due(100, 60))
    assert sorted(taken) == [f"id-{number:04}" for number in range(7)]
    assert store.due(100, 60) == []


def test_a_lease_of_recovery_ends(store: SqlStore) -> None:
    store.insert(record(next_check_at=store.now() - timedelta(seconds=1)))
    assert len(store.due(10, -1)) == 1
    assert len(store.due(10, 60)) == 1


def test_the_clock_is_the_databases(store: SqlStore) -> None:
    now = store.now()
    assert now.tzinfo is UTC
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)  # the same machine
    assert store.now() >= now


def test_history_and_dead_letters(store: SqlStore) -> None:
    first = store.insert(record())
    at = first.created_at
    entries = [
        HistoryEntry(at=at, what="a", epoch=1, step="s", detail="d"),
        HistoryEntry(at=at, what="b", epoch=2, actor="ann"),
    ]
    letter = DeadLetter(saga_id=first.id, step="s", direction=Direction.BACKWARD, error="e", created_at=at)
    second = store.save(first, replace(first, epoch=2), entries, [letter])
    assert second is not None
    assert store.queries.history(first.id) == entries
    assert store.queries.dead_letters() == [letter]
    resolved = replace(letter, resolved_at=at, resolution="skip", reason="why", actor="ann")
    store.save(second, replace(second, epoch=3), [], [resolved])
    assert store.queries.dead_letters() == []
    assert store.queries.dead_letters(unresolved=False) == [resolved]


def ids(found: Sequence[SagaSummary]) -> list[str]:
    return [each.id for each in found]


def test_lists(store: SqlStore) -> None:
    for number in range(5):
        store.insert(record(number, status=SagaStatus.STUCK if number % 2 else SagaStatus.RUNNING, name=f"n{number}"))
    assert ids(store.queries.select(limit=2)) == ["id-0004", "id-0003"]
    assert ids(store.queries.select(before="id-0002")) == ["id-0001", "id-0000"]
    assert ids(store.queries.select(after="", limit=2)) == ["id-0000", "id-0001"]
    assert ids(store.queries.select(after="id-0002")) == ["id-0003", "id-0004"]
    assert ids(store.queries.select(Filter(statuses=frozenset({SagaStatus.STUCK})))) == ["id-0003", "id-0001"]
    assert ids(store.queries.select(Filter(name="n3"))) == ["id-0003"]
    assert ids(store.queries.select(Filter(ids=("id-0001", "id-0002")))) == ["id-0002", "id-0001"]
    assert store.queries.count() == 5
    assert store.queries.count(Filter(statuses=frozenset({SagaStatus.STUCK, SagaStatus.RUNNING}), name="n1")) == 1


def test_filters(store: SqlStore) -> None:
    plain = store.insert(record(0))
    at = plain.created_at
    waiting = store.insert(record(1))
    old = store.insert(record(2, correlation_id="story", version=2, created_at=at - 2 * HOUR, updated_at=at - HOUR))
    step = StepRecord(node="pay", seq=1, status=StepStatus.RUNNING, started_seq=1)
    other = StepRecord(node="ship", seq=2, status=StepStatus.DONE, started_seq=2, result='"100%_sure"')
    failed = replace(waiting, error="Bank said: 100%_no").with_step(step).with_step(other)
    assert store.save(waiting, failed) is not None
    for where, expected in (
        (Filter(step="pay"), [waiting]),
        (Filter(step="ship"), []),
        (Filter(error="bank SAID"), [waiting]),
        (Filter(error="100%_n"), [waiting]),
        (Filter(error="100__n"), []),
        (Filter(correlation_id="story"), [old]),
        (Filter(version=2), [old]),
        (Filter(key=old.key), [old]),
        (Filter(created_before=at - HOUR), [old]),
        (Filter(created_after=at - HOUR), [waiting, plain]),
        (Filter(updated_before=at), [old]),
    ):
        assert ids(store.queries.select(where)) == ids(expected), where
    assert store.queries.select()[1].steps == {}
    assert [found.steps for found in store.queries.select(with_steps=True)] == [
        {},
        {"pay": step, "ship": replace(other, result=None)},
        {},
    ]
    assert store.queries.payloads(waiting.id) == Payloads(waiting.input, {"ship": other.result or ""})


def test_what_needs_a_person(store: SqlStore) -> None:
    at = store.insert(record(0)).created_at
    store.insert(record(1, status=SagaStatus.STUCK, next_check_at=None))
    store.insert(record(2, idle_checks=3, next_check_at=at))
    store.insert(record(3, idle_checks=2, next_check_at=at))
    undone = store.insert(record(4, status=SagaStatus.COMPENSATED, next_check_at=None))
    letter = DeadLetter(saga_id=undone.id, step="pay", direction=Direction.FORWARD, error="late", created_at=at)
    saved = store.save(undone, replace(undone, epoch=2), dead_letters=[letter])
    assert saved is not None
    assert ids(store.queries.select(Filter(attention=True))) == ["id-0004", "id-0002", "id-0001"]
    assert store.queries.dead_letters("id-0001") == []
    assert store.queries.dead_letters("id-0004") == [letter]
    store.save(saved, replace(saved, epoch=3), dead_letters=[replace(letter, resolved_at=at, resolution="x")])
    assert ids(store.queries.select(Filter(attention=True))) == ["id-0002", "id-0001"]


def test_what_has_ended(store: SqlStore) -> None:
    at = store.insert(record(0)).updated_at
    for number, (status, age) in enumerate(
        [(SagaStatus.COMPLETED, 0), (SagaStatus.COMPENSATED, 0), (SagaStatus.COMPLETED, 2), (SagaStatus.STUCK, 0)], 1
    ):
        store.insert(record(number, status=status, updated_at=at - age * HOUR))
    assert store.queries.ended(at - HOUR) == 2
    assert store.queries.ended(at - HOUR * 3) == 3
    assert store.queries.ended(at - HOUR * 3, among=1) == 2  # the newest of each end
    assert store.queries.ended(at + HOUR) == 0


def test_counts(store: SqlStore) -> None:
    assert store.queries.tally() == []
    assert store.queries.in_flight() == []
    first = store.insert(record(0, name="a"))
    store.insert(record(1, name="a"))
    store.insert(record(2, name="a", status=SagaStatus.STUCK, outline='[{"step": "x"}]'))
    store.insert(record(3, name="b", status=SagaStatus.COMPLETED))
    assert sorted(store.queries.tally(), key=str) == [
        StatusCount("a", first.status, 2),
        StatusCount("a", SagaStatus.STUCK, 1),
        StatusCount("b", SagaStatus.COMPLETED, 1),
    ]
    assert store.queries.tally(Filter(name="a", statuses=frozenset({SagaStatus.STUCK}))) == [
        StatusCount("a", SagaStatus.STUCK, 1)
    ]
    assert sorted(store.queries.in_flight(), key=lambda each: each.example) == [
        InFlight("a", 1, first.outline, first.status, 2, first.created_at, first.id),
        InFlight("a", 1, '[{"step": "x"}]', SagaStatus.STUCK, 1, first.created_at, "id-0002"),
    ]


def test_what_operators_did(store: SqlStore) -> None:
    first, second = store.insert(record(0, name="a", key="k")), store.insert(record(1, name="b"))
    at = first.created_at
    retried = HistoryEntry(at=at - HOUR, what=HistoryKind.OPERATOR_RETRY, epoch=1, step="s", detail="why", actor="ann")
    cancelled = HistoryEntry(at=at, what=HistoryKind.COMPENSATION_STARTED, epoch=1, detail="no", actor="bob")
    store.save(first, replace(first, epoch=2), [HistoryEntry(at=at, what=HistoryKind.STEP_FAILED, epoch=1), retried])
    store.save(second, replace(second, epoch=2), [cancelled])
    newest, oldest = store.queries.audit()
    assert (newest.saga_id, newest.name, newest.entry) == (second.id, "b", cancelled)
    assert (oldest.saga_id, oldest.name, oldest.key, oldest.entry) == (first.id, "a", "k", retried)
    assert store.queries.audit(actor="ann") == store.queries.audit(name="a") == [oldest]
    assert store.queries.audit(since=at) == store.queries.audit(limit=1) == [newest]
    assert store.queries.audit(before=newest.number) == [oldest]
    assert store.queries.audit(actor="ann", name="b") == []


def test_tables_that_are_not_there(store: SqlStore) -> None:
    """That can be told from a database that does not answer."""
    with store.engine.begin() as connection:
        connection.execute(text("alter table sagas_saga rename to elsewhere"))
    with pytest.raises(Exception, match="sagas_saga") as raised:
        store.queries.select()
    with store.engine.begin() as connection:
        connection.execute(text("alter table elsewhere rename to sagas_saga"))
    assert lacks_tables(raised.value)
    assert not lacks_tables(StoreUnavailable("the database did not answer"))
    assert not lacks_tables(ValueError("no such table: x"))


def test_what_an_operator_means(store: SqlStore) -> None:
    first = store.insert(record(0, name="a", key="order-1"))
    store.insert(record(1, name="b", key="order-1"))
    other = store.insert(record(2, name="b", key="id-000"))
    assert store.queries.resolve(first.id).id == first.id
    assert store.queries.resolve("id-0002").id == other.id
    with pytest.raises(AmbiguousSaga, match=r"id-0000 \(a, key order-1\), id-0001 \(b, key order-1\): give the whole"):
        store.queries.resolve("order-1")
    with pytest.raises(AmbiguousSaga, match="id-0001"):
        store.queries.resolve("id-000")  # the ids come first, also where it is a key
    for nothing in ("", "order-2", "id-%"):
        with pytest.raises(SagaNotFound, match="begins with"):
            store.queries.resolve(nothing)


def test_a_start_commits_and_rolls_back_with_its_caller(store: SqlStore) -> None:
    with Session(store.engine) as session:
        store.insert(record(1), session)
        session.rollback()
        store.insert(record(2), session)
        session.commit()
    with store.engine.begin() as connection:
        store.insert(record(3), connection)
    assert [r.id for r in store.queries.select()] == ["id-0003", "id-0002"]


def test_what_follows_a_commit(store: SqlStore) -> None:
    called: list[str] = []
    with Session(store.engine) as session:
        session.connection()
        store.after_commit(session, lambda: called.append("rolled back"))
        session.rollback()
        session.connection()
        store.after_commit(session, lambda: called.append("committed"))
        with session.begin_nested():
            store.after_commit(session, lambda: called.append("within a savepoint"))
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            store.after_commit(session, lambda: called.append("savepoint rolled back"))
            raise ZeroDivisionError
        assert called == []
        session.commit()
        assert called == ["committed", "within a savepoint"]
        session.connection()
        session.commit()
    with store.engine.connect() as connection:
        connection.execute(text("select 1"))
        store.after_commit(connection, lambda: called.append("rolled back"))
        connection.rollback()
        connection.execute(text("select 1"))
        store.after_commit(connection, lambda: called.append("by connection"))
        connection.commit()
        connection.execute(text("select 1"))
        connection.commit()
    assert called == ["committed", "within a savepoint", "by connection"]


def test_an_effect_and_its_checkpoint_are_one(store: SqlStore) -> None:
    first = store.insert(record())
    with store.engine.begin() as connection:
        connection.execute(text("drop table if exists effect"))
        connection.execute(text("create table effect (n integer)"))
    with store.transaction() as session:
        session.execute(text("insert into effect values (1)"))
        assert store.save(first, replace(first, epoch=2), session=session) is not None
    with pytest.raises(ZeroDivisionError), store.transaction() as session:
        session.execute(text("insert into effect values (2)"))
        store.save(store.load(first.id), replace(first, epoch=3), session=session)
        raise ZeroDivisionError
    with store.engine.connect() as connection:
        assert connection.execute(text("select n from effect")).scalars().all() == [1]
    assert store.load(first.id).epoch == 2


def test_the_migrations_make_the_schema(store: SqlStore) -> None:
    with store.engine.connect() as connection:
        options = {"version_table": migrate.VERSION_TABLE, "compare_type": True}
        connection.execute(text("drop table if exists effect"))  # another test's
        context = MigrationContext.configure(connection, opts=options)
        differences = compare_metadata(context, schema.metadata)
    assert not differences, f"add a migration to sagas/stores/migrations/versions: {differences}"
    assert migrate.current(store.engine) == migrate.head()
    store.upgrade()  # does nothing


def test_a_database_that_does_not_answer() -> None:
    for url in (
        "postgresql+psycopg://x@127.0.0.1:1/x",
        "mysql+pymysql://x@127.0.0.1:1/x",
        "sqlite:////no/such/folder/x.db",
    ):
        store = SqlStore(url)
        with pytest.raises(StoreUnavailable):
            store.load("x")
        if store.dialect != "sqlite":  # whose clock is that of this machine
            with pytest.raises(StoreUnavailable):
                store.now()


def test_a_database_that_cannot_hold_sagas() -> None:
    class Oracle:
        name = "oracle"

    engine = create_engine("sqlite://")
    engine.dialect.name = "oracle"
    with pytest.raises(ConfigurationError, match="not in oracle"):
        SqlStore(engine)


# -- every field ----------------------------------------------------------------------------------------------------


def _other(value: Any, name: str) -> Any:
    """Return another value of the same kind."""
    if name == "status":
        return SagaStatus.RUNNING if isinstance(value, SagaStatus) else StepStatus.DONE
    if name == "direction":
        return Direction.BACKWARD
    if isinstance(value, int):
        return value + 7
    if isinstance(value, datetime) or name in ("at", "deadline") or name.endswith(("_at", "_until")):
        return datetime(2031, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    return f'"{name}"'


@pytest.mark.parametrize("way", ["at once", "with history", "in a session"])
def test_every_field_that_a_rule_can_change_survives_a_save(any_store: Any, way: str) -> None:
    """Also one that is added tomorrow: what is not listed as fixed is changed here, and must come back."""
    first = any_store.insert(record(0))
    changed = {
        field.name: _other(getattr(first, field.name), field.name)
        for field in fields(SagaRecord)
        if field.name not in FIXED_FIELDS | {"revision", "steps"}
    }
    begun = StepRecord(node="pay", item=1, progress_done=1, progress_total=2)
    step = StepRecord(**{field.name: _other(getattr(begun, field.name), field.name) for field in fields(StepRecord)})
    after = replace(first, **changed, steps={step.name: step})
    entry = HistoryEntry(**{f.name: _other(3 if f.name == "epoch" else "", f.name) for f in fields(HistoryEntry)})
    if way == "in a session":
        if isinstance(any_store, MemoryStore):
            return  # it has none
        with any_store.transaction() as session:
            saved = any_store.save(first, after, [entry], session=session)
    else:
        saved = any_store.save(first, after, [entry] if way == "with history" else [])
    assert any_store.load(first.id) == saved == replace(after, revision=first.revision + 1)
    assert list(any_store.queries.history(first.id)) == ([] if way == "at once" else [entry])


@pytest.fixture(params=["sql", "memory"])
def any_store(request: pytest.FixtureRequest, store: SqlStore) -> Any:
    return store if request.param == "sql" else MemoryStore()


# -- where sagas stand ----------------------------------------------------------------------------------------------


def test_where_the_sagas_of_an_outline_stand(store: SqlStore) -> None:
    def stand(number: int, *steps: StepRecord, status: SagaStatus = SagaStatus.RUNNING) -> None:
        saga = store.insert(record(number))
        for step in steps:
            saga = saga.with_step(step)
        assert store.save(store.load(saga.id), replace(saga, status=status)) is not None

    done = StepRecord(node="a", seq=1, status=StepStatus.DONE, started_seq=1)
    ahead = StepRecord(node="b", seq=2, stage=1)
    early = StepRecord(node="w", seq=3, stage=2, kind="wait", status=StepStatus.DONE)
    store.insert(record(1, dispatches=0))  # it is to start later
    store.insert(record(2))
    stand(3, done)
    stand(4, done, ahead)
    stand(5, done, ahead, early)
    stand(6, done, early)
    stand(7, done, ahead, status=SagaStatus.COMPLETED)
    store.insert(record(8, version=2))
    outline = record().outline
    assert sorted(store.queries.standing("order", 1, outline), key=lambda each: (each.stage, each.early or "")) == [
        Standing(-1, None, 1, "id-0001"),
        Standing(0, None, 3, "id-0002"),
        Standing(0, "w", 1, "id-0006"),
        Standing(1, None, 2, "id-0004"),
        Standing(1, "w", 1, "id-0005"),
    ]
    assert store.queries.standing("order", 1, "[]") == []


# -- what cannot be read --------------------------------------------------------------------------------------------


def test_lists_read_no_payloads(store: SqlStore) -> None:
    sealed = SqlStore(store.engine, codec=AesGcm({"k": bytes(32)}, current="k"))
    good, bad = sealed.insert(record(0)), sealed.insert(record(1))
    done = bad.with_step(StepRecord(node="a", seq=1, status=StepStatus.DONE, started_seq=1, result='"secret"'))
    assert sealed.save(bad, done) is not None
    with store.engine.begin() as connection:
        connection.execute(schema.sagas.update().where(schema.sagas.c.id == bad.id).values(input="~aesgcm:k:broken"))
    assert ids(sealed.queries.select(with_steps=True)) == [bad.id, good.id]
    assert sealed.queries.resolve(bad.id).step("a").status is StepStatus.DONE
    assert not hasattr(sealed.queries.select()[0], "input")
    payloads = sealed.queries.payloads(bad.id)
    assert isinstance(payloads.input, PayloadUnreadable)
    assert payloads.results == {"a": '"secret"'}
    with pytest.raises(SagaNotFound):
        sealed.queries.payloads("nobody")
    statements: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    sealed.queries.select(with_steps=True)
    assert statements
    columns = ["sagas_saga.input", *(f"sagas_step.{column}" for column in STEP_PAYLOADS)]
    assert not any(payload in text_ for payload in columns for text_ in statements)


def test_a_saga_that_cannot_be_read_is_put_off(store: SqlStore) -> None:
    at = store.now()
    store.insert(record(0, next_check_at=at))
    store.insert(record(1, next_check_at=at, direction=Direction.BACKWARD, error="declined"))
    store.insert(record(2, next_check_at=None, status=SagaStatus.COMPLETED))
    for number, error in ((0, "why"), (1, "declined"), (2, None)):
        assert store.postpone(f"id-{number:04}", 60, "why") == "order"
        found = store.load(f"id-{number:04}")
        assert found.error == error
        assert (found.next_check_at is None) == (number == 2)
        assert found.next_check_at is None or found.next_check_at > at + timedelta(seconds=59)
    assert store.postpone("nobody", 60, "why") is None


def test_rescheduling_is_no_save(any_store: Any) -> None:
    now = any_store.now()
    for number in range(3):
        any_store.insert(record(number, next_check_at=now, error="why"))
    seen = any_store.summaries(["id-0001", "id-0002", "nobody"])
    assert sorted(saga.id for saga in seen) == ["id-0001", "id-0002"]
    newer = any_store.load("id-0002")
    newer = any_store.save(newer, replace(newer, next_check_at=None))
    later = now + timedelta(minutes=5)
    any_store.reschedule([replace(saga, idle_checks=7, next_check_at=later) for saga in seen])
    first = any_store.load("id-0001")
    assert (first.idle_checks, first.next_check_at, first.revision, first.error) == (7, later, 1, "why")
    assert any_store.load("id-0002") == newer


# -- probes ---------------------------------------------------------------------------------------------------------


def test_the_latest_arrival_counts(any_store: Any) -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    assert any_store.arrivals(["order.pay"]) == {}
    for minutes in (2, 1, 3):
        any_store.arrived("order.pay", at + timedelta(minutes=minutes))
    any_store.arrived("order.ship", at)
    assert any_store.arrivals({"order.pay", "order.ship", "order.none"}) == {
        "order.pay": at + timedelta(minutes=3),
        "order.ship": at,
    }


# -- what the database refuses --------------------------------------------------------------------------------------


def test_what_the_database_refuses_is_told_in_words(store: SqlStore) -> None:
    secret = record(0, input='{"card":"4111"}', correlation_id="x" * 200)
    with store.engine.begin() as connection:
        connection.execute(text("alter table sagas_saga rename to elsewhere"))
    refusal = StoreUnavailable if store.dialect == "sqlite" else StoreRefused
    with pytest.raises(refusal) as raised:
        store.insert(secret)
    with Session(store.engine) as session, pytest.raises(refusal):
        store.insert(secret, session)
    with store.engine.begin() as connection:
        connection.execute(text("alter table elsewhere rename to sagas_saga"))
    told = "".join(traceback.format_exception(raised.value))
    assert "4111" not in told
    if refusal is StoreRefused:
        assert "db upgrade" in str(raised.value)


def test_a_session_whose_transaction_has_failed(store: SqlStore) -> None:
    with Session(store.engine) as session:
        with pytest.raises(Exception, match="no such table|exist"):
            session.execute(text("select * from nowhere"))
        if store.dialect == "postgresql":
            with pytest.raises(StoreRefused, match="Roll the session's transaction back"):
                store.insert(record(0), session)


@pytest.mark.parametrize("strange", ["a\x00b", "a\udcffb"])
def test_what_no_database_can_hold_is_not_found(store: SqlStore, strange: str) -> None:
    for look in (
        store.load,
        store.queries.resolve,
        lambda text_: store.find("order", text_),
        lambda text_: store.find(text_, "k"),
    ):
        with pytest.raises(SagaNotFound):
            look(strange)
    for where in (
        Filter(key=strange),
        Filter(error=strange),
        Filter(name=strange),
        Filter(ids=(strange,)),
        Filter(step=strange),
    ):
        assert store.queries.select(where) == []
        assert store.queries.count(where) == 0


# -- children -----------------------------------------------------------------------------------------------------


def parent_and_child(store: SqlStore) -> tuple[SagaRecord, SagaRecord]:
    """Store a parent, whose step waits for a child that is stored with it."""
    first = store.insert(record())
    child = record(2, parent_id=first.id, parent_step="a", root_id=first.id)
    waiting = StepRecord(node="a", seq=1, kind="child", status=StepStatus.WAITING, started_seq=1, child_id=child.id)
    saved = store.save(first, replace(first, steps={"a": waiting}), children=[child])
    assert saved is not None
    return saved, child


def test_a_child_is_stored_with_the_step_that_waits_for_it(store: SqlStore) -> None:
    parent, child = parent_and_child(store)
    assert store.load(parent.id) == parent
    assert store.load(child.id) == child
    assert [(each.id, list(each.steps)) for each in store.family(parent.id)] == [(parent.id, ["a"]), (child.id, [])]
    stale = replace(parent, revision=parent.revision - 1)
    other = record(3, parent_id=parent.id, parent_step="b", root_id=parent.id)
    assert store.save(stale, replace(stale, epoch=9), children=[other]) is None
    with pytest.raises(SagaNotFound):
        store.load(other.id)


def test_a_child_whose_key_is_taken_stores_nothing(store: SqlStore) -> None:
    parent, child = parent_and_child(store)
    other = record(3, key=child.key, parent_id=parent.id, parent_step="b", root_id=parent.id)
    with pytest.raises(KeyConflict, match="'key-2'.*belongs to id-0002"):
        store.save(parent, replace(parent, epoch=9), children=[other])
    assert store.load(parent.id) == parent


@pytest.mark.parametrize("in_session", [False, True])
def test_the_write_that_brings_a_child_to_rest_makes_its_parent_due(store: SqlStore, in_session: bool) -> None:
    parent, child = parent_and_child(store)
    at = child.updated_at + HOUR
    after = replace(child, status=SagaStatus.COMPLETED, next_check_at=None, updated_at=at)
    if in_session:
        with Session(store.engine) as session:
            locked = store.load(child.id, session)
            assert store.save(locked, after, session=session) is not None
            session.rollback()
        assert store.load(parent.id) == parent
        with Session(store.engine) as session:
            assert store.save(store.load(child.id, session), after, session=session) is not None
            session.commit()
    else:
        assert store.save(child, after) is not None
    woken = store.load(parent.id)
    assert (woken.revision, woken.next_check_at, woken.step("a").due_at) == (parent.revision + 1, at, at)
    # Whoever had read the parent before decides once more: it would not see that its step is due.
    assert store.save(parent, replace(parent, next_check_at=at + HOUR)) is None


def test_a_parent_at_rest_is_not_made_due_and_finds_the_child_when_it_goes_on(store: SqlStore) -> None:
    parent, child = parent_and_child(store)
    stuck = store.save(parent, replace(parent, status=SagaStatus.STUCK, next_check_at=None))
    assert stuck is not None
    at = child.updated_at + HOUR
    store.save(child, replace(child, status=SagaStatus.COMPLETED, updated_at=at))
    woken = store.load(parent.id)
    assert (woken.next_check_at, woken.step("a").due_at) == (None, at)


def test_progress_of_a_child_leaves_its_parent_alone(store: SqlStore) -> None:
    parent, child = parent_and_child(store)
    store.save(child, replace(child, status=SagaStatus.RUNNING, steps={"a": STEP}))
    assert store.load(parent.id) == parent
