"""Sagas on Flask-SQLAlchemy's engine, with steps whose `db.session` also checkpoints them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from flask import Flask
from flask.ctx import AppContext
from flask.globals import app_ctx
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session, SessionTransaction

from sagas.errors import ConfigurationError
from sagas.stores import SqlStore
from sagas.stores.engines import teach_sqlite

__all__ = ["FlaskStore", "adopt_sessions"]


class FlaskStore(SqlStore):
    """Stores the sagas of a Flask app in the database of its `db`. `FlaskSagas` creates it."""

    def __init__(self, app: Flask, db: SQLAlchemy) -> None:
        if "sqlalchemy" not in app.extensions:
            raise ConfigurationError(f"the app {app.name!r} has no database yet. Call db.init_app(app) first")
        with app.app_context():
            engine = db.engine
        _prepare(engine)
        super().__init__(engine)
        self._app = app
        self._db = db

    @contextmanager
    def attempt(self, open_session: Callable[[], Session]) -> Iterator[None]:
        """Run a step in its own app context, which removes its `db.session` at the end."""
        with self._app.app_context() as context:
            outer = _STEP.set(_Step(context, open_session))
            try:
                yield
            finally:
                _STEP.reset(outer)

    def session_of_step(self) -> Session:
        """Return the `db.session` of the step, so that its transaction is that of the step."""
        session: Session = self._db.session()
        return session


@dataclass(frozen=True, slots=True)
class _Step:
    """The step that is running in this thread."""

    context: AppContext
    open_session: Callable[[], Session]


_STEP: ContextVar[_Step | None] = ContextVar("sagas_flask_step", default=None)


def adopt_sessions(db: SQLAlchemy) -> None:
    """Make the first use of `db.session` in a step begin the step's own transaction.

    Otherwise, uncommitted writes of an action would be lost while its step counts as done.
    """

    # This event comes before anything is added to the session; after_begin comes with the first statement.
    @event.listens_for(db.session, "after_transaction_create")
    def _(session: Session, _transaction: SessionTransaction) -> None:
        step = _STEP.get()
        # A context or session that the step creates itself is the step's own responsibility.
        if step is None or app_ctx._get_current_object() is not step.context or db.session() is not session:  # type: ignore[attr-defined]  # noqa: SLF001
            return
        if step.open_session() is not session:
            raise ConfigurationError(
                "db.session.remove() was called in a step, and db.session was used after it: those writes would not be "
                "committed with the step. Remove the call; the session is removed when the step ends"
            )


def _prepare(engine: Engine) -> None:
    """Configure an existing engine as `SqlStore` needs it, or raise an error that says what to change."""
    match engine.dialect.name:
        case "sqlite":
            if engine.url.database in (None, "", ":memory:") or "mode=memory" in str(engine.url):
                raise ConfigurationError(
                    "SQLALCHEMY_DATABASE_URI is an in-memory SQLite database: it has one connection, which the sagas "
                    "cannot share with db.session. Use a file: sqlite:///app.db, or in tests one in a temporary folder"
                )
            teach_sqlite(engine)
            engine.dispose()  # connections from before the change
        case "mysql" | "mariadb":
            level = engine.dialect._on_connect_isolation_level  # noqa: SLF001 - asking the server would connect
            if level != "READ COMMITTED":
                raise ConfigurationError(
                    "on MySQL and MariaDB, sagas need READ COMMITTED: "
                    "SQLALCHEMY_ENGINE_OPTIONS = {'isolation_level': 'READ COMMITTED'}"
                )
