"""An engine of SQLAlchemy whose connections are Django's, and whose transactions are atomic blocks of Django's.

So there is one connection a thread, and one transaction: what the library writes within `transaction.atomic()` is a
part of that, and what the ORM writes within a transaction of the library is a part of this. Whatever is true of
Django's connection is true of the engine: settings, persistence, the test database, counted queries.
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

#: What SQLAlchemy tells a new connection of its own, and must not tell Django's again and again.
_LEFT_ALONE = frozenset({"add_notice_handler", "create_function"})

_ERRORS = (
    "Error", "InterfaceError", "DatabaseError", "DataError", "OperationalError", "IntegrityError", "InternalError",
    "ProgrammingError", "NotSupportedError",
)  # fmt: skip


@functools.cache
def open_engine(alias: str) -> Engine:
    """Return the engine of one of Django's databases. No connection is made yet.

    Raises `ConfigurationError` for a database of a kind that sagas cannot be kept in.
    """
    django = connections[alias]
    if django.vendor not in _BACKENDS:
        raise ConfigurationError(
            f"DATABASES[{alias!r}] is {django.vendor}; sagas are kept in PostgreSQL, MySQL, MariaDB or SQLite"
        )
    options: dict[str, Any] = {}
    match django.vendor:
        case "postgresql":
            driver = "psycopg" if django.Database.__name__ == "psycopg" else "psycopg2"
            options["use_native_hstore"] = False  # that asks the database, and changes Django's connection
        case "sqlite":
            driver, options["paramstyle"] = "pysqlite", "format"  # Django's cursors take no other
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
    # Django's isolation stays what the settings say; and SQLAlchemy must not ask for it in the middle of a block.
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
    """Tell whether a transaction of the engine is Django's outermost atomic block, and not a part of another."""
    guard: _Guard = connection.connection.dbapi_connection  # type: ignore[assignment]
    return guard.outermost


@contextmanager
def nothing_left_open(alias: str) -> Iterator[None]:
    """Roll back what a block leaves open on Django's connection. Raises `TransactionMisuse` unless it raises itself."""
    connection = connections[alias]
    before, autocommit = len(connection.atomic_blocks), connection.autocommit
    try:
        yield
    except BaseException:
        _end_what_is_left(connection, before, autocommit)
        raise
    if _end_what_is_left(connection, before, autocommit):
        raise TransactionMisuse(
            f"a transaction on Django's database {alias!r} was left open, and is rolled back: close each session of "
            "SQLAlchemy's, leave each atomic block, and turn autocommit on again"
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
    """Django's connection as SQLAlchemy uses it, from one checkout to its return."""

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
            if self._django.errors_occurred:  # the server may have been restarted since
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
        if not self._known.is_set():  # SQLAlchemy asks once what server this is, which nobody shall count
            return self._django.connection.cursor()
        cursor = self._django.cursor()
        if self._django.vendor == "postgresql":
            _load_as_usual(cursor.cursor)
        return cursor

    # -- transactions -------------------------------------------------------------------------------------------

    def begin(self, *, reads: bool, one_statement: bool) -> None:
        # With autocommit off, too, it is the caller who commits.
        within = self._django.in_atomic_block or not self._django.autocommit
        if reads or (one_statement and not within):
            return  # Django's connection commits each statement by itself
        if self._atomic is not None and self._atomic in self._django.atomic_blocks:
            return  # SQLAlchemy takes a commit that was refused for the end of it
        self.outermost = not within
        self._one_statement = one_statement
        # Within a block of the caller's it is a savepoint: an error of ours must not cost them theirs.
        self._atomic = transaction.atomic(using=self._alias)
        self._atomic.__enter__()

    def commit(self) -> None:
        self._end(None)

    def rollback(self) -> None:
        # A statement that commits by itself has done so when SQLAlchemy, in the end, rolls back what is not there.
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
            return  # the block around it has ended, and it with that
        atomic, self._atomic = self._atomic, None
        if blocks[-1] is not atomic:
            atomic.sagas_ended = True
            raise ConfigurationError(
                f"a transaction of SQLAlchemy on Django's database {self._alias!r} ends before an atomic block that "
                "was begun within it, and is rolled back with that: end them in reverse order"
            )
        # Django then rolls back, and says nothing.
        lost = error is None and (self._django.needs_rollback or self._django.closed_in_transaction)
        atomic.__exit__(None if error is None else type(error), error, None)
        if lost:
            raise TransactionLost(
                f"a transaction on Django's database {self._alias!r} was rolled back: an error in it was caught, or "
                "set_rollback(True) was called. Nothing of it is committed. Put what may fail into an atomic block of "
                "its own: with transaction.atomic(): ..."
            )
        while blocks and hasattr(blocks[-1], "sagas_ended"):
            blocks[-1].__exit__(_RolledBack, _RolledBack(), None)

    def _abandon(self) -> None:
        """Roll back, whatever is left of the connection. Afterwards Django can use it, or opens another."""
        if self._atomic is None or self._atomic not in self._django.atomic_blocks:
            self._atomic = None
            return
        if not (self.lost or self.closed):
            with suppress(django_errors.Error):  # the server has rolled it back then, and Django drops the connection
                self._end(_RolledBack())
            return
        with suppress(django_errors.Error):
            self._django.close()
        # Blocks that were begun within this one may still be open. Each exit ends one level, whichever block it is of,
        # and the last of them resets Django's connection. So this one has to end a level here.
        atomic, self._atomic = self._atomic, None
        with suppress(django_errors.Error):
            atomic.__exit__(_RolledBack, _RolledBack(), None)

    def close(self) -> None:
        """End the transaction, if it is still open. The connection itself is Django's to close.

        SQLAlchemy calls neither `commit` nor `rollback` on a connection that it takes for lost.
        """
        if connections[self._alias] is self._django:  # else this is the garbage collector, in another thread
            self._abandon()


class _EitherWay(DATETIME):
    """A moment in SQLite: text where it was computed; where it is a column, Django's connection has converted it."""

    def result_processor(self, dialect: Any, coltype: object) -> Callable[[Any], Any]:
        parse: Callable[[Any], Any] = super().result_processor(dialect, coltype)  # type: ignore[assignment]
        return lambda value: parse(value) if isinstance(value, str) else value


def _load_as_usual(cursor: Any) -> None:
    """Have values come as SQLAlchemy knows them. Django's way has no time zones without USE_TZ, and JSON as text."""
    if hasattr(cursor, "adapters"):
        from psycopg.types.datetime import TimestamptzLoader  # noqa: PLC0415 - it is there where it is used
        from psycopg.types.json import JsonbLoader  # noqa: PLC0415

        cursor.adapters.register_loader("timestamptz", TimestamptzLoader)
        cursor.adapters.register_loader("jsonb", JsonbLoader)
    else:
        cursor.tzinfo_factory = type(cursor).tzinfo_factory


#: Django's pools of the process that this one was forked from, never to be touched: their threads did not come along,
#: their connections are that process's, and their locks may have been held at that moment.
_INHERITED: list[Any] = []


def _after_fork() -> None:
    base = sys.modules.get("django.db.backends.postgresql.base")
    pools: dict[str, Any] = getattr(getattr(base, "DatabaseWrapper", None), "_connection_pools", {})  # since Django 5.1
    _INHERITED.append(dict(pools))
    pools.clear()


os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _driver(module: ModuleType) -> Any:
    """Return the driver as SQLAlchemy is to see it: with Django's errors, which are what Django's cursors raise."""
    return _Driver(module, {name: getattr(django_errors, name) for name in _ERRORS})


class _Driver(SimpleNamespace):
    def __init__(self, module: ModuleType, errors: Mapping[str, type[Exception]]) -> None:
        super().__init__(**errors)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
