"""What callers may pass as `session=`: a transaction of their own."""

from __future__ import annotations

from typing import Any, TypeAlias

from sqlalchemy import Connection
from sqlalchemy.orm import Session, scoped_session

from sagas.errors import ConfigurationError

__all__ = ["AnySession", "own_session"]

#: A session, Flask-SQLAlchemy's `db.session`, or a connection.
AnySession: TypeAlias = Session | scoped_session[Any] | Connection


def own_session(given: AnySession) -> Session | Connection:
    """Return the session or connection that a caller passed. Raises `ConfigurationError` for anything else."""
    if isinstance(given, scoped_session):
        session: Session = given()
        return session
    if not isinstance(given, Session | Connection):
        raise ConfigurationError(
            f"session={given!r} is not a Session or a Connection of SQLAlchemy's. Of an AsyncSession give the "
            "sync_session: await session.run_sync(lambda session: saga.start(..., session=session))"
        )
    return given
