"""Sagas on Flask-SQLAlchemy's engine, and steps whose `db.session` is the one that also checkpoints them."""

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
from sagas.stores.transactions import Lent, let_go

__all__ = ["FlaskStore", "adopt_sessions"]


class FlaskStore(SqlStore):
    """Keeps the sagas of a Flask app in the database of its `db`. `FlaskSagas` makes it."""

    def __init__(self, app: Flask, db: SQLAlchemy) -> None:
        if "sqlalchemy" not in app.extensions:
            raise ConfigurationError(f"the app {app.name!r} has no database yet: call db.init_app(app) first")
        with app.app_context():
            engine = db.engine
        _prepare(engine)
        super().__init__(engine)
        self._app = app
        self._db = db

    @contextmanager
    def attempt(self, open_session: Callable[[], Session]) -> Iterator[None]:
        """Run a step in an app context of its own, which removes its `db.session` when it ends."""
        with self._app.app_context() as context:
            outer = _STEP.set(_Step(context, open_session))
            try:
                yield
            finally:
                _STEP.reset(outer)

    @contextmanager
    def transaction(self, who: str = "a step", limit: float | None = None) -> Iterator[Session]:
        """Open the transaction of a step: that of its `db.session`."""
        session = self._db.session()
        try:
            with Lent(session, self.engine, who, most=limit) as lent:
                yield session
                with self.connections.translated():
                    lent.commit()
        finally:
            let_go(session)


@dataclass(frozen=True, slots=True)
class _Step:
    """The step that is at work in this thread."""

    context: AppContext
    open_session: Callable[[], Session]


_STEP: ContextVar[_Step | None] = ContextVar("sagas_flask_step", default=None)


def adopt_sessions(db: SQLAlchemy) -> None:
    """Have the first use of `db.session` in a step begin the step's own transaction.

    What an action writes there, and nobody commits, would otherwise be lost while its step counts as done.
    """

    # This comes before anything is even added to the session; after_begin comes with the first statement.
    @event.listens_for(db.session, "after_transaction_create")
    def _(session: Session, _transaction: SessionTransaction) -> None:
        step = _STEP.get()
        # Another context, or another session, that the step makes for itself is its own affair.
        if step is None or app_ctx._get_current_object() is not step.context or db.session() is not session:  # type: ignore[attr-defined]  # noqa: SLF001
            return
        if step.open_session() is not session:
            raise ConfigurationError(
                "db.session.remove() was called in a step, and db.session is used after it: what that writes would "
                "not be committed with the step. Leave it out; it is removed when the step ends"
            )


def _prepare(engine: Engine) -> None:
    """Set up an engine that somebody else has made as `SqlStore` needs it, or say what is to be changed."""
    match engine.dialect.name:
        case "sqlite":
            if engine.url.database in (None, "", ":memory:") or "mode=memory" in str(engine.url):
                raise ConfigurationError(
                    "SQLALCHEMY_DATABASE_URI is a SQLite database in memory: it has one connection, which the sagas "
                    "cannot share with db.session. Use a file: sqlite:///app.db, in tests one in a temporary folder"
                )
            teach_sqlite(engine)
            engine.dispose()  # what was connected before it knew
        case "mysql" | "mariadb":
            level = engine.dialect._on_connect_isolation_level  # noqa: SLF001 - asking the server would connect
            if level != "READ COMMITTED":
                raise ConfigurationError(
                    "on MySQL and MariaDB sagas need READ COMMITTED: "
                    "SQLALCHEMY_ENGINE_OPTIONS = {'isolation_level': 'READ COMMITTED'}"
                )
