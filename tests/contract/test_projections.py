"""What projections promise, on every database that they run on."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import Engine, Integer, String, delete, insert, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sagas import DefinitionError, DuplicateName, NotAllowed, StoreUnavailable
from sagas.errors import ProjectionStopped
from sagas.events import ANY, Events, EventStore, Projection, Projections, StoredEvent
from tests.contract.test_event_store import TYPES, AccountFrozen, AccountOpened, MoneyDeposited, deposits
from tests.servers import wait_for


class Base(DeclarativeBase):
    pass


class Line(Base):
    """One line an event: whatever is handled twice is there twice."""

    __tablename__ = "test_lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    projection: Mapped[str] = mapped_column(String(20))
    stream: Mapped[str] = mapped_column(String(20))
    cents: Mapped[int] = mapped_column(Integer)


@pytest.fixture
def store(event_engine: Engine) -> EventStore:
    Base.metadata.create_all(event_engine)
    with event_engine.begin() as connection:
        connection.execute(delete(Line))
    return EventStore(event_engine, TYPES)


class Flaw:
    """What the projections of these tests do wrong."""

    def __init__(self) -> None:
        self.cents: int | None = None
        self.do: Any = None


def lines(name: str = "lines", version: int = 1, flaw: Flaw | None = None, factor: int = 1) -> Projection:
    projection = Projection(
        name,
        version=version,
        clear=lambda session: session.execute(delete(Line).where(Line.projection == f"{name} {version}")),
    )

    @projection.on(MoneyDeposited)
    def add(stored: StoredEvent[MoneyDeposited], session: Session) -> None:
        if flaw is not None and stored.event.cents == flaw.cents:
            flaw.do(session)
        session.add(Line(projection=str(projection), stream=stored.stream, cents=stored.event.cents * factor))

    return projection


def written(store: EventStore, projection: Projection) -> list[int]:
    query = select(Line.cents).where(Line.projection == str(projection)).order_by(Line.id)
    with store.engine.connect() as connection:
        return list(connection.execute(query).scalars())


def fill(store: EventStore, *cents: int) -> None:
    for each in cents:
        store.append(None, f"s{each % 3}", deposits(each), expected=ANY)


def test_every_event_is_handled_once_in_order(store: EventStore) -> None:
    projection = lines()
    projections = Projections(store, [projection], batch=4)
    assert projections.advance(projection) == 0
    fill(store, *range(10))
    store.append(None, "a", [AccountOpened(owner="ann")], expected=ANY)  # it has no function for this
    assert [projections.advance(projection) for _ in range(4)] == [4, 4, 3, 0]
    fill(store, 10)
    assert projections.catch_up(projection) == 1
    assert written(store, projection) == list(range(11))
    [state] = projections.states()
    assert (state.name, state.version, state.live, state.error) == ("lines", 1, True, None)
    assert state.position == store.read_all()[-1].position


def test_many_runners_share_the_work(store: EventStore) -> None:
    one, two = lines("one"), lines("two")
    fill(store, *range(60))
    failures: list[Exception] = []
    stop = threading.Event()

    def run() -> None:
        try:
            Projections(store, [one, two], batch=3).run(stop, poll=0.01)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    fill(store, *range(60, 80))
    try:
        wait_for(lambda: failures or all(len(written(store, each)) >= 80 for each in (one, two)), 30)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    for each in (one, two):
        by_stream = {n % 3: [cents for cents in written(store, each) if cents % 3 == n] for n in range(3)}
        assert all(cents == sorted(cents) for cents in by_stream.values())
        assert written(store, each) == list(range(80))


def fail(_: Session) -> None:
    raise ZeroDivisionError("no cents \0 \ud800 💶")


def break_a_rule(session: Session) -> None:
    session.execute(insert(Line).values(id=None, projection=None, stream="s", cents=1))


def add_what_cannot_be_flushed(session: Session) -> None:
    session.add(Line(projection=None, stream="s", cents=1))


def roll_back(session: Session) -> None:
    session.rollback()


@pytest.mark.parametrize("what", [fail, break_a_rule, add_what_cannot_be_flushed, roll_back])
def test_it_stops_at_an_event_that_it_cannot_handle(store: EventStore, what: Any) -> None:
    flaw = Flaw()
    projection, other = lines(flaw=flaw), lines("other")
    projections = Projections(store, [projection, other], batch=5)
    fill(store, *range(10))
    flaw.cents, flaw.do = 7, what
    assert projections.advance(projection) == 5
    position = store.read_all()[7].position
    for _ in range(2):
        with pytest.raises(ProjectionStopped, match=f"lines 1 stopped at position {position}: .*stream 's1' version 3"):
            projections.advance(projection)
    assert written(store, projection) == [0, 1, 2, 3, 4, 5, 6]  # all before it
    assert projections.catch_up(other) == 10  # it holds nobody else up
    state = projections.states()[0]
    assert state.failed_position == position
    assert state.error is not None
    assert "accounts.money.deposited version 1, stream 's1' version 3" in state.error
    projections.resume(projection)
    with pytest.raises(ProjectionStopped):
        projections.advance(projection)
    flaw.cents = None
    projections.resume(projection)
    assert projections.catch_up(projection) == 3
    assert written(store, projection) == list(range(10))
    assert projections.states()[0].error is None


def test_what_cannot_be_read_stops_it_too(store: EventStore) -> None:
    fill(store, 1)
    EventStore(store.engine, [AccountFrozen]).append(None, "a", [AccountFrozen(reason="r")], expected=ANY)
    fill(store, 2)
    projection = lines()
    with pytest.raises(ProjectionStopped, match="UnknownType at event .*'accounts.account.frozen' is not among"):
        Projections(store, [projection]).advance(projection)
    assert written(store, projection) == [1]
    mended = Projections(EventStore(store.engine, [*TYPES, AccountFrozen]), [projection])
    mended.resume(projection)
    mended.catch_up(projection)
    assert written(store, projection) == [1, 2]


def test_a_function_that_commits_commits_nothing(store: EventStore) -> None:
    flaw = Flaw()
    projection = lines(flaw=flaw)
    projections = Projections(store, [projection])
    fill(store, *range(4))

    def commit_and_fail(session: Session) -> None:
        session.commit()
        raise ZeroDivisionError

    flaw.cents, flaw.do = 2, commit_and_fail
    with pytest.raises(ProjectionStopped):
        projections.advance(projection)
    assert written(store, projection) == [0, 1]


def test_a_database_in_trouble_is_not_the_events_fault(store: EventStore) -> None:
    flaw = Flaw()
    projection = lines(flaw=flaw)
    projections = Projections(store, [projection])
    fill(store, *range(4))
    troubles = 2

    def deadlock(_: Session) -> None:
        nonlocal troubles
        troubles -= 1
        if troubles >= 0:
            raise OperationalError("update", {}, Exception("deadlock found"))

    flaw.cents, flaw.do = 2, deadlock
    assert projections.advance(projection) == 4
    assert written(store, projection) == [0, 1, 2, 3]
    fill(store, 2)
    troubles = 100  # it does not pass: so it is the event after all
    with pytest.raises(ProjectionStopped, match="deadlock found"):
        projections.advance(projection)
    assert troubles == 97


def test_one_process_at_a_time_is_at_work(store: EventStore) -> None:
    flaw = Flaw()
    projection = lines(flaw=flaw)
    fill(store, *range(4))
    at_once: list[int] = []

    def look(_: Session) -> None:
        flaw.cents = None
        if store.engine.dialect.name != "sqlite":  # there it would wait for this one
            at_once.append(Projections(store, [projection]).advance(projection))

    flaw.cents, flaw.do = 2, look
    assert Projections(store, [projection]).advance(projection) == 4
    assert sum(at_once) == 0
    assert written(store, projection) == [0, 1, 2, 3]


def test_two_processes_at_the_same_events(store: EventStore) -> None:
    """Where no lock keeps them apart, the position does: the slower one has written nothing."""
    flaw = Flaw()
    projection = lines(flaw=flaw)
    projections = Projections(store, [projection])
    fill(store, *range(4))

    def overtake(session: Session) -> None:
        session.execute(text("update events_projection set position = position + 1"))

    flaw.cents, flaw.do = 2, overtake
    with pytest.raises(StoreUnavailable, match="another process advanced it"):
        projections.advance(projection)
    assert written(store, projection) == []


# -- versions ---------------------------------------------------------------------------------------------------------


def test_a_new_version_is_built_beside_the_old_one(store: EventStore) -> None:
    old, new = lines(version=1), lines(version=2, factor=100)
    fill(store, 1, 2, 3)
    Projections(store, [old]).catch_up(old)
    projections = Projections(store, [old, new], batch=2)
    assert projections.live_version("lines") == 1
    assert projections.rebuild(new) == 3
    assert projections.live_version("lines") == 1
    fill(store, 4, 5, 6, 7, 8)
    projections.catch_up(old)
    assert written(store, new) == [100, 200, 300]
    assert projections.promote(new) == 1
    assert projections.live_version("lines") == 2
    assert written(store, new) == [each * 100 for each in range(1, 9)]  # it caught up first
    assert projections.promote(new) is None
    fill(store, 9)
    projections.catch_up(new)
    assert projections.promote(old) == 2  # and back
    assert written(store, old) == list(range(1, 10))
    with Session(store.engine) as session:
        assert projections.live_version("lines", session) == 1
    assert projections.live_version("nothing") is None
    assert [(s.name, s.version, s.live) for s in projections.states()] == [("lines", 1, True), ("lines", 2, False)]


def test_a_swap_catches_up_with_the_live_one_in_its_own_transaction(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = lines(version=1), lines(version=2)
    projections = Projections(store, [old, new], batch=2)
    fill(store, 1)
    projections.catch_up(old)
    projections.rebuild(new)
    catch_up = projections.catch_up

    def overtaken(projection: Projection) -> int:
        """The old one goes on after the new one has caught up, and before the swap."""
        seen = catch_up(projection)
        if projection is new:
            fill(store, 2, 3, 4, 5, 6)
            catch_up(old)
        return seen

    monkeypatch.setattr(projections, "catch_up", overtaken)
    projections.promote(new)
    assert written(store, new) == [1, 2, 3, 4, 5, 6]
    assert projections.live_version("lines") == 2


def test_one_that_stopped_is_not_swapped_in(store: EventStore) -> None:
    flaw = Flaw()
    old, new = lines(version=1), lines(version=2, flaw=flaw)
    projections = Projections(store, [old, new])
    fill(store, 1, 2, 3)
    projections.catch_up(old)
    flaw.cents, flaw.do = 2, fail
    for attempt in (projections.rebuild, projections.promote):
        with pytest.raises(ProjectionStopped, match="lines 2"):
            attempt(new)
    assert projections.live_version("lines") == 1
    flaw.cents = None
    projections.rebuild(new)
    assert written(store, new) == [1, 2, 3]
    assert projections.promote(new) == 1


def test_a_rebuild_begins_anew(store: EventStore) -> None:
    old, new = lines(version=1), lines(version=2)
    projections = Projections(store, [old, new])
    fill(store, 1, 2)
    with pytest.raises(NotAllowed, match="lines 1 is live"):
        projections.rebuild(old)
    for _ in range(2):
        assert projections.rebuild(new) == 2
        assert written(store, new) == [1, 2]
    new.clear = None
    with pytest.raises(NotAllowed, match="lines 2 has processed events up to position .*clear=function"):
        projections.rebuild(new)
    assert written(store, new) == [1, 2]


def test_of_many_first_versions_one_is_live(store: EventStore) -> None:
    versions = [lines(version=n) for n in (1, 2, 3)]
    barrier = threading.Barrier(6)

    def register(number: int) -> None:
        projections = Projections(store, versions)
        barrier.wait()
        projections.register(versions[number % 3])

    threads = [threading.Thread(target=register, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states = Projections(store).states()
    assert [state.version for state in states] == [1, 2, 3]
    assert [state.live for state in states].count(True) == 1


# -- declaring --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_declared(store: EventStore) -> None:
    projection = lines()
    with pytest.raises(DuplicateName, match="lines 1: 'accounts.money.deposited' already has a function"):
        projection.on(MoneyDeposited)(lambda stored, session: None)
    with pytest.raises(DuplicateName, match="two projections lines 1"):
        Projections(store, [projection, lines()])
    with pytest.raises(DefinitionError, match="handles 'accounts.money.deposited' version 1, which its store"):
        Projections(EventStore(store.engine, [AccountOpened]), [projection])
    with pytest.raises(DefinitionError, match="no projection lines 3. It has: lines 1"):
        Projections(store, [projection]).get("lines", 3)
    assert Projections(store, [projection, lines(version=2)]).get("lines").version == 2
    for name, version in (("", 1), ("x" * 101, 1), ("x", 0)):
        with pytest.raises(DefinitionError, match="a name has 1 to 100 characters"):
            Projection(name, version=version)


def test_events_know_their_store_and_projections(store: EventStore) -> None:
    projection = lines()
    broker: Any = None
    events = Events([], engine=store.engine, broker=broker, store=store, projections=[projection])
    assert events.projections is not None
    assert list(events.projections.known.values()) == [projection]
    with pytest.raises(DefinitionError, match="projection lines 1 has no event store"):
        Events([], engine=store.engine, broker=broker, projections=[projection])


def test_changed_positions_are_kept(store: EventStore) -> None:
    """The row is all that a runner knows: another process finds what this one left."""
    fill(store, *range(6))
    Projections(store, [lines()], batch=2).advance(lines())
    other = Projections(store, [lines()])
    assert other.catch_up(other.get("lines")) == 4
    assert written(store, lines()) == list(range(6))
