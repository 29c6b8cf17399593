"""What threads write that share a commit: each learns its own outcome, and none waits for what another waits for."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from psycopg import Rollback
from sqlalchemy import Connection, create_engine, select, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, StaticPool

from sagas import SagaRecord, SagaStatus, SqlStore, StepStatus, StoreUnavailable
from sagas.events.postgres import PsycopgWriting
from sagas.stores import schema, statements
from sagas.stores.drivers import Kept
from sagas.stores.postgres import _Save
from tests.contract.test_store import STEP, message, record
from tests.databases import migrated_store
from tests.gathered import at_the_same_moment
from tests.servers import Postgres, wait_for


@pytest.fixture(scope="module", params=["sqlite", "postgres", "pgbouncer"])
def migrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqlStore]:
    with migrated_store(request, request.param, tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def store(migrated: SqlStore) -> SqlStore:
    with migrated.engine.begin() as connection:
        connection.execute(schema.sagas.delete())
    return SqlStore(migrated.engine)


def begun(saga: SagaRecord, **changes: Any) -> SagaRecord:
    step = replace(STEP, node="a", status=StepStatus.RUNNING, owner=saga.id)
    return replace(saga.with_step(step), status=SagaStatus.RUNNING, **changes)


def gathered(
    store: SqlStore,
    saves: Sequence[tuple[SagaRecord, SagaRecord]],
    outbox: Callable[[SagaRecord], Sequence[Mapping[str, Any]]] = lambda _: (),
) -> list[SagaRecord | Exception | None]:
    """Save as so many threads do that come while another save is under way."""
    gathering: Any = store._together if store._fast is None else store._fast._saving
    ahead = store.insert(record(9999))

    def save(before: SagaRecord, after: SagaRecord) -> SagaRecord | None:
        return store.save(before, after, outbox=outbox(before))

    saved = at_the_same_moment(gathering, lambda: save(ahead, begun(ahead)), [partial(save, *each) for each in saves])
    assert isinstance(saved[0], SagaRecord)
    return saved[1:]


def test_each_learns_its_own_outcome(store: SqlStore) -> None:
    sagas = [store.insert(record(number)) for number in range(1, 31)]
    for saga in sagas[::3]:  # somebody is quicker with every third
        assert store.save(saga, begun(saga, error="quicker")) is not None
    found = gathered(store, [(saga, begun(saga, error=f"mine {saga.id}")) for saga in sagas])
    for number, (saga, saved) in enumerate(zip(sagas, found, strict=True)):
        stored = store.load(saga.id)
        if number % 3:
            assert saved == stored
            assert stored.error == f"mine {saga.id}"
            assert stored.step("a").owner == saga.id
        else:
            assert saved is None
            assert stored.error == "quicker"
    assert all(not isinstance(each, Exception) for each in found)


def test_they_share_a_commit(store: SqlStore) -> None:
    sagas = [store.insert(record(number)) for number in range(1, 21)]
    commits: list[object] = []
    if store.dialect == "postgresql":
        assert all(isinstance(each, SagaRecord) for each in gathered(store, [(saga, begun(saga)) for saga in sagas]))
        with store.engine.connect() as connection:  # xmin: the transaction that wrote a row
            ids = [saga.id for saga in sagas]
            for table, column in ((schema.sagas, schema.sagas.c.id), (schema.steps, schema.steps.c.saga_id)):
                query = select(text("xmin::text")).select_from(table).where(column.in_(ids))
                commits += connection.execute(query).scalars().all()
        assert len(commits) == 40
        assert len(set(commits)) == 1
        return
    writing = store.connections.writing

    def counted() -> AbstractContextManager[Connection]:
        commits.append(1)
        return writing()

    store.connections.writing = counted  # type: ignore[assignment, method-assign]
    assert all(isinstance(each, SagaRecord) for each in gathered(store, [(saga, begun(saga)) for saga in sagas]))
    assert len(commits) == 3, "an insert, the first save, and the twenty"


def test_saves_of_many_lengths_share_a_commit(store: SqlStore) -> None:
    sagas = [store.insert(record(number)) for number in range(1, 10)]
    saves = []
    for number, saga in enumerate(sagas):
        after = replace(saga, status=SagaStatus.RUNNING)
        for seq in range(1, 1 + number % 3):
            after = after.with_step(replace(STEP, node=f"n{seq}", seq=seq, owner=f"{saga.id} {seq}"))
        saves.append((saga, after))
    for saga, saved in zip(sagas, gathered(store, saves), strict=True):
        assert store.load(saga.id) == saved
    assert [len(store.load(saga.id).steps) for saga in sagas] == [0, 1, 2] * 3


def test_one_that_cannot_be_stored_fails_alone(store: SqlStore) -> None:
    sagas = [store.insert(record(number)) for number in range(1, 6)]
    saves = [(saga, begun(saga)) for saga in sagas]
    # A NUL is nothing to SQLite; a lone surrogate no database takes.
    saves[2] = sagas[2], begun(sagas[2], error="\ud800")
    found = gathered(store, saves)
    assert isinstance(found[2], Exception)
    assert store.load(sagas[2].id) == sagas[2]
    for number in (0, 1, 3, 4):
        assert found[number] == store.load(sagas[number].id)
        assert store.load(sagas[number].id).status is SagaStatus.RUNNING


@pytest.mark.parametrize("refused", [True, False])
def test_messages_leave_with_their_own_save(store: SqlStore, refused: bool) -> None:
    """In their order, whoever else saves at that moment; and only if the save counts."""
    sagas = [store.insert(record(number)) for number in range(1, 31)]
    for saga in sagas[::3]:
        assert store.save(saga, begun(saga, error="quicker")) is not None
    saves = [(saga, begun(saga)) for saga in sagas]
    if refused:
        saves[1] = sagas[1], begun(sagas[1], error="\ud800")
    messages = {
        saga.id: [f"{saga.id[-3:]}-{number}" for number in range(saga.id != sagas[2].id and 7)] for saga in sagas
    }
    found = gathered(store, saves, lambda saga: [message(each) for each in messages.get(saga.id, ())])
    assert isinstance(found[1], Exception) is refused
    with store.engine.begin() as connection:
        query = select(schema.outbox.c.event_id).order_by(schema.outbox.c.id)
        sent = connection.execute(query).scalars().all()
        connection.execute(schema.outbox.delete())
    for number, saga in enumerate(sagas):
        mine = [each for each in sent if each.partition("-")[0] == saga.id[-3:]]
        assert mine == ([] if number % 3 == 0 or (refused and number == 1) else messages[saga.id])


def test_nobody_waits_for_a_row_that_another_waits_for(store: SqlStore) -> None:
    if store.dialect == "sqlite":
        pytest.skip("SQLite locks the whole file: all writers wait")
    sagas = [store.insert(record(number)) for number in range(1, 4)]
    held = sagas[1]
    with Session(store.engine) as session, ThreadPoolExecutor(1) as pool:
        store.load(held.id, session)  # locks it
        call = pool.submit(gathered, store, [(saga, begun(saga)) for saga in sagas])
        wait_for(
            lambda: all(store.load(sagas[number].id).status is SagaStatus.RUNNING for number in (0, 2)),
            30,
            "the others are saved",
        )
        assert not call.done()
        session.rollback()
        assert all(isinstance(each, SagaRecord) for each in call.result(30))


def test_a_saved_row_is_not_saved_twice(store: SqlStore) -> None:
    """The answer to a shared commit is lost: each caller finds that its save has been made."""
    if store._fast is None:
        pytest.skip("it is about PostgreSQL's connection")
    sagas = [store.insert(record(number)) for number in range(1, 4)]
    saves = []
    for saga in sagas:
        after = replace(begun(saga), revision=2)
        saves.append(_Save(statements.compared_and_set(saga, after), store._changed_steps(saga, after), ()))
    assert store._fast._save_all([*saves, saves[0]]) == [True, True, True, False], "one of two saves of one saga wins"
    assert store._fast._save_all(saves) == [False, False, False]
    assert [store.save(saga, begun(saga)) for saga in sagas] == [None, None, None]


# -- new sagas -------------------------------------------------------------------------------------------------------


#: Others store each new saga by itself.
ON_POSTGRES = pytest.mark.parametrize("migrated", ["postgres", "pgbouncer"], indirect=True)


def inserted(store: SqlStore, records: Sequence[SagaRecord]) -> list[SagaRecord | Exception]:
    """Store as so many threads do that come while another one stores."""
    assert store._fast is not None
    inserts = [partial(store.insert, each) for each in records]
    _, *found = at_the_same_moment(store._fast._inserting, lambda: store.insert(record(9999)), inserts)
    return found


@ON_POSTGRES
def test_each_new_saga_is_told_of_its_own_key(store: SqlStore) -> None:
    """Some keys are taken, and two of those that come together have the same."""
    there = [store.insert(record(number)) for number in range(3, 31, 3)]
    new = [record(number, id=f"new-{number}") for number in range(1, 31)]
    twins = [record(1, id="twin-1"), record(3, id="twin-3")]
    found = inserted(store, [*new, *twins])
    first = {each.key: each for each in there}
    for asked, given in zip([*new, *twins], found, strict=True):
        assert isinstance(given, SagaRecord), given
        assert given == store.load(given.id)
        assert given.key == asked.key
        assert first.setdefault(asked.key, given) == given
    assert [given == asked for asked, given in zip(new, found[:30], strict=True)] == [
        bool(number % 3) and (number != 1 or found[0] == new[0]) for number in range(1, 31)
    ]


@ON_POSTGRES
def test_new_sagas_share_a_commit(store: SqlStore) -> None:
    new = [record(number) for number in range(1, 21)]
    assert inserted(store, new) == new
    with store.engine.connect() as connection:
        query = select(text("xmin::text")).select_from(schema.sagas).where(schema.sagas.c.id.in_([r.id for r in new]))
        assert len(set(connection.execute(query).scalars().all())) == 1


@ON_POSTGRES
def test_a_new_saga_that_cannot_be_stored_fails_alone(store: SqlStore) -> None:
    new = [record(number) for number in range(1, 6)]
    new[1], new[3] = replace(new[1], correlation_id="\ud800"), replace(new[3], version=2**40)
    found = inserted(store, new)
    assert [isinstance(each, Exception) for each in found] == [False, True, False, True, False]
    assert [found[number] for number in (0, 2, 4)] == [new[0], new[2], new[4]]
    assert all(store.load(new[number].id) == new[number] for number in (0, 2, 4))


@ON_POSTGRES
@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize("commits", [True, False])
def test_nobody_waits_for_a_key_that_another_transaction_stores(store: SqlStore, commits: bool, many: bool) -> None:
    assert store._fast is not None
    theirs, mine = record(2, id="theirs"), record(2, id="mine")
    others = [record(1), record(3)]
    with Session(store.engine) as session, ThreadPoolExecutor(1) as pool:
        store.insert(theirs, session)
        call = pool.submit(inserted, store, [others[0], mine, others[1]] if many else [mine])
        if many:
            wait_for(lambda: store.statuses([each.id for each in others]).keys() == {r.id for r in others}, 30)
        else:  # one alone does not hold up who comes behind it, either
            wait_for(lambda: _waits_for_a_key(store), 30, "it waits for the transaction")
            assert store.insert(others[0]) == others[0]
        assert not call.done()
        session.commit() if commits else session.rollback()
        found = call.result(30)
    assert found[1 if many else 0] == (theirs if commits else mine)
    assert all(store.load(each.id) == each for each in found if isinstance(each, SagaRecord))


def _waits_for_a_key(store: SqlStore) -> bool:
    """Whether somebody waits for a transaction without a limit: in the ordinary way, and not as one of a group."""
    query = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'transactionid' AND query NOT LIKE '%lock_timeout%'"
    with store.engine.connect() as connection:
        return bool(connection.execute(text(query)).all())


def test_new_sagas_that_are_acknowledged_are_stored_whatever_happens_to_the_sessions(postgres: Postgres) -> None:
    store = SqlStore(postgres.database())
    store.upgrade()
    operator, over = create_engine(store.engine.url), threading.Event()
    told: list[str] = []

    def start(number: int) -> None:
        for each in itertools.count():
            if over.is_set():
                return
            with suppress(StoreUnavailable):
                new = record(id=f"{number}-{each}", key=f"{number}-{each}")
                assert store.insert(new) == new
                told.append(new.id)

    with ThreadPoolExecutor(12) as pool:
        running = [pool.submit(start, number) for number in range(12)]
        ended, give_up = 0, time.monotonic() + 60
        try:
            with operator.connect() as connection:
                while (ended < 20 or len(told) < 500) and time.monotonic() < give_up:
                    over.wait(0.1)
                    ended += len(connection.execute(_END_SESSIONS).all())
                    connection.rollback()
        finally:
            over.set()
        for each in running:
            each.result(30)
    with operator.connect() as connection:
        stored = set(connection.execute(select(schema.sagas.c.id)).scalars())
    assert len(told) >= 500, "many were stored"
    assert set(told) <= stored
    assert len(told) == len(set(told))
    operator.dispose()
    store.engine.dispose()


# -- a save that was acknowledged is there ---------------------------------------------------------------------------


def hammer(store: SqlStore) -> Iterator[str]:
    """Save from many threads while the database ends their sessions; yield what is wrong with what they were told."""
    sagas = [store.insert(record(number)) for number in range(1, 13)]
    told = dict.fromkeys((saga.id for saga in sagas), 0)  # saves that succeeded
    unknown = dict.fromkeys(told, 0)  # those of which nothing was heard
    over, operator = threading.Event(), create_engine(store.engine.url)

    def save_again_and_again(saga_id: str) -> None:
        while not over.is_set():
            try:
                before = store.load(saga_id)
                step = replace(before.steps.get("a", STEP), node="a", lost=before.step("a").lost + 1)
                if store.save(before, before.with_step(step)) is not None:
                    told[saga_id] += 1
                else:  # nobody else saves it: this very save was stored, and its answer lost
                    unknown[saga_id] += 1
            except StoreUnavailable:
                unknown[saga_id] += 1

    with ThreadPoolExecutor(len(sagas)) as pool:
        running = [pool.submit(save_again_and_again, saga.id) for saga in sagas]
        try:
            ended, give_up = 0, time.monotonic() + 60
            with operator.connect() as connection:
                while (ended < 20 or sum(told.values()) < 500) and time.monotonic() < give_up:
                    over.wait(0.1)
                    ended += len(connection.execute(_END_SESSIONS).all())
                    connection.rollback()
        finally:
            over.set()
            operator.dispose()
        for each in running:
            each.result(30)
    assert sum(told.values()) >= 500, "many were saved"
    for saga in sagas:
        stored = store.load(saga.id).step("a").lost
        if not told[saga.id] <= stored <= told[saga.id] + unknown[saga.id]:
            yield f"{saga.id}: {told[saga.id]} saves were acknowledged, {unknown[saga.id]} not, {stored} are stored"


_END_SESSIONS = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
    "pg_backend_pid() AND backend_type = 'client backend' AND random() < 0.3"
)


def test_an_acknowledged_save_is_stored_whatever_happens_to_the_sessions(postgres: Postgres) -> None:
    store = SqlStore(postgres.database())
    store.upgrade()
    assert list(hammer(store)) == []
    store.engine.dispose()


def test_a_save_that_is_acknowledged_before_its_commit_is_noticed(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of the check: the bug is planted, and seen."""
    store = SqlStore(postgres.database())
    store.upgrade()
    assert store._fast is not None
    attempt = store._fast._attempt

    def hopeful(ask: Any, otherwise: Any) -> Any:
        won: list[Any] = []

        def asked(driver: Any, is_kept: bool) -> Any:
            with suppress(Rollback), driver.transaction():
                won.append(ask(driver, is_kept))
                if len(won[0]) > 1:
                    raise Rollback  # its commit fails
            return won[0]

        said = attempt(asked, None) if isinstance(otherwise, set) else attempt(ask, otherwise)
        return won[0] if said is None and won else otherwise if said is None else said

    monkeypatch.setattr(store._fast, "_attempt", hopeful)
    assert list(hammer(store))
    store.engine.dispose()


def test_the_plan_of_a_load_does_not_depend_on_how_empty_the_tables_were(postgres: Postgres) -> None:
    """A plan that is made for empty tables is kept while they grow, until PostgreSQL has analysed them."""
    store = SqlStore(postgres.database())
    store.upgrade()
    fast = store._fast
    assert fast is not None
    kept = [statement for both in fast._loads.values() for statement in both]
    kept += [fast._save_together, fast._save(2), fast._pass_place]
    with fast._kept.lend() as (driver, is_kept):
        assert is_kept
        driver.execute("SET plan_cache_mode = force_generic_plan")
        for number, statement in enumerate(kept):
            driver.execute(f"PREPARE asked_{number} AS {statement.text}")
            asked = ", ".join(["NULL"] * len(statement.names))
            plan = "\n".join(line for (line,) in driver.execute(f"EXPLAIN EXECUTE asked_{number} ({asked})"))
            assert "Index" in plan
            assert not re.search(r"Seq Scan|Hash Join|Merge Join|JIT", plan)
            # Without a condition it would read the whole index.
            assert re.findall(r"Index(?: Only)? Scan .*\n(?! +Index Cond)", plan) == []
        assert re.search("Index Cond: .*parent_item = ", plan), "the last: it does not read all items to find one"
        driver.execute("RESET plan_cache_mode")
    store.engine.dispose()


def test_no_append_of_the_event_store_is_compiled(postgres: Postgres) -> None:
    """It reads a sequence, which no index serves. PostgreSQL takes 150 ms to compile a statement that costs so much."""
    store = SqlStore(postgres.database())
    store.upgrade()
    values = {"stream": "a-1", "count": 1, "expected": 1, "events": "[]"}
    with Kept.of(store.engine).lend() as (driver, is_kept):
        assert is_kept
        for statement in PsycopgWriting(store.engine)._statements.values():
            plan = "\n".join(line for (line,) in driver.execute(f"EXPLAIN {statement}", values))
            assert "JIT" not in plan, plan
    store.engine.dispose()


def test_what_might_scan_a_table_is_not_prepared_on_the_connections_of_the_pool(postgres: Postgres) -> None:
    engine = create_engine(postgres.database(), poolclass=NullPool)
    with engine.connect() as only:
        engine = create_engine(engine.url, poolclass=StaticPool, creator=lambda: only.connection.driver_connection)
        store = SqlStore(engine)
        store.upgrade()
        ids = [store.insert(record(number)).id for number in range(1, 4)]
        assert store._fast is not None
        for _ in range(20):
            assert all(store._fast._load_all(ids))
            assert store._fast._load_all(ids[:1])
        prepared = only.exec_driver_sql("SELECT statement FROM pg_prepared_statements").scalars().all()
    assert prepared, "the other statements are"
    assert not [statement for statement in prepared if "ANY" in statement.upper()]
