"""Transactions that a promise depends on: ended by us alone, committed when they say so, and freed of a lost host."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sagas import Retry, SqlStore
from sagas.errors import NotAllowed, TransactionLost, TransactionMisuse
from sagas.events import Envelope, Events, HandlerContext, Service, event
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.inbox import Call, End, Outcome
from sagas.stores import schema
from sagas.stores.commits import Commits
from sagas.stores.transactions import begun

metadata = MetaData()
customers = Table("customer", metadata, Column("name", String(20), primary_key=True))


class Base(DeclarativeBase): ...


class Customer(Base):
    __tablename__ = "customer_orm"
    name: Mapped[str] = mapped_column(String(20), primary_key=True)


@event("orders.order.placed")
class OrderPlaced:
    order_id: str


@event("stock.item.reserved")
class ItemReserved:
    order_id: str


Misdeed = Callable[[Session], object]


def nothing(_: Session) -> None: ...


def caught_error(session: Session) -> None:
    with suppress(IntegrityError):
        session.execute(insert(customers), {"name": "ann"})


def caught_flush(session: Session) -> None:
    with suppress(IntegrityError):
        session.add(Customer(name="ann"))
        session.flush()


def savepoint(session: Session) -> None:
    with suppress(IntegrityError), session.begin_nested():
        session.execute(insert(customers), {"name": "ann"})
    with session.begin_nested():
        session.execute(insert(customers), {"name": "cid"})
    nested = session.begin_nested()
    session.execute(insert(customers), {"name": "dan"})
    nested.rollback()


def commits(session: Session) -> None:
    session.commit()


def commits_and_hides_it(session: Session) -> None:
    with suppress(NotAllowed):
        session.commit()


def leaves_its_block(session: Session) -> None:
    with session:
        session.execute(select(1))


def commits_below(session: Session) -> None:
    session.connection().commit()


def rolls_back_below(session: Session) -> None:
    session.connection().rollback()


def begins_anew(session: Session) -> None:
    session.rollback()
    session.begin()


def raw(statement: str) -> Misdeed:
    def execute(session: Session) -> None:
        session.execute(text(statement))

    execute.__name__ = statement.split(maxsplit=1)[0].lower()
    return execute


def driver(method: str) -> Misdeed:
    def call(session: Session) -> None:
        getattr(session.connection().connection.dbapi_connection, method)()

    call.__name__ = f"driver_{method}"
    return call


REFUSED: list[Misdeed] = [
    commits, commits_and_hides_it, leaves_its_block, commits_below, begins_anew, raw("COMMIT"),
    raw("/* why */ rollback"), driver("commit"),
]  # fmt: skip
COMPENSATED: list[Misdeed] = [rolls_back_below, caught_flush, driver("rollback")]
ALLOWED: list[Misdeed] = [nothing, savepoint]


class Rig:
    """A service whose handler does its work around a misdeed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.misdeed: Misdeed = nothing
        self.fails = False
        self.envelope: Envelope = Envelope.wrap(OrderPlaced(order_id="o-1"), source="orders")
        orders, stock = Service("orders", publishes=[OrderPlaced]), Service("stock")

        @stock.on(OrderPlaced, emits=[ItemReserved], retry=Retry(max_attempts=2, delay=0.01), name="reserve")
        def reserve(_event: OrderPlaced, context: HandlerContext) -> None:
            context.session.execute(insert(customers), {"name": "first"})
            context.emit(ItemReserved(order_id="o-1"))
            self.misdeed(context.session)
            if self.fails:
                raise RuntimeError("the mail server is away")

        self.events = Events([orders, stock], engine=engine, broker=MemoryBroker())
        self.events.apply_topology()
        with engine.begin() as connection:
            metadata.drop_all(connection)
            Base.metadata.drop_all(connection)
            metadata.create_all(connection)
            Base.metadata.create_all(connection)
            connection.execute(insert(customers), {"name": "ann"})
            connection.execute(insert(Customer), {"name": "ann"})
            for table in (schema.inbox, schema.outbox):
                connection.execute(table.delete())

    def handle(self, envelope: Envelope | None = None) -> Outcome:
        self.envelope = envelope or self.envelope
        call = Call(
            queue="stock.reserve", topic=self.envelope.topic, body=self.envelope.encode(), attempt=1, redelivered=False
        )
        return self.events.handle(call)

    def kept(self) -> dict[str, int]:
        with self.engine.connect() as connection:
            first = connection.execute(select(customers).where(customers.c.name == "first")).all()
            return {
                "effects": len(first),
                "inbox": len(connection.execute(select(schema.inbox)).all()),
                "emitted": len(connection.execute(select(schema.outbox)).all()),
            }


NOTHING, ALL = {"effects": 0, "inbox": 0, "emitted": 0}, {"effects": 1, "inbox": 1, "emitted": 1}


@pytest.fixture
def rig(migrated: Engine) -> Rig:
    return Rig(migrated)


@pytest.mark.parametrize("misdeed", ALLOWED)
def test_savepoints_are_the_handlers_own(rig: Rig, misdeed: Misdeed) -> None:
    rig.misdeed = misdeed
    assert rig.handle().end is End.HANDLED
    assert rig.kept() == ALL
    assert rig.handle().end is End.SKIPPED


@pytest.mark.parametrize("misdeed", REFUSED)
def test_a_handler_may_not_end_its_transaction(rig: Rig, misdeed: Misdeed) -> None:
    rig.misdeed = misdeed
    outcome = rig.handle()
    assert outcome.end is End.REJECTED, outcome
    assert "TransactionMisuse: handler 'stock.reserve'" in outcome.error
    kept = rig.kept()
    if misdeed.__name__ != "driver_commit":  # which nobody can keep from happening
        assert kept == NOTHING
    # A replay, after the mending, is not taken for one that has been handled.
    assert kept["inbox"] == 0
    with rig.engine.begin() as connection:
        connection.execute(customers.delete().where(customers.c.name == "first"))
    rig.misdeed = nothing
    assert rig.handle().end is End.HANDLED


@pytest.mark.parametrize("misdeed", COMPENSATED)
def test_what_was_rolled_back_under_a_handler_is_not_handled(rig: Rig, misdeed: Misdeed) -> None:
    rig.misdeed = misdeed
    outcome = rig.handle()
    assert outcome.end is End.FAILED, outcome
    assert "TransactionLost: handler 'stock.reserve'" in outcome.error
    assert rig.kept() == NOTHING
    rig.misdeed = nothing
    assert rig.handle().end is End.HANDLED
    assert rig.kept() == ALL


def test_an_error_that_is_caught_loses_nothing_in_silence(rig: Rig) -> None:
    """PostgreSQL undoes the transaction, and answers its COMMIT with a ROLLBACK; the others go on."""
    rig.misdeed = caught_error
    outcome = rig.handle()
    if rig.engine.dialect.name == "postgresql":
        assert outcome.end is End.FAILED
        assert "begin_nested" in outcome.error
        assert rig.kept() == NOTHING
    else:
        assert outcome.end is End.HANDLED
        assert rig.kept() == ALL


@pytest.mark.parametrize("migrated", ["sqlite"], indirect=True)
def test_a_trigger_that_rolls_back_is_found_out(rig: Rig) -> None:
    with rig.engine.begin() as connection:
        connection.execute(
            text(
                "create trigger no before insert on customer when new.name = 'bad' begin select raise(rollback, 'no'); end"
            )
        )

    def caught(session: Session) -> None:
        with suppress(DBAPIError):
            session.execute(insert(customers), {"name": "bad"})
        session.execute(insert(customers), {"name": "after"})

    rig.misdeed = caught
    outcome = rig.handle()
    assert outcome.end is End.FAILED, outcome
    assert "TransactionLost" in outcome.error
    assert rig.kept() == NOTHING


@pytest.mark.parametrize("migrated", ["mariadb"], indirect=True)
@pytest.mark.parametrize("fails", [False, True])
def test_ddl_that_commits_is_refused_on_mariadb(rig: Rig, fails: bool) -> None:
    rig.fails = fails
    rig.misdeed = lambda session: session.execute(text("create table if not exists report (n int)"))
    assert (rig.handle().end, rig.kept()) == (End.REJECTED, NOTHING)
    rig.misdeed = lambda session: session.execute(text("create temporary table if not exists report_now (n int)"))
    if not fails:
        assert (rig.handle().end, rig.kept()) == (End.HANDLED, ALL)


@pytest.mark.parametrize("migrated", ["mariadb"], indirect=True)
@pytest.mark.parametrize("fails", [False, True])
def test_a_procedure_that_commits_is_found_out(rig: Rig, fails: bool) -> None:
    """Only MariaDB's may. Nothing shows that before it runs. What it committed stays, but the message does not count as handled."""
    with rig.engine.begin() as connection:
        connection.exec_driver_sql("create or replace procedure closing() commit")
    rig.fails = fails
    rig.misdeed = lambda session: session.execute(text("call closing()"))
    outcome = rig.handle()
    assert outcome.end is End.REJECTED, outcome
    assert "committed its transaction" in outcome.error
    assert rig.kept() == {"effects": 1, "inbox": 0, "emitted": 1}


@pytest.mark.parametrize("migrated", ["mariadb"], indirect=True)
def test_a_deadlock_that_is_caught_is_not_a_success(rig: Rig) -> None:
    """MariaDB rolls the whole transaction back, and what follows would be committed without what came before."""
    with rig.engine.begin() as connection:
        connection.execute(insert(customers), [{"name": "x"}, {"name": "y"}])

    def deadlock(session: Session) -> None:
        touch = "update customer set name = name where name = '{}'"
        session.execute(text(touch.format("x")))
        with rig.engine.connect() as other:
            other.execute(text(touch.format("y")))
            # It has written more, so it is the other that is rolled back.
            other.execute(insert(customers), [{"name": f"n{n}"} for n in range(50)])
            raw_connection: Any = other.connection.dbapi_connection
            raw_connection._execute_command(3, touch.format("x"))  # 3: a query; its answer comes with our deadlock
            with suppress(DBAPIError):
                session.execute(text(touch.format("y")))
            raw_connection._read_query_result()
            other.rollback()
        session.execute(insert(customers), {"name": "after"})

    rig.misdeed = deadlock
    outcome = rig.handle()
    assert outcome.end is End.FAILED, outcome
    assert "TransactionLost" in outcome.error
    assert rig.kept() == NOTHING


# -- the inbox ---------------------------------------------------------------------------------------------------------


def test_two_publishers_may_use_the_same_id(rig: Rig) -> None:
    ours = Envelope.wrap(OrderPlaced(order_id="o-1"), source="orders")
    assert rig.handle(ours).end is End.HANDLED
    with rig.engine.begin() as connection:
        connection.execute(customers.delete().where(customers.c.name == "first"))
    theirs = Envelope.decode(ours.encode().replace(b'"source":"orders"', b'"source":"legacy"'))
    assert theirs.source == "legacy"
    assert rig.handle(theirs).end is End.HANDLED
    assert rig.handle(theirs).end is End.SKIPPED
    assert rig.handle(ours).end is End.SKIPPED


def test_another_message_with_the_id_of_a_handled_one_is_reported(rig: Rig) -> None:
    ours = Envelope.wrap(OrderPlaced(order_id="o-1"), source="orders")
    assert rig.handle(ours).end is End.HANDLED
    other = Envelope.decode(ours.encode().replace(b'"o-1"', b'"o-2"'))
    outcome = rig.handle(other)
    assert outcome.end is End.REJECTED
    assert "other content" in outcome.error
    assert rig.handle(ours).end is End.SKIPPED


# -- steps, and what the library does alone ---------------------------------------------------------------------------


@pytest.fixture
def store(migrated: Engine) -> SqlStore:
    Rig(migrated)
    return SqlStore(migrated)


@pytest.mark.parametrize("misdeed", [*REFUSED, *COMPENSATED])
def test_a_step_may_not_end_its_transaction(store: SqlStore, misdeed: Misdeed) -> None:
    with (
        pytest.raises((TransactionMisuse, TransactionLost)),
        store.transaction("saga 'order', step 'reserve'") as session,
    ):
        session.execute(insert(customers), {"name": "first"})
        misdeed(session)
    if misdeed.__name__ != "driver_commit":
        with store.engine.connect() as connection:
            assert connection.execute(select(customers.c.name)).scalars().all() == ["ann"]


@pytest.mark.parametrize("misdeed", ALLOWED)
def test_a_step_may_use_savepoints(store: SqlStore, misdeed: Misdeed) -> None:
    with store.transaction() as session:
        session.execute(insert(customers), {"name": "first"})
        misdeed(session)
    with store.engine.connect() as connection:
        names = connection.execute(select(customers.c.name)).scalars().all()
    assert "first" in names
    assert "dan" not in names


@pytest.mark.parametrize("own", [lambda store: begun(store.engine), lambda store: store.connections.writing()])
def test_the_librarys_own_commits_are_commits(store: SqlStore, own: Callable[[SqlStore], Any]) -> None:
    def write(connection: Connection) -> None:
        connection.execute(insert(customers), {"name": "first"})
        with suppress(IntegrityError):
            connection.execute(insert(customers), {"name": "ann"})

    if store.dialect == "postgresql":
        with pytest.raises(TransactionLost), own(store) as connection:
            write(connection)
    else:
        with own(store) as connection:
            write(connection)


@pytest.mark.parametrize("migrated", ["postgres"], indirect=True)
@pytest.mark.parametrize("on", ["session", "connection"])
def test_nothing_is_told_of_a_commit_that_postgresql_answers_with_a_rollback(store: SqlStore, on: str) -> None:
    """A saga that is started in a transaction is not dispatched either: both wait for the same commit."""
    told: list[str] = []

    def work(target: Session | Connection) -> None:
        Commits.of(target).after(lambda: told.append("after"))
        with suppress(IntegrityError):
            target.execute(insert(customers), {"name": "ann"})

    if on == "session":
        with Session(store.engine) as session:
            work(session)
            with pytest.raises(TransactionLost):
                session.commit()
    else:
        with pytest.raises(TransactionLost), store.engine.begin() as connection:
            work(connection)
    assert told == []
