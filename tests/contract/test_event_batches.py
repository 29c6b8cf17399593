"""Batches of messages, on every database: all of them are handled, or nothing of any of them is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sagas import SqlStore, TerminalError
from sagas.causes import CURRENT
from sagas.endings import ProcessEnd
from sagas.errors import StoreUnavailable
from sagas.events import Envelope, Events, HandlerContext, Service, event, leases
from sagas.events.brokers.memory import MemoryBroker
from sagas.events.inbox import Batch, Call, End
from sagas.events.local import LocalBus
from sagas.stores import schema
from tests.databases import database_url

QUEUE, ORDERED = "readers.read_page", "readers.read_in_order"

metadata = MetaData()
effects = Table("effect", metadata, Column("n", Integer, primary_key=True, autoincrement=False))
notes = Table("note", metadata, Column("id", Integer, primary_key=True), Column("text", String(50)))


class Base(DeclarativeBase): ...


class Total(Base):
    __tablename__ = "total"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    pages: Mapped[int]


@event("books.page.turned")
class PageTurned:
    number: int


@event("readers.page.read")
class PageRead:
    number: int


class Rig:
    """A service whose handler does to each page what a test wants."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.behave: dict[int, Callable[[HandlerContext], object]] = {}
        self.called: list[int] = []
        books, readers = Service("books", publishes=[PageTurned]), Service("readers", publishes=[PageRead])

        @readers.on(PageTurned, emits=[PageRead], batch_size=10)
        def read_page(page: PageTurned, context: HandlerContext) -> None:
            self.called.append(page.number)
            context.session.execute(insert(effects), {"n": page.number})
            context.emit(PageRead(number=page.number))
            if page.number in self.behave:
                self.behave[page.number](context)

        @readers.on(PageTurned, ordered=True, batch_size=10, was=["read_old"])
        def read_in_order(page: PageTurned, context: HandlerContext) -> None:
            context.session.execute(insert(effects), {"n": page.number})

        self.events = Events([books, readers], engine=engine, broker=MemoryBroker())
        with engine.begin() as connection:
            metadata.create_all(connection)
            Base.metadata.create_all(connection)
            connection.execute(insert(Total), {"id": 1, "pages": 0})

    def publish(self, *numbers: int, key: str | None = None) -> list[Envelope]:
        """Return messages that are not in the outbox: only what is emitted is there."""
        with Session(self.engine) as session:
            return [self.events.publish(PageTurned(number=n), session, key=key) for n in numbers]

    def handle(self, *envelopes: Envelope, queue: str = QUEUE, owner: str | None = None) -> list[End]:
        calls = tuple(call(envelope, queue, owner) for envelope in envelopes)
        return [outcome.end for outcome in self.events.handle(Batch(calls))]

    def effects(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.execute(select(effects.c.n).order_by(effects.c.n)).scalars())

    def emitted(self) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(select(schema.outbox).order_by(schema.outbox.c.id)))

    def inbox(self) -> int:
        with self.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(schema.inbox)).scalar_one()

    def is_untouched(self) -> bool:
        return (self.effects(), self.emitted(), self.inbox()) == ([], [], 0)


def call(envelope: Envelope, queue: str = QUEUE, owner: str | None = None) -> Call:
    return Call(
        queue=queue, topic=envelope.topic, body=envelope.encode(), attempt=1, redelivered=False, owner=owner
    )  # fmt: skip


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    store = SqlStore(database_url(request, request.param, tmp_path))
    store.upgrade()
    yield Rig(store.engine)
    store.engine.dispose()


def fail(_: HandlerContext) -> None:
    raise RuntimeError("torn")


def refuse(_: HandlerContext) -> None:
    raise TerminalError("torn")


def exit_(_: HandlerContext) -> None:
    raise SystemExit("gave up")


def commit(context: HandlerContext) -> None:
    context.session.commit()


def commit_and_hide_it(context: HandlerContext) -> None:
    with suppress(Exception):
        context.session.commit()


def break_at_the_flush(context: HandlerContext) -> None:
    context.session.add(Total(id=1, pages=0))  # which is there


def catch_a_failed_flush(context: HandlerContext) -> None:
    with suppress(IntegrityError):
        context.session.add(Total(id=1, pages=0))
        context.session.flush()


def roll_back_below(context: HandlerContext) -> None:
    context.session.connection().rollback()


FAILURES = [
    fail, refuse, exit_, commit, commit_and_hide_it, break_at_the_flush, catch_a_failed_flush, roll_back_below,
]  # fmt: skip


def test_all_are_handled_in_one_transaction(rig: Rig) -> None:
    envelopes = rig.publish(1, 2, 3, key="k")
    assert rig.handle(*envelopes) == [End.HANDLED] * 3
    assert rig.called == [1, 2, 3]
    assert (rig.effects(), rig.inbox()) == ([1, 2, 3], 3)
    emitted = rig.emitted()
    assert [row.causation_id for row in emitted] == [envelope.event_id for envelope in envelopes]
    assert [row.correlation_id for row in emitted] == [envelope.correlation_id for envelope in envelopes]
    # Delivered again, each alone.
    assert {rig.events.handle(call(envelope)).end for envelope in envelopes} == {End.SKIPPED}
    assert rig.effects() == [1, 2, 3]


@pytest.mark.parametrize("failure", FAILURES)
def test_if_one_fails_nothing_is_left_and_the_others_are_handled_alone(
    rig: Rig, failure: Callable[[HandlerContext], object]
) -> None:
    for bad, numbers in {1: (1, 2, 3), 5: (4, 5, 6), 9: (7, 8, 9)}.items():
        before = rig.effects(), rig.emitted(), rig.inbox()
        rig.behave = {bad: failure}
        envelopes = rig.publish(*numbers)
        assert rig.handle(*envelopes) == [End.ROLLED_BACK] * 3
        assert (rig.effects(), rig.emitted(), rig.inbox()) == before
        alone = [rig.events.handle(call(envelope)).end for envelope in envelopes]
        assert [end is End.HANDLED for end in alone] == [number != bad for number in numbers]
    assert rig.effects() == [2, 3, 4, 6, 7, 8]


def test_one_that_was_handled_before_is_not_handled_again(rig: Rig) -> None:
    first, second, third = rig.publish(1, 2, 3)
    assert rig.events.handle(call(second)).end is End.HANDLED
    assert rig.handle(first, second, third) == [End.ROLLED_BACK] * 3
    assert rig.called == [2]  # nobody was called for nothing
    assert rig.handle(first, third) == [End.HANDLED] * 2
    assert rig.effects() == [1, 2, 3]


def test_one_that_is_there_twice_is_handled_once(rig: Rig) -> None:
    first, second = rig.publish(1, 2)
    assert rig.handle(first, second, first) == [End.ROLLED_BACK] * 3
    assert [rig.events.handle(call(each)).end for each in (first, second, first)] == [
        End.HANDLED, End.HANDLED, End.SKIPPED,
    ]  # fmt: skip
    assert rig.effects() == [1, 2]


def test_one_that_this_code_does_not_know_takes_nobody_with_it(rig: Rig) -> None:
    first, second = rig.publish(1, 2)
    newer = Envelope(**{**{f: getattr(second, f) for f in second.__struct_fields__}, "version": 9})
    assert rig.handle(first, newer) == [End.ROLLED_BACK] * 2
    assert rig.is_untouched()
    assert [rig.events.handle(call(each)).end for each in (first, newer)] == [End.HANDLED, End.REJECTED]


def test_a_key_behind_a_dead_letter_is_parked_alone(rig: Rig) -> None:
    [torn, parked] = rig.publish(1, 2, key="torn")
    [other] = rig.publish(3, key="other")
    rig.events._letters.file(ORDERED, torn, error="torn", attempts=1)
    assert rig.handle(parked, other, queue=ORDERED) == [End.ROLLED_BACK] * 2
    assert rig.is_untouched()
    ends = [rig.events.handle(call(each, ORDERED)).end for each in (parked, other)]
    assert ends == [End.PARKED, End.HANDLED]
    assert rig.effects() == [3]
    [another] = rig.publish(4, key="another")
    assert rig.events.handle(Batch((call(another, ORDERED),)))[0].end is End.HANDLED


def test_who_lost_the_lease_changes_nothing(rig: Rig) -> None:
    leases.take(rig.engine, ORDERED, "b", 30)
    envelopes = rig.publish(1, 2, key="k")
    assert rig.handle(*envelopes, queue=ORDERED, owner="a") == [End.ROLLED_BACK] * 2
    assert rig.is_untouched()
    assert rig.handle(*envelopes, queue=ORDERED, owner="b") == [End.HANDLED] * 2


def test_what_was_handled_under_an_old_name_is_not_handled_again(rig: Rig) -> None:
    first, second = rig.publish(1, 2)
    row = {
        "queue": "readers.read_old", "event_id": second.event_id, "type": second.event_type, "version": 1,
        "source": second.source, "correlation_id": "c", "digest": second.digest, "handled_at": datetime.now(UTC),
    }  # fmt: skip
    with rig.engine.begin() as connection:
        connection.execute(insert(schema.inbox), row)
    assert rig.handle(first, second, queue=ORDERED) == [End.ROLLED_BACK] * 2
    assert (rig.effects(), rig.inbox()) == ([], 1)


def test_each_handler_sees_what_the_one_before_wrote_as_after_a_commit(rig: Rig) -> None:
    """The session is one, but no object of one handler is found by the next."""
    seen: list[int] = []
    kept: list[Total] = []  # a session finds its objects only as long as somebody has them

    def count_by_object(context: HandlerContext) -> None:
        total = context.session.get(Total, 1)
        assert total is not None
        total.pages += 1
        kept.append(total)

    def count_by_sql(context: HandlerContext) -> None:
        context.session.execute(text("update total set pages = pages + 1"))

    def look(context: HandlerContext) -> None:
        total = context.session.get(Total, 1)
        assert total is not None
        seen.append(total.pages)
        kept.append(total)

    rig.behave = {1: count_by_object, 2: look, 3: count_by_sql, 4: look}
    assert rig.handle(*rig.publish(1, 2, 3, 4)) == [End.HANDLED] * 4
    assert seen == [1, 2]


def test_what_is_done_around_the_commit_is_caused_by_its_message(rig: Rig) -> None:
    bus, around = LocalBus(), []

    @event("readers.chapter.ended")
    class ChapterEnded:
        number: int

    def cause() -> str:
        current = CURRENT.get()
        assert current is not None
        return current.id

    bus.subscribe(ChapterEnded, lambda event: around.append(("before", event.number, cause())), when="before_commit")
    bus.subscribe(ChapterEnded, lambda event: around.append(("after", event.number, cause())), when="after_commit")
    rig.behave = {n: lambda context, n=n: bus.publish(ChapterEnded(number=n), context.session) for n in (1, 2)}  # type: ignore[misc]
    first, second = rig.publish(1, 2)
    assert rig.handle(first, second) == [End.HANDLED] * 2
    assert around == [
        (when, number, envelope.event_id) for when in ("before", "after") for number, envelope in ((1, first), (2, second))
    ]  # fmt: skip


def test_nothing_is_done_after_a_commit_that_never_was(rig: Rig) -> None:
    bus, after = LocalBus(), []

    @event("readers.book.closed")
    class BookClosed:
        number: int

    bus.subscribe(BookClosed, lambda event: after.append(event.number), when="after_commit")
    rig.behave = {1: lambda context: bus.publish(BookClosed(number=1), context.session), 2: fail}
    rig.handle(*rig.publish(1, 2))
    assert after == []


def test_a_database_away_says_nothing_about_the_messages(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: HandlerContext) -> None:
        raise StoreUnavailable("away")

    rig.behave[2] = away
    envelopes = rig.publish(1, 2)
    with monkeypatch.context() as patch:
        patch.setattr("sagas.events.inbox.Inbox.answers", lambda _: False)
        assert rig.handle(*envelopes) == [End.DEFERRED] * 2
    assert rig.handle(*envelopes) == [End.ROLLED_BACK] * 2  # it answers, so it is the message


def test_what_ends_the_process_leaves_nothing(rig: Rig) -> None:
    def die(_: HandlerContext) -> None:
        raise ProcessEnd

    rig.behave[2] = die
    with pytest.raises(ProcessEnd):
        rig.handle(*rig.publish(1, 2, 3))
    assert rig.is_untouched()


@pytest.mark.parametrize("rig", ["sqlite"], indirect=True)
def test_a_trigger_that_rolls_back_stores_nothing_of_those_behind(rig: Rig) -> None:
    """Without its transaction, SQLite would commit each statement of the next handlers by itself."""
    with rig.engine.begin() as connection:
        connection.execute(
            text(
                "create trigger no before insert on note when new.text = 'bad' begin select raise(rollback, 'no'); end"
            )
        )

    def caught(context: HandlerContext) -> None:
        with suppress(DBAPIError):
            context.session.execute(insert(notes), {"text": "bad"})

    rig.behave[1] = caught
    assert rig.handle(*rig.publish(1, 2, 3)) == [End.ROLLED_BACK] * 3
    assert rig.called == [1]
    assert rig.is_untouched()


@pytest.mark.parametrize("rig", ["mariadb"], indirect=True)
@pytest.mark.parametrize("then", [fail, lambda _: None])
def test_a_procedure_that_commits_is_for_a_person(rig: Rig, then: Callable[[HandlerContext], object]) -> None:
    """Nobody can tell what of which message is stored, so none of them counts as handled, and none is tried again."""
    with rig.engine.begin() as connection:
        connection.exec_driver_sql("create or replace procedure closing() commit")

    def close(context: HandlerContext) -> None:
        context.session.execute(text("call closing()"))
        then(context)

    rig.behave[2] = close
    assert rig.handle(*rig.publish(1, 2, 3)) == [End.REJECTED] * 3
    assert rig.effects() == [1, 2]
    assert rig.inbox() == 0
