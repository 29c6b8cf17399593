"""A SQLAlchemy engine that uses Django's connections, and whose transactions are Django's atomic blocks.

Each thread has one connection and one transaction. What the library writes inside `transaction.atomic()` belongs to
that block, and what the ORM writes inside a transaction of the library belongs to that transaction. Everything about
Django's connection applies to the engine: settings, persistence, the test database, counted queries.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType, SimpleNamespace
from typing import Any

from django.db import connections, transaction
from django.db import utils as django_errors
from sqlalchemy import URL, Connection, Engine, ExceptionContext, NullPool, create_engine, event, types
from sqlalchemy.dialects.sqlite import DATETIME

from sagas.errors import ConfigurationError, TransactionLost, TransactionMisuse
from sagas.stores.engines import READ_ONLY

__all__ = ["is_outermost", "nothing_left_open", "open_engine"]

#: SQLAlchemy's names for what Django calls the vendor of a database.
_BACKENDS = {"postgresql": "postgresql", "sqlite": "sqlite", "mysql": "mysql"}

#: Calls that SQLAlchemy makes on a new connection of its own, and that must not be repeated on Django's.
_LEFT_ALONE = frozenset({"add_notice_handler", "create_function"})

_ERRORS = (
    "Error", "InterfaceError", "DatabaseError", "DataError", "OperationalError", "IntegrityError", "InternalError",
    "ProgrammingError", "NotSupportedError",
)  # fmt: skip


@functools.cache
def open_engine(alias: str) -> Engine:
    """Return the engine for one of Django's databases. It does not connect yet.

    Raises `ConfigurationError` for a database that sagas do not support.
    """
    django = connections[alias]
    if django.vendor not in _BACKENDS:
        raise ConfigurationError(
            f"DATABASES[{alias!r}] is {django.vendor}, but sagas need PostgreSQL, MySQL, MariaDB or SQLite"
        )
    options: dict[str, Any] = {}
    match django.vendor:
        case "postgresql":
            driver = "psycopg" if django.Database.__name__ == "psycopg" else "psycopg2"
            options["use_native_hstore"] = False  # it queries the database and changes Django's connection
        case "sqlite":
            driver, options["paramstyle"] = "pysqlite", "format"  # Django's cursors accept no other style
        case _:
            driver = "pymysql" if django.Database.__name__ == "pymysql" else "mysqldb"
    known = threading.Event()
    engine = create_engine(
        URL.create(f"{_BACKENDS[django.vendor]}+{driver}", database=alias),
        module=_driver(django.Database),
        creator=lambda: _Guard(alias, known),
        poolclass=NullPool,
        pool_reset_on_return=None,
        **options,
    )
    dialect: Any = engine.dialect
    initialize = dialect.initialize

    def ask_server(connection: Connection) -> None:
        initialize(connection)
        known.set()

    dialect.initialize = ask_server
    # The isolation level is Django's setting; SQLAlchemy must not query it in the middle of a block.
    dialect.default_isolation_level = "READ COMMITTED"
    dialect.set_isolation_level = lambda _connection, _level: None
    dialect.reset_isolation_level = lambda _connection: None
    if django.vendor == "sqlite":
        dialect.colspecs = {**dialect.colspecs, types.DateTime: _EitherWay}
        event.listen(engine, "before_cursor_execute", _in_djangos_style, retval=True)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "handle_error", _note_error)
    return engine


def _in_djangos_style(
    _connection: Connection, _cursor: Any, statement: str, parameters: Any, context: Any, _many: bool
) -> tuple[str, Any]:
    """Return a statement as Django's cursors take it.

    What SQLAlchemy asks about tables is not compiled: its parameters are "?", which Django cannot log (DEBUG).
    """
    if context.compiled is None and parameters and "?" in statement:
        statement = statement.replace("%", "%%").replace("?", "%s")
    return statement, parameters


def is_outermost(connection: Connection) -> bool:
    """Return whether a transaction of the engine is Django's outermost atomic block."""
    guard: _Guard = connection.connection.dbapi_connection  # type: ignore[assignment]
    return guard.outermost


@contextmanager
def nothing_left_open(alias: str) -> Iterator[None]:
    """Roll back what a block leaves open on Django's connection. If so, raises `TransactionMisuse` after success."""
    connection = connections[alias]
    before, autocommit = len(connection.atomic_blocks), connection.autocommit
    try:
        yield
    except BaseException:
        _end_what_is_left(connection, before, autocommit)
        raise
    if _end_what_is_left(connection, before, autocommit):
        raise TransactionMisuse(
            f"a transaction on Django's database {alias!r} was left open and has been rolled back. Close every "
            "SQLAlchemy session, leave every atomic block, and turn autocommit on again"
        )


def _end_what_is_left(connection: Any, before: int, autocommit: bool) -> bool:
    left = len(connection.atomic_blocks) > before
    with suppress(django_errors.Error):
        while len(connection.atomic_blocks) > before:
            connection.atomic_blocks[-1].__exit__(_RolledBack, _RolledBack(), None)
    if connection.in_atomic_block or connection.connection is None or connection.autocommit == autocommit:
        return left
    connection.close()
    return True


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    guard: _Guard = connection.connection.dbapi_connection  # type: ignore[assignment]
    guard.begin(reads=bool(options.get(READ_ONLY)), one_statement=options.get("isolation_level") == "AUTOCOMMIT")


def _note_error(context: ExceptionContext) -> None:
    if context.connection is not None and not context.connection.invalidated:
        guard: _Guard = context.connection.connection.dbapi_connection  # type: ignore[assignment]
        guard.failed = True
        guard.lost = guard.lost or context.is_disconnect


class _RolledBack(Exception):
    """Ends an atomic block that SQLAlchemy rolls back."""


class _Guard:
    """Django's connection as SQLAlchemy uses it, from checkout to return."""

    def __init__(self, alias: str, known: threading.Event) -> None:
        self._alias = alias
        self._known = known
        self._django = connections[alias]
        self._atomic: Any = None
        self._one_statement = False
        self.failed = False
        self.lost = False
        self.outermost = False
        if not self._django.in_atomic_block:
            if self._django.errors_occurred:  # the server may have restarted since
                self._django.close_if_unusable_or_obsolete()
            self._django.ensure_connection()

    def __getattr__(self, name: str) -> Any:
        if name in _LEFT_ALONE:
            return lambda *_arguments, **_options: None
        if self._django.connection is None:
            raise django_errors.InterfaceError("the connection to the database is closed")
        return getattr(self._django.connection, name)

    @property
    def closed(self) -> bool:
        raw = self._django.connection
        return raw is None or bool(getattr(raw, "closed", False)) or not getattr(raw, "open", True)

    @property
    def broken(self) -> bool:
        return bool(getattr(self._django.connection, "broken", False))

    def cursor(self, *_arguments: Any, **_options: Any) -> Any:
        if not self._known.is_set():  # SQLAlchemy's one query about the server must not be counted
            return self._django.connection.cursor()
        cursor = self._django.cursor()
        if self._django.vendor == "postgresql":
            _load_as_usual(cursor.cursor)
        return cursor

    # -- transactions -------------------------------------------------------------------------------------------

    def begin(self, *, reads: bool, one_statement: bool) -> None:
        # With autocommit off, the caller commits as well.
        within = self._django.in_atomic_block or not self._django.autocommit
        if reads or (one_statement and not within):
            return  # Django's connection commits each statement itself
        if self._atomic is not None and self._atomic in self._django.atomic_blocks:
            return  # after a refused commit, SQLAlchemy considers the transaction ended
        self.outermost = not within
        self._one_statement = one_statement
        # Inside the caller's block it is a savepoint: an error of ours must not undo the caller's transaction.
        self._atomic = transaction.atomic(using=self._alias)
        self._atomic.__enter__()

    def commit(self) -> None:
        self._end(None)

    def rollback(self) -> None:
        # A self-committing statement has already committed when SQLAlchemy rolls back the nonexistent transaction.
        if self._one_statement and not self.failed:
            self._end(None)
        else:
            self._abandon()

    def _end(self, error: Exception | None) -> None:
        if self._atomic is None:
            return
        blocks = self._django.atomic_blocks
        if self._atomic not in blocks:
            self._atomic = None
            return  # the enclosing block has ended, and this one with it
        atomic, self._atomic = self._atomic, None
        if blocks[-1] is not atomic:
            atomic.sagas_ended = True
            raise ConfigurationError(
                f"a SQLAlchemy transaction on Django's database {self._alias!r} ends before an atomic block that was "
                "begun inside it, and is rolled back with it. End them in reverse order"
            )
        # In these cases Django silently rolls back.
        lost = error is None and (self._django.needs_rollback or self._django.closed_in_transaction)
        atomic.__exit__(None if error is None else type(error), error, None)
        if lost:
            raise TransactionLost(
                f"a transaction on Django's database {self._alias!r} was rolled back: an error inside it was caught, "
                "or set_rollback(True) was called. Nothing in it is committed. Put code that may fail into "
                "its own atomic block: with transaction.atomic(): ..."
            )
        while blocks and hasattr(blocks[-1], "sagas_ended"):
            blocks[-1].__exit__(_RolledBack, _RolledBack(), None)

    def _abandon(self) -> None:
        """Roll back, whatever the state of the connection. Afterwards Django can use it, or opens a new one."""
        if self._atomic is None or self._atomic not in self._django.atomic_blocks:
            self._atomic = None
            return
        if not (self.lost or self.closed):
            with suppress(django_errors.Error):  # the server has then rolled back, and Django drops the connection
                self._end(_RolledBack())
            return
        with suppress(django_errors.Error):
            self._django.close()
        # Blocks that were begun inside this one may still be open. Each exit ends one level, whichever block it belongs
        # to, and the last one resets Django's connection. So this block has to end a level here.
        atomic, self._atomic = self._atomic, None
        with suppress(django_errors.Error):
            atomic.__exit__(_RolledBack, _RolledBack(), None)

    def close(self) -> None:
        """End the transaction if it is still open. Only Django closes the connection itself.

        SQLAlchemy calls neither `commit` nor `rollback` on a connection that it considers lost.
        """
        if connections[self._alias] is self._django:  # otherwise this is the garbage collector in another thread
            self._abandon()


class _EitherWay(DATETIME):
    """A datetime in SQLite: computed values are text; Django's connection has already converted column values."""

    def result_processor(self, dialect: Any, coltype: object) -> Callable[[Any], Any]:
        parse: Callable[[Any], Any] = super().result_processor(dialect, coltype)  # type: ignore[assignment]
        return lambda value: parse(value) if isinstance(value, str) else value


def _load_as_usual(cursor: Any) -> None:
    """Return values as SQLAlchemy expects. Django's have no time zones without USE_TZ, and JSON as text."""
    if hasattr(cursor, "adapters"):
        from psycopg.types.datetime import TimestamptzLoader  # noqa: PLC0415 - installed if it is used
        from psycopg.types.json import JsonbLoader  # noqa: PLC0415

        cursor.adapters.register_loader("timestamptz", TimestamptzLoader)
        cursor.adapters.register_loader("jsonb", JsonbLoader)
    else:
        cursor.tzinfo_factory = type(cursor).tzinfo_factory


#: Django's pools from the process that this one was forked from. They must never be touched: their threads do not exist
#: here, their connections belong to that process, and their locks may have been held during the fork.
_INHERITED: list[Any] = []


def _after_fork() -> None:
    base = sys.modules.get("django.db.backends.postgresql.base")
    pools: dict[str, Any] = getattr(getattr(base, "DatabaseWrapper", None), "_connection_pools", {})  # since Django 5.1
    _INHERITED.append(dict(pools))
    pools.clear()


os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _driver(module: ModuleType) -> Any:
    """Return the driver for SQLAlchemy, with Django's exceptions, which Django's cursors raise."""
    return _Driver(module, {name: getattr(django_errors, name) for name in _ERRORS})


class _Driver(SimpleNamespace):
    def __init__(self, module: ModuleType, errors: Mapping[str, type[Exception]]) -> None:
        super().__init__(**errors)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
