"""Sagas in one of Django's databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from sagas.contrib.django.connections import is_outermost, nothing_left_open, open_engine
from sagas.contrib.django.errors import for_django
from sagas.errors import ConfigurationError
from sagas.stores import SqlStore
from sagas.stores.connections import Connections
from sagas.stores.sessions import AnySession, own_session

__all__ = ["DjangoStore"]


T = TypeVar("T")


class _DjangoConnections(Connections):
    """Django's own connections, with errors as Django raises them."""

    are_shared = False

    @contextmanager
    def translated(self, *, limited: bool = True) -> Iterator[None]:
        with for_django(), super().translated(limited=limited):
            yield

    def owns(self, connection: Connection) -> bool:
        # Not a block of the caller's.
        return is_outermost(connection)

    def free_if_lost(self, connection: Connection) -> None:
        if self.owns(connection):
            super().free_if_lost(connection)


class DjangoStore(SqlStore):
    """Stores sagas in the database with this alias, on Django's own connection.

    Inside `transaction.atomic()`, everything it writes belongs to that block. Callbacks after a commit run after the
    outermost block commits.
    """

    connections_type = _DjangoConnections

    def __init__(self, alias: str) -> None:
        super().__init__(open_engine(alias))
        self.alias = alias

    def __repr__(self) -> str:
        return f"DjangoStore({self.alias!r})"

    def after_commit(self, session: AnySession | None, then: Callable[[], object]) -> None:
        if session is not None:
            session = own_session(session)
            engine = session.get_bind() if isinstance(session, Session) else session.engine
            if engine is not self.engine:  # Django does not know that transaction
                super().after_commit(session, then)
                return
        if not transaction.get_autocommit(using=self.alias) and not connections[self.alias].in_atomic_block:
            # Django accepts it only inside a block, and calls it when autocommit is turned on again after the commit.
            # If that never happens, recovery dispatches the saga after `redispatch_after`.
            with transaction.atomic(using=self.alias):
                transaction.on_commit(then, using=self.alias)
            return
        transaction.on_commit(then, using=self.alias)  # fails only with CELERY_TASK_ALWAYS_EAGER, and visibly

    async def to_thread(self, function: Callable[[], T]) -> T:
        # Django's way: in the thread that has this request's connection, and in tests their transaction.
        return await sync_to_async(function, thread_sensitive=True)()

    @contextmanager
    def attempt(self, open_session: Callable[[], Session]) -> Iterator[None]:  # noqa: ARG002
        """Run a step, and detect whether it leaves a Django transaction open.

        Neither its writes there, nor the engine's next writes, nor those of later tasks in this worker would be
        committed.
        """
        with nothing_left_open(self.alias):
            yield

    @property
    def how_to_upgrade(self) -> str:
        return "manage.py migrate" + ("" if self.alias == DEFAULT_DB_ALIAS else f" --database {self.alias}")

    def upgrade(self) -> None:
        """Raise `ConfigurationError`: Django's migrations create these tables, and only one tool may do so."""
        raise ConfigurationError(
            f"Django's migrations create the tables of sagas in DATABASES[{self.alias!r}]: {self.how_to_upgrade}"
        )
