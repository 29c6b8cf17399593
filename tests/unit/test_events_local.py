"""The in-process bus: who is called when, and what becomes of failures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sagas import DefinitionError, DuplicateName, SqlStore
from sagas.errors import EventError, HandlersFailed, NoHandler
from sagas.events import command, event
from sagas.events.local import LocalBus, When
from sagas.stores.engines import reading


@event("orders.order.placed")
class OrderPlaced:
    order_id: str = "o-1"


@event("orders.order.counted")
class OrderCounted:
    order_id: str = "o-1"


@command("stock.reserve")
class Reserve:
    sku: str = "tea"


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    store = SqlStore(f"sqlite:///{tmp_path / 'local.db'}")
    with store.engine.begin() as connection:
        connection.execute(text("create table effect (n varchar(20))"))
    with Session(store.engine) as session:
        yield session
    store.engine.dispose()


class Heard:
    """Handlers that say that they were called."""

    def __init__(self, bus: LocalBus) -> None:
        self.bus = bus
        self.calls: list[str] = []

    def subscribe(
        self, name: str, when: When = "inline", fails: Exception | None = None, cls: type = OrderPlaced
    ) -> None:
        def handler(event: Any) -> None:
            self.calls.append(name)
            if fails is not None:
                raise fails

        handler.__qualname__ = name
        self.bus.subscribe(cls, handler, when=when)


@pytest.fixture
def bus() -> LocalBus:
    return LocalBus()


@pytest.fixture
def heard(bus: LocalBus) -> Heard:
    return Heard(bus)


def test_each_in_its_phase_and_there_in_the_order_of_subscription(
    bus: LocalBus, heard: Heard, session: Session
) -> None:
    for n in (1, 2):
        for when in ("after_commit", "before_commit", "inline"):
            heard.subscribe(f"{when} {n}", when)
    bus.publish(OrderPlaced(), session)
    assert heard.calls == ["inline 1", "inline 2"]
    session.commit()
    assert heard.calls[2:] == ["before_commit 1", "before_commit 2", "after_commit 1", "after_commit 2"]


def test_without_a_session_all_are_called_at_once(bus: LocalBus, heard: Heard) -> None:
    for when in ("after_commit", "before_commit", "inline"):
        heard.subscribe(when, when)
    bus.publish(OrderPlaced())
    assert heard.calls == ["inline", "before_commit", "after_commit"]


def test_what_is_rolled_back_has_not_happened(bus: LocalBus, heard: Heard, session: Session) -> None:
    heard.subscribe("before", "before_commit")
    heard.subscribe("after", "after_commit")
    session.connection()
    bus.publish(OrderPlaced(), session)
    session.rollback()
    with pytest.raises(ZeroDivisionError), session.begin_nested():
        bus.publish(OrderPlaced(), session)
        raise ZeroDivisionError
    session.commit()
    assert heard.calls == []


def test_nobody_need_listen_and_it_must_be_an_event(bus: LocalBus) -> None:
    bus.publish(OrderPlaced())
    with pytest.raises(DefinitionError, match="neither an event nor a command"):
        bus.publish("hello")
    with pytest.raises(DefinitionError, match="'stock.reserve' is a command. Handle or send it"):
        bus.publish(Reserve())
    with pytest.raises(DefinitionError, match="'orders.order.placed' is an event. Subscribe to or publish it"):
        bus.send(OrderPlaced())


# -- failures -----------------------------------------------------------------------------------------------------


def test_inline_failures_keep_nobody_from_being_called(bus: LocalBus, heard: Heard, session: Session) -> None:
    heard.subscribe("first", fails=ValueError("no stock"))
    heard.subscribe("second")
    heard.subscribe("third", fails=LookupError("no card"))
    heard.subscribe("later", "before_commit")
    with pytest.raises(HandlersFailed) as failed:
        bus.publish(OrderPlaced(), session)
    assert heard.calls == ["first", "second", "third"]
    assert "event 'orders.order.placed': 2 of 3 handlers failed" in str(failed.value)
    assert f"{__name__}.first: ValueError: no stock; {__name__}.third: LookupError: no card" in str(failed.value)
    assert isinstance(failed.value, EventError)
    assert [error.__notes__[0].split(",")[0] for error in failed.value.exceptions] == [
        f"raised by {__name__}.first",
        f"raised by {__name__}.third",
    ]
    session.commit()  # the publisher thinks it happened all the same
    assert heard.calls[3:] == ["later"]
    matched, rest = failed.value.split(ValueError)
    assert isinstance(matched, HandlersFailed)
    assert isinstance(rest, HandlersFailed)


def test_a_failure_before_the_commit_prevents_it(bus: LocalBus, heard: Heard, session: Session) -> None:
    heard.subscribe("picky", "before_commit", fails=ValueError("no"))
    heard.subscribe("other", "before_commit")
    heard.subscribe("after", "after_commit")
    session.execute(text("insert into effect values ('x')"))
    bus.publish(OrderPlaced(), session)
    with pytest.raises(HandlersFailed, match="picky: ValueError: no"):
        session.commit()
    session.rollback()
    assert session.execute(text("select * from effect")).all() == []
    session.commit()
    assert heard.calls == ["picky", "other"]


@pytest.mark.parametrize("with_session", [True, False])
def test_a_failure_after_the_commit_is_logged(
    bus: LocalBus, heard: Heard, session: Session, caplog: pytest.LogCaptureFixture, with_session: bool
) -> None:
    heard.subscribe("broken", "after_commit", fails=ValueError("too late"))
    heard.subscribe("other", "after_commit")
    with caplog.at_level(logging.ERROR):
        bus.publish(OrderPlaced(), session if with_session else None)
        session.commit()
    assert heard.calls == ["broken", "other"]
    assert f"{__name__}.broken, a handler of event 'orders.order.placed' after the commit, failed" in caplog.text
    assert "ValueError: too late" in caplog.text


def test_events_that_answer_each_other_end_with_one_error(bus: LocalBus) -> None:
    bus.subscribe(OrderPlaced, lambda event: bus.publish(OrderCounted()))
    bus.subscribe(OrderCounted, lambda event: bus.publish(OrderPlaced()))
    with pytest.raises(RecursionError):
        bus.publish(OrderPlaced())


# -- within each other --------------------------------------------------------------------------------------------


def test_handlers_publish_and_write_in_the_publishers_transaction(
    bus: LocalBus, heard: Heard, session: Session
) -> None:
    heard.subscribe("counted, inline", cls=OrderCounted)
    heard.subscribe("counted, before", "before_commit", cls=OrderCounted)
    heard.subscribe("counted, after", "after_commit", cls=OrderCounted)

    @bus.subscribe(OrderPlaced, when="before_commit")
    def count(placed: OrderPlaced, session: Session) -> None:
        session.execute(text("insert into effect values (:id)"), {"id": placed.order_id})
        bus.publish(OrderCounted(), session)

    heard.subscribe("placed, before", "before_commit")
    bus.subscribe(OrderPlaced, _write)
    bus.publish(OrderPlaced(order_id="o-7"), session)
    session.commit()
    assert heard.calls == ["counted, inline", "placed, before", "counted, before", "counted, after"]
    assert session.execute(text("select n from effect")).scalars().all() == ["inline", "o-7"]


def _write(event: OrderPlaced, session: Session) -> None:
    session.execute(text("insert into effect values ('inline')"))


def test_two_sessions_do_not_hear_of_each_other(bus: LocalBus, heard: Heard, session: Session) -> None:
    heard.subscribe("after", "after_commit")
    with Session(session.get_bind()) as other:
        bus.publish(OrderPlaced(), session)
        other.commit()
        assert heard.calls == []
    session.commit()
    assert heard.calls == ["after"]


def test_handlers_run_in_the_publishers_thread(bus: LocalBus) -> None:
    where: list[int] = []
    bus.subscribe(OrderPlaced, lambda event: where.append(threading.get_ident()))
    bus.publish(OrderPlaced())
    thread = threading.Thread(target=bus.publish, args=(OrderPlaced(),))
    thread.start()
    thread.join()
    assert where[0] == threading.get_ident() != where[1]


# -- commands -----------------------------------------------------------------------------------------------------


def test_a_command_has_one_handler_whose_result_and_errors_are_the_senders(bus: LocalBus, session: Session) -> None:
    with pytest.raises(NoHandler, match=r"'stock.reserve' has no handler on this bus. It has handlers for: none"):
        bus.send(Reserve())

    @bus.handles(Reserve)
    def reserve(command: Reserve, session: Session) -> str:
        if command.sku == "gold":
            raise LookupError("no gold")
        return f"{command.sku}, {session is not None}"

    assert bus.send(Reserve(), session) == "tea, True"
    with pytest.raises(LookupError, match="no gold"):
        bus.send(Reserve(sku="gold"), session)
    with pytest.raises(EventError, match=r"reserve takes a session, but 'stock.reserve' came without one"):
        bus.send(Reserve())
    with pytest.raises(DuplicateName, match=r"already has a handler, .*reserve\. A command has one"):
        bus.handles(Reserve, lambda command: None)


# -- what is refused ----------------------------------------------------------------------------------------------


def _with_session(event: OrderPlaced, session: Session) -> None: ...


async def _async(event: OrderPlaced) -> None: ...


@pytest.mark.parametrize(
    ("subscribe", "says"),
    [
        (lambda bus: bus.subscribe(Reserve, lambda event: None), "'stock.reserve' is a command. Handle"),
        (lambda bus: bus.handles(OrderPlaced, lambda event: None), "'orders.order.placed' is an event. Subscribe"),
        (
            lambda bus: bus.subscribe(OrderPlaced, lambda event: None, when="soon"),
            "when='soon' must be one of inline, ",
        ),
        (lambda bus: bus.subscribe(OrderPlaced, _with_session, when="after_commit"), "Open a new session"),
        (lambda bus: bus.subscribe(OrderPlaced, _async), "plain function"),
        (
            lambda bus: bus.subscribe(OrderPlaced, lambda: None),
            "a handler of event 'orders.order.placed': it must take",
        ),
        (lambda bus: bus.subscribe(int, lambda event: None), "neither an event"),
    ],
)
def test_what_cannot_be_subscribed(bus: LocalBus, subscribe: Callable[[LocalBus], Any], says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        subscribe(bus)


# -- what the transaction is, and whose ----------------------------------------------------------------------------


@pytest.fixture
def everywhere(heard: Heard) -> Heard:
    for when in ("inline", "before_commit", "after_commit"):
        heard.subscribe(when, when)
    return heard


ALL_PHASES = ["inline", "before_commit", "after_commit"]


@pytest.mark.parametrize("end", ["rollback", "close", "reset"])
@pytest.mark.parametrize("first", [False, True])
def test_what_was_rolled_back_is_not_told_at_the_next_commit(
    bus: LocalBus, everywhere: Heard, session: Session, end: str, first: bool
) -> None:
    if first:
        session.execute(text("select 1"))
    bus.publish(OrderPlaced(), session)  # a unit of work may begin with this
    getattr(session, end)()
    session.execute(text("select 1"))
    session.commit()
    assert everywhere.calls == ["inline"]


def test_a_scoped_session_is_that_of_its_thread(bus: LocalBus, everywhere: Heard, session: Session) -> None:
    scoped = scoped_session(sessionmaker(session.get_bind()))
    bus.publish(OrderPlaced(), scoped)
    assert everywhere.calls == ["inline"]
    scoped.commit()
    assert everywhere.calls == ALL_PHASES
    scoped.remove()


def test_handlers_of_a_connection_are_called_around_its_commit(bus: LocalBus, session: Session) -> None:
    engine, seen = session.get_bind(), []
    assert isinstance(engine, Engine)

    def rows() -> int:
        with reading(engine) as other:
            return len(other.execute(text("select n from effect")).all())

    @bus.subscribe(OrderPlaced, when="before_commit")
    def write(event: OrderPlaced, own: Session) -> None:
        own.execute(text("insert into effect values (:id)"), {"id": event.order_id})
        seen.append(("before", rows()))

    @bus.subscribe(OrderPlaced, when="after_commit")
    def look(event: OrderPlaced) -> None:
        seen.append(("after", rows()))

    with engine.begin() as connection:
        bus.publish(OrderPlaced(), connection)
        assert seen == []
    assert seen == [("before", 0), ("after", 1)]
    with pytest.raises(ZeroDivisionError), engine.begin() as connection:
        bus.publish(OrderPlaced(), connection)
        raise ZeroDivisionError
    assert rows() == 1
    assert len(seen) == 2


def test_nothing_is_told_when_the_commit_of_a_connection_fails(
    bus: LocalBus, everywhere: Heard, session: Session
) -> None:
    engine = session.get_bind()
    assert isinstance(engine, Engine)
    with engine.begin() as connection:
        connection.execute(text("create table parent (n int primary key)"))
        connection.execute(text("create table child (n int references parent (n) deferrable initially deferred)"))
    with pytest.raises(IntegrityError), engine.begin() as connection:
        bus.publish(OrderPlaced(), connection)
        connection.execute(text("insert into child values (1)"))
    assert everywhere.calls == ["inline", "before_commit"]


def test_savepoints_of_a_connection(bus: LocalBus, session: Session) -> None:
    told: list[str] = []

    @bus.subscribe(OrderPlaced, when="after_commit")
    def tell(event: OrderPlaced) -> None:
        told.append(event.order_id)

    engine = session.get_bind()
    assert isinstance(engine, Engine)
    with engine.begin() as connection:
        bus.publish(OrderPlaced(order_id="before"), connection)
        outer = connection.begin_nested()
        bus.publish(OrderPlaced(order_id="outer"), connection)
        with connection.begin_nested():
            bus.publish(OrderPlaced(order_id="released, then rolled back"), connection)
        outer.rollback()
        with connection.begin_nested():
            bus.publish(OrderPlaced(order_id="released"), connection)
    assert told == ["before", "released"]


def test_a_command_sent_in_a_connection(bus: LocalBus, session: Session) -> None:
    @bus.handles(Reserve)
    def reserve(command: Reserve, own: Session) -> None:
        own.execute(text("insert into effect values (:sku)"), {"sku": command.sku})

    engine = session.get_bind()
    assert isinstance(engine, Engine)
    with engine.connect() as connection:
        bus.send(Reserve(), connection)
        connection.rollback()
        assert connection.execute(text("select n from effect")).all() == []
