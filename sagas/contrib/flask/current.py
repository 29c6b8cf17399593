"""`saga.start()` in a Flask app: the saga joins the transaction of `db.session`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from flask import Flask, current_app, has_app_context
from flask_sqlalchemy import SQLAlchemy

from sagas.app import Sagas
from sagas.definition import Saga
from sagas.errors import ConfigurationError
from sagas.handle import SagaHandle, StartResult
from sagas.stores import SqlStore

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

    from sagas.stores.sessions import AnySession

__all__ = ["AppSagas", "current_sagas"]

logger = logging.getLogger(__name__)

#: The key in `session.info` for what was started in the session's transaction.
_STARTED = "sagas_started"

#: How many of those that one call started it names.
_MOST_NAMED = 3


class AppSagas(Sagas[SqlStore]):
    """The sagas of one Flask app. As in `Sagas`, its own `start` starts a saga at once, in a separate transaction."""

    db: SQLAlchemy

    def bind(self, saga: Saga) -> None:
        """Make `saga.start` use the app whose context is current: several apps may have the same sagas."""
        saga.bind(_CURRENT)


def current_sagas() -> AppSagas:
    """Return the sagas of the current app. Raises `ConfigurationError` outside an app, or in an app without sagas.

    >>> current_sagas().find("place_order", "order-1").status  # doctest: +SKIP
    <SagaStatus.COMPLETED: 'COMPLETED'>
    """
    if not has_app_context():
        raise ConfigurationError("there is no current app: run this in a request, or in `with app.app_context():`")
    sagas: AppSagas | None = current_app.extensions.get("sagas")
    if sagas is None:
        raise ConfigurationError(f"the app {current_app.name!r} has no sagas. Call FlaskSagas(db, [...]).init_app(app)")
    return sagas


class _Current:
    """Starts sagas in the app that is current at the time."""

    def start(
        self,
        saga: Saga,
        input: Any,  # noqa: A002
        *,
        key: str | None,
        correlation_id: str | None,
        session: AnySession | None,
        at: datetime | None,
    ) -> SagaHandle:
        sagas = current_sagas()
        if session is not None:
            return sagas.start(saga, input, key=key, correlation_id=correlation_id, session=session, at=at)
        own = sagas.db.session()
        handle = sagas.start(saga, input, key=key, correlation_id=correlation_id, session=own, at=at)
        _note_started(own, saga, [handle])
        return handle

    def start_many(
        self,
        saga: Saga,
        inputs: Iterable[Any],
        *,
        correlation_id: str | None,
        session: AnySession | None,
    ) -> Sequence[StartResult]:
        sagas = current_sagas()
        if session is not None:
            return sagas.start_many(saga, inputs, correlation_id=correlation_id, session=session)
        own = sagas.db.session()
        results = sagas.start_many(saga, inputs, correlation_id=correlation_id, session=own)
        _note_started(own, saga, [each.handle for each in results if each.handle is not None][:_MOST_NAMED])
        return results

    async def astart(
        self,
        saga: Saga,
        input: Any,  # noqa: A002
        *,
        key: str | None,
        correlation_id: str | None,
        session: AsyncSession | AsyncConnection | None,
        at: datetime | None,
    ) -> SagaHandle:
        sagas = current_sagas()
        options: dict[str, Any] = {"key": key, "correlation_id": correlation_id, "at": at}
        if session is not None:
            return await sagas.astart(saga, input, session=session, **options)
        return await sagas.to_thread(lambda: self.start(saga, input, session=None, **options))

    async def astart_many(
        self,
        saga: Saga,
        inputs: Iterable[Any],
        *,
        correlation_id: str | None,
        session: AsyncSession | AsyncConnection | None,
    ) -> Sequence[StartResult]:
        sagas = current_sagas()
        if session is not None:
            return await sagas.astart_many(saga, inputs, correlation_id=correlation_id, session=session)
        return await sagas.to_thread(lambda: self.start_many(saga, inputs, correlation_id=correlation_id, session=None))


def _note_started(session: Session, saga: Saga, handles: Iterable[SagaHandle]) -> None:
    started = session.info.setdefault(_STARTED, [])
    started += [(session.get_transaction(), f"{saga.name!r} ({handle.id})") for handle in handles]


_CURRENT = _Current()


def warn_of_uncommitted(app: Flask, db: SQLAlchemy) -> None:
    """Log an error if an app context ends without an exception, and a saga started in it was never committed."""

    @app.teardown_appcontext
    def _(error: BaseException | None) -> None:
        if not db.session.registry.has():
            return
        session = db.session()
        transaction = session.get_transaction()
        lost = [what for began, what in session.info.pop(_STARTED, []) if began is transaction is not None]
        if lost and error is None:
            logger.error(
                "saga %s was started in db.session, which was never committed: the saga is rolled back and will not "
                "run. Call db.session.commit() after start()",
                ", ".join(lost),
            )
