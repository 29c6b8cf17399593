"""Sagas in a database of Django's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from sqlalchemy import Connection
from sqlalchemy.orm import Session, scoped_session

from sagas.contrib.django.connections import is_outermost, nothing_left_open, open_engine
from sagas.contrib.django.errors import for_django
from sagas.errors import ConfigurationError
from sagas.stores import SqlStore
from sagas.stores.commits import own_session

__all__ = ["DjangoStore"]


T = TypeVar("T")


class DjangoStore(SqlStore):
    """Keeps sagas in the database of this alias, on Django's own connection.

    Within `transaction.atomic()` everything that it writes is a part of that. What is to follow a commit follows the
    commit of the outermost block.
    """

    def __init__(self, alias: str) -> None:
        super().__init__(open_engine(alias))
        self.alias = alias

    def __repr__(self) -> str:
        return f"DjangoStore({self.alias!r})"

    def after_commit(
        self, session: Session | scoped_session[Any] | Connection | None, then: Callable[[], object]
    ) -> None:
        if session is not None:
            session = own_session(session)
            engine = session.get_bind() if isinstance(session, Session) else session.engine
            if engine is not self.engine:  # Django knows nothing of that transaction
                super().after_commit(session, then)
                return
        if not transaction.get_autocommit(using=self.alias) and not connections[self.alias].in_atomic_block:
            # Django takes it only within a block, and calls it when autocommit is turned on again after the commit.
            # Where that never happens, recovery dispatches the saga after `redispatch_after`.
            with transaction.atomic(using=self.alias):
                transaction.on_commit(then, using=self.alias)
            return
        transaction.on_commit(then, using=self.alias)  # it fails with CELERY_TASK_ALWAYS_EAGER alone, and is to be seen

    async def to_thread(self, function: Callable[[], T]) -> T:
        # Django's way: in the thread that has this request's connection, and in tests their transaction.
        return await sync_to_async(function, thread_sensitive=True)()

    @contextmanager
    def attempt(self, open_session: Callable[[], Session]) -> Iterator[None]:  # noqa: ARG002
        """Run a step, and find out whether it leaves a transaction of Django's open.

        What it wrote there would not be committed, and neither would what the engine writes next, nor any task that
        this worker runs afterwards.
        """
        with nothing_left_open(self.alias):
            yield

    @property
    def how_to_upgrade(self) -> str:
        return "manage.py migrate" + ("" if self.alias == DEFAULT_DB_ALIAS else f" --database {self.alias}")

    def upgrade(self) -> None:
        """Raise `ConfigurationError`: Django's migrations make these tables, and only one may."""
        raise ConfigurationError(
            f"the tables of sagas in DATABASES[{self.alias!r}] are made by Django's migrations: {self.how_to_upgrade}"
        )

    @contextmanager
    def _translated(self, *, limited: bool = True) -> Iterator[None]:
        with for_django(), super()._translated(limited=limited):
            yield

    def _owns(self, connection: Connection) -> bool:
        return is_outermost(connection)

    def _free_if_lost(self, connection: Connection) -> None:
        # Not in a block of the caller's, whose pauses are his own.
        if is_outermost(connection):
            super()._free_if_lost(connection)
