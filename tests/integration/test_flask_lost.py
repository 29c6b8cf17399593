"""The connection of `db.session` is lost, in a step and in a view: the session must be usable again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any, Self

import pytest
from flask import Flask
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError

from sagas import Retry, Saga, SagaError, SagaStatus, SqlStore, Step, StepContext, StoreUnavailable, TerminalError
from sagas.testing import Inline
from tests.integration.test_flask import ORDER, Order, create_app, db, note, notes


def end_backend(connection: Connection) -> None:
    """Have the server end this connection, which is not told."""
    raw: Any = connection.connection.driver_connection
    if connection.dialect.name == "postgresql":
        statement = f"select pg_terminate_backend({raw.info.backend_pid})"
    else:
        statement = f"kill {raw.thread_id()}"
    with closing(create_engine(db.engine.url).connect()) as other:
        other.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(statement)


class Blow:
    """Ends the connection just before the nth statement, commit or rollback."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.asked = 0

    def _count(self, connection: Connection, *_: Any) -> None:
        self.asked += 1
        if self.asked == self.at:
            end_backend(connection)

    def _pause(self, connection: Connection, _cursor: Any, *_: Any) -> None:
        self._count(connection)

    def __enter__(self) -> Self:
        event.listen(db.engine, "before_cursor_execute", self._pause)
        event.listen(db.engine, "commit", self._count)
        event.listen(db.engine, "rollback", self._count)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(db.engine, "before_cursor_execute", self._pause)
        event.remove(db.engine, "commit", self._count)
        event.remove(db.engine, "rollback", self._count)


def lose_and_decline(step: StepContext) -> None:
    note(step)
    db.session.flush()
    end_backend(db.session.connection())
    raise TerminalError("declined")


def lose_and_catch(step: StepContext) -> None:
    note(step)
    db.session.flush()
    end_backend(db.session.connection())
    with suppress(SQLAlchemyError):
        db.session.execute(text("select 1"))


def lose_silently(step: StepContext) -> None:
    note(step)
    db.session.flush()
    end_backend(db.session.connection())


ONCE = Retry(max_attempts=1)
DECLINED = Saga("lost_declined", Step("act", lose_and_decline, compensation=None, retry=ONCE))
CAUGHT = Saga("lost_caught", Step("act", lose_and_catch, compensation=None, retry=ONCE))
SILENT = Saga("lost_silently", Step("act", lose_silently, compensation=None, retry=ONCE))


@pytest.fixture(params=["postgres", "mariadb"])
def app(request: pytest.FixtureRequest) -> Iterator[Flask]:
    url = request.getfixturevalue(request.param).database()
    app = create_app(url, SQLALCHEMY_ENGINE_OPTIONS={"isolation_level": "READ COMMITTED"})
    sagas = app.extensions["sagas"]
    for saga in (DECLINED, CAUGHT, SILENT):
        sagas.register(saga)
    sagas.canvas.dispatch = lambda *_, **__: None
    yield app
    with app.app_context():
        db.engine.dispose()


def assert_usable(app: Flask) -> None:
    """In this context after a rollback, and in the next one as it is."""
    db.session.rollback()
    assert db.session.execute(text("select 1")).scalar() == 1
    db.session.add(Order(note="after"))
    db.session.commit()
    assert "after" in notes(app)


def test_at_any_moment_of_a_step(app: Flask) -> None:
    sagas = app.extensions["sagas"]
    with app.app_context():
        for at in itertools.count(1):
            handle = sagas.start(ORDER, key=str(at))
            with Blow(at) as blow, suppress(SagaError, SQLAlchemyError):
                sagas.orchestrator.perform(handle.id, "note", 1)
            assert_usable(app)
            done = handle.record.step("note").status == "DONE"
            assert (f"note of {at} in shop" in notes(app)) == done, at
            if blow.asked < at:
                assert at > 4
                return


def test_what_a_step_says_is_heard_though_its_connection_is_lost(app: Flask) -> None:
    sagas = app.extensions["sagas"]
    with app.app_context():
        for saga, status, error in (
            (DECLINED, "FAILED", "declined"),
            (CAUGHT, "COMPENSATED", "TransactionLost"),  # in doubt, with nothing to undo
            (SILENT, "COMPENSATED", "OperationalError"),
        ):
            handle = sagas.start(saga, key="1")
            sagas.orchestrator.perform(handle.id, "act", 1)
            record = handle.record
            assert record.step("act").status == status, record
            assert error in (record.step("act").error or ""), record
            assert_usable(app)
    assert not [text for text in notes(app) if text.startswith("act")]


def test_the_same_with_a_session_of_the_library(request: pytest.FixtureRequest) -> None:
    store = SqlStore(request.getfixturevalue("postgres").database())
    store.upgrade()

    def decline(step: StepContext) -> None:
        raw: Any = step.session.connection().connection.driver_connection
        with closing(store.engine.connect()) as other:
            other.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(
                f"select pg_terminate_backend({raw.info.backend_pid})"
            )
        raise TerminalError("declined")

    handle = Inline(store).start(Saga("lost", Step("act", decline, compensation=None)))
    assert handle.status is SagaStatus.COMPENSATED
    assert "declined" in (handle.error or "")
    store.engine.dispose()


def test_a_view(app: Flask) -> None:
    sagas = app.extensions["sagas"]
    with app.app_context():
        for at in itertools.count(1):
            with Blow(at) as blow, suppress(SagaError, SQLAlchemyError):
                db.session.add(Order(note=f"view {at}"))
                ORDER.start(key=str(at))
                db.session.commit()
            assert_usable(app)
            stored = sagas.store.queries.select(limit=100)
            assert (f"view {at}" in notes(app)) == (str(at) in {saga.key for saga in stored}), at
            if blow.asked < at:
                break
    client = app.test_client()
    with app.app_context():
        db.session.execute(text("select 1"))
        end_backend(db.session.connection())
        with pytest.raises(StoreUnavailable):
            ORDER.start(key="lost")
        db.session.rollback()
        ORDER.start(key="found")
        db.session.commit()
    assert client.post("/orders/last").status_code == 200
