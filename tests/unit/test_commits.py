"""What is done around the commit of a caller's session: order, savepoints, failures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sagas import ConfigurationError, SqlStore
from sagas.stores.commits import Commits


class Base(DeclarativeBase): ...


class Row(Base):
    __tablename__ = "commits"
    n: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    store = SqlStore(f"sqlite:///{tmp_path / 'commits.db'}")
    Base.metadata.create_all(store.engine)
    with Session(store.engine) as session:
        yield session
    store.engine.dispose()


class Asked:
    def __init__(self, session: Session) -> None:
        self.commits = Commits.of(session)
        self.called: list[str] = []

    def before(self, what: str) -> None:
        self.commits.before(lambda: self.called.append(what))

    def after(self, what: str) -> None:
        self.commits.after(lambda: self.called.append(what))


@pytest.fixture
def asked(session: Session) -> Asked:
    return Asked(session)


def test_in_the_order_in_which_it_was_asked(session: Session, asked: Asked) -> None:
    for n in range(3):
        asked.after(f"after {n}")
        asked.before(f"before {n}")
    assert asked.called == []
    session.commit()
    assert asked.called == ["before 0", "before 1", "before 2", "after 0", "after 1", "after 2"]
    session.commit()
    assert len(asked.called) == 6


def test_a_savepoint_takes_with_it_what_was_asked_inside(session: Session, asked: Asked) -> None:
    for ask in (asked.before, asked.after):
        ask(f"{ask.__name__} outside")
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            ask(f"{ask.__name__} in a savepoint that is rolled back")
            with session.begin_nested():
                ask(f"{ask.__name__} in a released one inside of that")
            raise ZeroDivisionError
        with session.begin_nested(), session.begin_nested():
            ask(f"{ask.__name__} in the inner of two that are released")
    assert asked.called == []
    session.commit()
    assert asked.called == [
        f"{when} {where}"
        for when in ("before", "after")
        for where in ("outside", "in the inner of two that are released")
    ]


def test_a_flush_that_fails_takes_no_more_with_it_than_its_savepoint(session: Session, asked: Asked) -> None:
    session.add(Row(n=1))
    session.flush()
    session.expunge_all()
    asked.after("outside")
    with pytest.raises(IntegrityError), session.begin_nested():
        asked.after("inside")
        session.add(Row(n=1))
        session.flush()
    session.commit()
    assert asked.called == ["outside"]


@pytest.mark.parametrize("end", ["rollback", "close"])
def test_nothing_is_left_of_a_transaction_that_does_not_commit(session: Session, asked: Asked, end: str) -> None:
    session.connection()
    asked.before("before")
    asked.after("after")
    getattr(session, end)()
    session.connection()
    session.commit()
    assert asked.called == []


def test_what_fails_before_the_commit_prevents_it_however_often_it_is_tried(session: Session, asked: Asked) -> None:
    def fail() -> None:
        raise LookupError("not this time")

    session.add(Row(n=1))
    asked.before("first")
    asked.commits.before(fail)
    asked.after("never")
    for _ in range(2):
        with pytest.raises(LookupError, match="not this time"):
            session.commit()
    session.rollback()
    assert session.get(Row, 1) is None
    session.add(Row(n=2))
    session.commit()
    assert session.get(Row, 2) is not None
    assert asked.called == ["first"]


def test_what_is_written_before_the_commit_is_in_it(session: Session, asked: Asked) -> None:
    asked.commits.before(lambda: session.add(Row(n=1)))
    session.commit()
    session.rollback()
    assert session.get(Row, 1) is not None


def test_what_is_asked_meanwhile(session: Session, asked: Asked) -> None:
    asked.commits.before(lambda: asked.before("before, asked before"))
    asked.commits.before(lambda: asked.after("after, asked before"))
    asked.commits.after(lambda: asked.after("after, asked after"))
    refused: list[Exception] = []

    def too_late() -> None:
        with pytest.raises(ConfigurationError, match="has committed") as error:
            asked.before("too late")
        refused.append(error.value)

    asked.commits.after(too_late)
    session.commit()
    assert asked.called == ["before, asked before", "after, asked before", "after, asked after"]
    assert len(refused) == 1


def test_what_asks_for_itself_again_ends(session: Session, asked: Asked) -> None:
    def again() -> None:
        asked.commits.before(again)

    again()
    with pytest.raises(RecursionError, match="100 rounds"):
        session.commit()
