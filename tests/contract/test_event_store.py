"""What the event store promises, on every database that it runs on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Engine, create_engine, event, select, text, update
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from sagas import ConfigurationError, DefinitionError, SqlStore, StoreUnavailable
from sagas.errors import InvalidMessage, UnknownType, UnknownVersion, WrongExpectedVersion
from sagas.events import ANY, NO_STREAM, Envelope, EventStore, Snapshots, command, fold
from sagas.events import event as event_type
from sagas.stores import schema
from sagas.stores.drivers import autocommitting
from tests.contract.conftest import empty
from tests.servers import Postgres


@event_type("accounts.account.opened")
class AccountOpened:
    owner: str


@event_type("accounts.money.deposited")
class MoneyDeposited:
    cents: int


@command("accounts.close_account")
class CloseAccount:
    account: str


@event_type("accounts.account.frozen")
class AccountFrozen:
    reason: str


TYPES = [AccountOpened, MoneyDeposited]


@pytest.fixture
def store(event_engine: Engine) -> EventStore:
    return EventStore(event_engine, TYPES)


def deposits(*cents: int) -> list[MoneyDeposited]:
    return [MoneyDeposited(cents=each) for each in cents]


def contents(store: EventStore, stream: str, **options: int) -> list[int]:
    return [each.event.cents for each in store.read(stream, **options)]


def race(what: Callable[[int], object]) -> None:
    """Do something six times at once."""
    barrier = threading.Barrier(6)

    def run(number: int) -> None:
        barrier.wait()
        what(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_what_was_appended_is_read(store: EventStore) -> None:
    opened = AccountOpened(owner='ü\u0000💶"\\')
    assert store.append(None, "a", [opened, *deposits(5)], expected=NO_STREAM, metadata={"by": "ann"}) == 2
    assert store.append(None, "b", deposits(7), expected=ANY) == 1
    assert store.append(None, "a", deposits(6), expected=2, correlation_id="story") == 3
    first, second, third = store.read("a")
    assert [e.event for e in (first, second, third)] == [opened, *deposits(5, 6)]
    assert [e.stream_version for e in (first, second, third)] == [1, 2, 3]
    assert first.position < second.position < third.position
    assert {e.stream for e in (first, second, third)} == {"a"}
    assert first.metadata["by"] == "ann"
    assert first.correlation_id == first.event_id != second.event_id
    assert third.correlation_id == "story"
    assert third.recorded_at.tzinfo is UTC
    assert abs(third.recorded_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert contents(store, "a", after=1) == [5, 6]
    assert contents(store, "a", after=1, limit=1) == [5]
    assert store.read("nothing") == []
    assert store.read("A") == []  # streams are told apart by case everywhere


def test_all_are_read_in_order(store: EventStore) -> None:
    for number in range(10):
        store.append(None, f"s{number % 3}", deposits(number), expected=ANY)
    seen: list[int] = []
    position = 0
    while page := store.read_all(after=position, limit=3):
        seen += [each.event.cents for each in page]
        position = page[-1].position
    assert seen == list(range(10))


@pytest.mark.parametrize("expected", [NO_STREAM, 1, 3])
def test_another_version_is_a_conflict(store: EventStore, expected: int) -> None:
    store.append(None, "a", deposits(1, 2), expected=NO_STREAM)
    with pytest.raises(WrongExpectedVersion, match="'a' was expected .* is at version 2") as raised:
        store.append(None, "a", deposits(3), expected=expected)
    assert (raised.value.stream, raised.value.expected, raised.value.actual) == ("a", expected, 2)
    assert contents(store, "a") == [1, 2]


def test_a_stream_that_is_not_there(store: EventStore) -> None:
    with pytest.raises(WrongExpectedVersion, match="at version 1, but is at version 0"):
        store.append(None, "a", deposits(1), expected=1)
    assert store.read("a") == []
    assert store.append(None, "a", deposits(1), expected=NO_STREAM) == 1


def test_of_many_writers_one_wins(store: EventStore) -> None:
    store.append(None, "a", deposits(0), expected=NO_STREAM)
    for version, expected in ((1, 1), (0, NO_STREAM)):
        stream = "a" if version else "new"
        won: list[int] = []
        conflicts: list[WrongExpectedVersion] = []

        def append(number: int) -> None:
            try:
                store.append(None, stream, deposits(number, number), expected=expected)  # noqa: B023
                won.append(number)  # noqa: B023
            except WrongExpectedVersion as conflict:
                conflicts.append(conflict)  # noqa: B023

        race(append)
        assert len(won) == 1
        assert len(conflicts) == 5
        assert contents(store, stream, after=version) == [won[0]] * 2


def test_any_version_takes_everybody(store: EventStore) -> None:
    versions: list[int] = []

    def append(number: int) -> None:
        for _ in range(5):
            versions.append(store.append(None, "a", deposits(number, number), expected=ANY))

    race(append)
    assert sorted(versions) == list(range(2, 62, 2))
    events = store.read("a")
    assert [each.stream_version for each in events] == list(range(1, 61))
    assert [each.position for each in events] == sorted(each.position for each in events)


def test_an_append_is_part_of_its_callers_transaction(store: EventStore) -> None:
    with Session(store.engine) as session:
        assert store.append(session, "a", deposits(1), expected=NO_STREAM) == 1
        assert store.append(session, "a", deposits(2), expected=1) == 2
        session.rollback()
        assert store.append(session, "a", deposits(3), expected=NO_STREAM) == 1
        with pytest.raises(WrongExpectedVersion):
            store.append(session, "a", deposits(4), expected=NO_STREAM)
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            store.append(session, "a", deposits(5), expected=1)
            raise ZeroDivisionError
        store.append(session, "b", deposits(6), expected=ANY)
        session.commit()
    with store.engine.begin() as connection:
        store.append(connection, "a", deposits(7), expected=1)
    assert contents(store, "a") == [3, 7]
    assert contents(store, "b") == [6]
    assert [each.event.cents for each in store.read_all()] == [3, 6, 7]


def test_a_session_on_another_database(store: EventStore) -> None:
    with create_engine("sqlite://").connect() as connection:
        if store.engine.dialect.name != "sqlite":
            with pytest.raises(ConfigurationError, match="the session uses sqlite"):
                store.append(connection, "a", deposits(1), expected=ANY)


# -- envelopes ------------------------------------------------------------------------------------------------------


def wrapped(*cents: int) -> list[Envelope]:
    return [Envelope.wrap(each, source="accounts", key="k", metadata={"by": "ann"}) for each in deposits(*cents)]


@pytest.mark.parametrize("expected", [ANY, NO_STREAM])
def test_an_append_of_envelopes_may_be_repeated(store: EventStore, expected: Any) -> None:
    one, two, three = envelopes = wrapped(1, 2, 3)
    assert store.append(None, "a", [one, two], expected=expected) == 2
    assert store.append(None, "a", [three], expected=2) == 3
    assert store.append(None, "a", [one, two], expected=expected) == 2
    with Session(store.engine) as session:
        assert store.append(session, "a", [three], expected=2) == 3
        session.commit()
    assert [each.event_id for each in store.read("a")] == [each.event_id for each in envelopes]
    assert store.read("a")[0].metadata == one.metadata


def test_envelopes_that_are_stored_otherwise(store: EventStore) -> None:
    one, two, three = wrapped(1, 2, 3)
    store.append(None, "a", [one, two], expected=NO_STREAM)
    for stream, again in (("a", [two, three]), ("b", [one, two]), ("a", [two, one]), ("a", [one, *deposits(9)])):
        with pytest.raises(WrongExpectedVersion, match="are already stored"):
            store.append(None, stream, again, expected=ANY)
    with Session(store.engine) as session:
        with pytest.raises(WrongExpectedVersion):
            store.append(session, "b", [two], expected=NO_STREAM)
        store.append(session, "b", [three], expected=NO_STREAM)
        session.commit()
    assert contents(store, "a") == [1, 2]
    assert contents(store, "b") == [3]


def test_of_many_appends_of_the_same_envelopes_one_counts(store: EventStore) -> None:
    envelopes = wrapped(1, 2)
    versions: list[int] = []
    race(lambda _: versions.append(store.append(None, "a", envelopes, expected=ANY)))
    assert versions == [2] * 6
    assert contents(store, "a") == [1, 2]


# -- types ------------------------------------------------------------------------------------------------------------


def test_old_versions_are_brought_up_and_stay_as_they_are(store: EventStore) -> None:
    @event_type("accounts.money.deposited", version=2, upcasters={1: lambda old: {**old, "currency": "EUR"}})
    class InCurrency:
        cents: int
        currency: str

    store.append(None, "a", deposits(5), expected=NO_STREAM)
    newer = EventStore(store.engine, [InCurrency])
    newer.append(None, "a", [InCurrency(cents=6, currency="CHF")], expected=1)
    assert [e.event for e in newer.read("a")] == [
        InCurrency(cents=5, currency="EUR"),
        InCurrency(cents=6, currency="CHF"),
    ]
    with pytest.raises(
        UnknownVersion, match=r"stream 'a' version 2: .*version 2 of 'accounts.money.deposited'.*Readable: 1"
    ):
        store.read("a")
    with store.engine.connect() as connection:
        rows = connection.execute(select(schema.stored_events.c.data).order_by(schema.stored_events.c.position))
        assert rows.scalars().all() == ['{"cents":5}', '{"cents":6,"currency":"CHF"}']


def test_unknown_types_are_named(store: EventStore) -> None:
    frozen = AccountFrozen(reason="r")
    with pytest.raises(UnknownType, match=r"'a'.*'accounts.account.frozen' is not among .*accounts.account.opened"):
        store.append(None, "a", [frozen], expected=ANY)
    EventStore(store.engine, [AccountFrozen]).append(None, "a", [frozen], expected=ANY)
    for read in (lambda: store.read("a"), store.read_all, lambda: store.load("a", lambda _s, _e: None, None)):
        with pytest.raises(UnknownType, match=r"stream 'a' version 1: its type 'accounts.account.frozen'"):
            read()


def test_data_that_does_not_fit(store: EventStore) -> None:
    store.append(None, "a", deposits(5), expected=NO_STREAM)
    with store.engine.begin() as connection:
        connection.execute(update(schema.stored_events).values(data='{"cents":"five"}'))
    with pytest.raises(InvalidMessage, match="stream 'a' version 1.*cents"):
        store.read("a")


def test_what_is_no_event(store: EventStore) -> None:
    with pytest.raises(InvalidMessage, match="accounts.close_account' is a command"):
        store.append(None, "a", [CloseAccount(account="a")], expected=ANY)
    with pytest.raises(DefinitionError, match="neither an event nor a command"):
        store.append(None, "a", ["deposited"], expected=ANY)
    with pytest.raises(InvalidMessage, match="no events to append"):
        store.append(None, "a", [], expected=ANY)
    for name in ("", "a" * 201):
        with pytest.raises(InvalidMessage, match="1 to 200 characters"):
            store.append(None, name, deposits(1), expected=ANY)
    with pytest.raises(DefinitionError, match="is a command"):
        EventStore(store.engine, [CloseAccount])


def test_two_types_that_read_the_same(store: EventStore) -> None:
    @event_type("accounts.money.deposited", version=2, upcasters={1: lambda old: old})
    class Newer:
        cents: int

    with pytest.raises(DefinitionError, match=r"version 1 of .* as MoneyDeposited and as .*Newer"):
        EventStore(store.engine, [MoneyDeposited, Newer])


# -- states -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    cents: int = 0
    moves: int = 0


def move(account: Account, event: MoneyDeposited) -> Account:
    return replace(account, cents=account.cents + event.cents, moves=account.moves + 1)


def test_a_state_is_made_of_its_events(store: EventStore) -> None:
    loaded = store.load("a", move, Account())
    assert (loaded.state, loaded.version) == (Account(), 0)
    store.append(None, "a", deposits(*range(2500)), expected=loaded.version)  # more than a page
    loaded = store.load("a", move, Account())
    assert (loaded.state, loaded.version) == (Account(sum(range(2500)), 2500), 2500)
    assert fold(loaded.state, deposits(1, 2), move) == Account(sum(range(2500)) + 3, 2502)


def test_a_snapshot_spares_its_events(store: EventStore) -> None:
    kind = Snapshots(type=Account, every=10)
    store.append(None, "a", deposits(*range(9)), expected=NO_STREAM)
    assert kept(store, "a") == []
    assert store.load("a", move, Account(), snapshots=kind).version == 9
    assert kept(store, "a") == []  # not yet
    store.append(None, "a", deposits(9), expected=9)
    seen: list[int] = []

    def counted(account: Account, event: MoneyDeposited) -> Account:
        seen.append(event.cents)
        return move(account, event)

    assert store.load("a", counted, Account(), snapshots=kind).state == Account(45, 10)
    assert seen == list(range(10))
    assert kept(store, "a") == [(1, 10)]
    store.append(None, "a", deposits(100, 200), expected=10)
    seen.clear()
    loaded = store.load("a", counted, Account(), snapshots=kind)
    assert (loaded.state, loaded.version) == (Account(345, 12), 12)
    assert seen == [100, 200]
    store.append(None, "a", deposits(*[1] * 8), expected=12)
    store.load("a", move, Account(), snapshots=kind)
    assert kept(store, "a") == [(1, 20)]
    assert store.load("a", move, Account(), snapshots=kind) == store.load("a", move, Account())


def kept(store: EventStore, stream: str) -> list[tuple[int, int]]:
    columns = schema.snapshots.c
    query = select(columns.schema_version, columns.stream_version).where(columns.stream == stream)
    with store.engine.connect() as connection:
        return [(row[0], row[1]) for row in connection.execute(query.order_by(columns.schema_version))]


def test_a_snapshot_of_another_schema_is_not_read(store: EventStore) -> None:
    @dataclass(frozen=True)
    class Total:
        euros: float = 0

    store.append(None, "a", deposits(*[100] * 10), expected=NO_STREAM)
    old, new = Snapshots(type=Account, every=5), Snapshots(type=Total, every=5, schema_version=2)

    def add(total: Total, event: MoneyDeposited) -> Total:
        return Total(total.euros + event.cents / 100)

    for _ in range(2):  # old and new code, side by side
        assert store.load("a", move, Account(), snapshots=old).state == Account(1000, 10)
        assert store.load("a", add, Total(), snapshots=new).state == Total(10)
    assert kept(store, "a") == [(1, 10), (2, 10)]


def test_a_snapshot_that_cannot_be_read_is_made_again(store: EventStore) -> None:
    kind = Snapshots(type=Account, every=2)
    store.append(None, "a", deposits(1, 2), expected=NO_STREAM)
    store.load("a", move, Account(), snapshots=kind)
    with store.engine.begin() as connection:
        connection.execute(update(schema.snapshots).values(state='{"cents":"many"}'))
    assert store.load("a", move, Account(), snapshots=kind).state == Account(3, 2)
    with store.engine.connect() as connection:
        assert connection.execute(select(schema.snapshots.c.state)).scalar_one() == '{"cents":3,"moves":2}'


def test_an_older_snapshot_does_not_replace_a_newer_one(store: EventStore) -> None:
    kind = Snapshots(type=Account, every=2)
    store.append(None, "a", deposits(1, 2), expected=NO_STREAM)

    def overtaken(account: Account, event: MoneyDeposited) -> Account:
        if event.cents == 2:
            store.append(None, "a", deposits(3, 4), expected=2)
            store.load("a", move, Account(), snapshots=kind)
        return move(account, event)

    assert store.load("a", overtaken, Account(), snapshots=kind).version == 2
    assert kept(store, "a") == [(1, 4)]
    assert store.load("a", move, Account(), snapshots=kind).state == Account(10, 4)


def test_a_snapshot_whose_type_has_gained_a_field_is_made_again(store: EventStore) -> None:
    @dataclass(frozen=True)
    class Before:
        cents: int = 0

    @dataclass(frozen=True)
    class After:
        cents: int = 0
        largest: int = 0

    def grow(state: Before, event: MoneyDeposited) -> Before:
        return Before(state.cents + event.cents)

    def measure(state: After, event: MoneyDeposited) -> After:
        return After(state.cents + event.cents, max(state.largest, event.cents))

    store.append(None, "a", deposits(100, 5), expected=NO_STREAM)
    assert store.load("a", grow, Before(), snapshots=Snapshots(type=Before, every=2)).state == Before(105)
    store.append(None, "a", deposits(7), expected=2)
    for _ in range(2):
        assert store.load("a", measure, After(), snapshots=Snapshots(type=After, every=2)).state == After(112, 100)
    assert kept(store, "a") == [(1, 3)]


def test_the_state_at_a_moment(store: EventStore) -> None:
    day = datetime(2026, 1, 1, 12, tzinfo=UTC)
    store.append(None, "a", deposits(1, 2, 4, 8), expected=NO_STREAM)
    with store.engine.begin() as connection:
        for number in range(1, 5):
            moment = update(schema.stored_events).where(schema.stored_events.c.stream_version == number)
            connection.execute(moment.values(recorded_at=day + timedelta(days=number)))
    kind = Snapshots(type=Account, every=2)
    store.load("a", move, Account(), snapshots=kind)  # there is one of a later moment
    for after, expected in ((0, 0), (1, 1), (2, 3), (3.5, 7), (4, 15), (90, 15)):
        loaded = store.load("a", move, Account(), snapshots=kind, at=day + timedelta(days=after))
        assert (loaded.state.cents, loaded.version) == (expected, min(int(after), 4))
    elsewhere = (day + timedelta(days=2)).astimezone(timezone(timedelta(hours=9)))
    assert store.load("a", move, Account(), at=elsewhere).version == 2
    assert store.load("nothing", move, Account(), at=day).version == 0
    with pytest.raises(ValueError, match="time zone"):
        store.load("a", move, Account(), at=datetime(2026, 1, 1))  # noqa: DTZ001
    assert kept(store, "a") == [(1, 4)]
    with pytest.raises(WrongExpectedVersion):  # what was decided on an old state is not appended to the new one
        store.append(None, "a", deposits(5), expected=2)


def test_a_state_that_cannot_be_kept(store: EventStore) -> None:
    store.append(None, "a", deposits(1), expected=NO_STREAM)
    with pytest.raises(InvalidMessage, match="'a': its state cannot be stored as a snapshot"):
        store.load("a", lambda _state, _event: object(), None, snapshots=Snapshots(type=Account, every=1))
    with pytest.raises(DefinitionError, match="must be 1 or more"):
        Snapshots(type=Account, every=0)


@pytest.mark.parametrize("url", ["postgresql+psycopg://x@127.0.0.1:1/x", "mysql+pymysql://x@127.0.0.1:1/x"])
def test_a_database_that_does_not_answer(url: str) -> None:
    store = EventStore(create_engine(url), TYPES)
    for ask in (lambda: store.read("a"), store.read_all, lambda: store.append(None, "a", deposits(1), expected=ANY)):
        with pytest.raises(StoreUnavailable, match="the database"):
            ask()


# -- past SQLAlchemy, on PostgreSQL ---------------------------------------------------------------------------------


def test_only_psycopgs_own_engine_goes_past_sqlalchemy(store: EventStore, request: pytest.FixtureRequest) -> None:
    executed: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda *given: executed.append(given[2]))
    store.append(None, "a", deposits(1), expected=NO_STREAM)
    assert bool(executed) == ("[postgres]" not in request.node.name)


def test_lost_connections_are_replaced(postgres: Postgres) -> None:
    kept = SqlStore(postgres.database())
    kept.upgrade()
    store = EventStore(kept.engine, TYPES)
    with kept.engine.connect(), kept.engine.connect():
        pass  # two connections in the pool
    end = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = :it")
    with create_engine(postgres.database()).connect() as other:
        other.execute(end, {"it": kept.engine.url.database})
    with pytest.raises(StoreUnavailable, match="the database"):
        store.append(None, "a", deposits(1), expected=NO_STREAM)
    for number in range(3):
        assert store.append(None, "a", deposits(number), expected=number) == number + 1


def test_a_refused_statement_leaves_its_connection_whole(postgres: Postgres) -> None:
    store = EventStore(create_engine(postgres.database(), pool_size=1, max_overflow=0), TYPES)
    for _ in range(2):
        with pytest.raises(ProgrammingError, match="events_event"):
            store.append(None, "a", deposits(1), expected=NO_STREAM)
    SqlStore(store.engine).upgrade()
    with store.engine.connect() as connection:
        assert not connection.connection.driver_connection.autocommit  # type: ignore[union-attr]
    assert store.append(None, "a", deposits(1), expected=NO_STREAM) == 1


def test_a_statement_that_an_exception_interrupts_loses_its_connection(postgres: Postgres) -> None:
    engine = create_engine(postgres.database(), pool_size=1, max_overflow=0)
    for interruption in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(interruption), autocommitting(engine) as driver:
            raise interruption
        assert driver.closed
    with autocommitting(engine) as driver:
        assert driver.execute("SELECT 1").fetchone() == (1,)


# -- against a model --------------------------------------------------------------------------------------------------

STREAMS = st.sampled_from(["a", "b", "c"])
CENTS = st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=4)


class Model(RuleBasedStateMachine):
    """A store, beside a dictionary that says what must be in it."""

    engine: Engine

    @initialize()
    def begin(self) -> None:
        empty(self.engine)
        self.store = EventStore(self.engine, TYPES)
        self.streams: dict[str, list[int]] = {}
        self.order: list[tuple[str, int]] = []
        self.appended: list[tuple[str, list[Envelope], int]] = []

    def happened(self, stream: str, cents: list[int]) -> None:
        for each in cents:
            self.streams.setdefault(stream, []).append(each)
            self.order.append((stream, each))

    @rule(
        stream=STREAMS,
        cents=CENTS,
        expected=st.one_of(st.just(ANY), st.integers(0, 12), st.none()),
        commit=st.booleans(),
    )
    def append(self, stream: str, cents: list[int], expected: Any, commit: bool) -> None:
        at = len(self.streams.get(stream, []))
        expected = at if expected is None else expected
        with Session(self.engine) as session:
            if expected is ANY or expected == at:
                assert self.store.append(session, stream, deposits(*cents), expected=expected) == at + len(cents)
                if commit:
                    session.commit()
                    self.happened(stream, cents)
            else:
                with pytest.raises(WrongExpectedVersion) as raised:
                    self.store.append(session, stream, deposits(*cents), expected=expected)
                assert raised.value.actual == at
                session.commit()

    @rule(stream=STREAMS, cents=CENTS)
    def append_alone(self, stream: str, cents: list[int]) -> None:
        at = len(self.streams.get(stream, []))
        assert self.store.append(None, stream, deposits(*cents), expected=at) == at + len(cents)
        self.happened(stream, cents)

    @rule(stream=STREAMS, cents=CENTS)
    def append_envelopes(self, stream: str, cents: list[int]) -> None:
        envelopes = wrapped(*cents)
        version = self.store.append(None, stream, envelopes, expected=ANY)
        self.happened(stream, cents)
        assert version == len(self.streams[stream])
        self.appended.append((stream, envelopes, version))

    @rule(which=st.integers(0, 100))
    def append_them_again(self, which: int) -> None:
        if self.appended:
            stream, envelopes, version = self.appended[which % len(self.appended)]
            assert self.store.append(None, stream, envelopes, expected=ANY) == version

    @rule(stream=STREAMS, after=st.integers(0, 12), limit=st.integers(1, 5))
    def read(self, stream: str, after: int, limit: int) -> None:
        assert contents(self.store, stream, after=after, limit=limit) == self.streams.get(stream, [])[after:][:limit]

    @rule(stream=STREAMS, every=st.integers(1, 5), schema_version=st.integers(1, 2))
    def load(self, stream: str, every: int, schema_version: int) -> None:
        kind = Snapshots(type=Account, every=every, schema_version=schema_version)
        cents = self.streams.get(stream, [])
        loaded = self.store.load(stream, move, Account(), snapshots=kind)
        assert (loaded.state, loaded.version) == (Account(sum(cents), len(cents)), len(cents))

    @invariant()
    def all_is_there(self) -> None:
        if hasattr(self, "store"):
            events = self.store.read_all()
            assert [(each.stream, each.event.cents) for each in events] == self.order
            positions = [each.position for each in events]
            assert positions == sorted(set(positions))


def test_it_does_what_its_model_does(event_engine: Engine) -> None:
    machine = type("Machine", (Model,), {"engine": event_engine})
    examples = 25 if event_engine.dialect.name == "sqlite" else 12
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=20, deadline=None, derandomize=True)
    )


# -- readers of all events, while others write ------------------------------------------------------------------------


def test_a_reader_waits_for_writers_who_began_before(store: EventStore) -> None:
    """The first writer's position comes before the second one's; so may its commit, or not."""
    for name, end in (("a", Session.commit), ("b", Session.rollback)):
        before = store.read_all()
        position = before[-1].position if before else 0
        with Session(store.engine) as slow:
            store.append(slow, f"slow {name}", deposits(1), expected=NO_STREAM)
            second = threading.Thread(
                target=lambda: store.append(None, f"quick {name}", deposits(2), expected=NO_STREAM)  # noqa: B023
            )
            second.start()
            if store.engine.dialect.name == "postgresql":  # elsewhere the second writer waits for the first
                second.join()
                assert store.read(f"quick {name}")
            assert store.read_all(after=position) == []
            end(slow)
        second.join()
        expected = [1, 2] if end is Session.commit else [2]
        assert [each.event.cents for each in store.read_all(after=position)] == expected
