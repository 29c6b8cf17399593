"""Connections to the database, for all who ask it: opened, timed, limited, translated, and forgotten in a fork."""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, func, literal_column, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError, StatementError
from sqlalchemy.pool import SingletonThreadPool

from sagas.errors import ConfigurationError, StoreRefused, StoreUnavailable
from sagas.stores.columns import UtcDateTime
from sagas.text import clean, describe

__all__ = [
    "READ_ONLY",
    "GRANT",
    "ON_DELETE",
    "database_now",
    "first_line",
    "forget_after_fork",
    "has_ended",
    "has_failed",
    "is_referred_to",
    "lacks_tables",
    "may_not",
    "open_engine",
    "reading",
    "refused",
    "sqlstate",
    "teach_sqlite",
    "translated",
    "spare",
]

T = TypeVar("T")

#: Seconds that the engine's own statement may take. Unset in a step's session: what it asks is not ours to limit.
_LIMIT: ContextVar[float | None] = ContextVar("sagas_limit", default=None)

#: What drivers are told, unless the URL says otherwise, so that no connection waits for ever for a host that is gone.
_CONNECT_ARGS: Mapping[str, Mapping[str, Any]] = {
    "psycopg": {
        "connect_timeout": 10,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 25_000,  # milliseconds
    },
    "pymysql": {"read_timeout": 60, "write_timeout": 60},  # longer than MySQL itself waits for a lock
}

#: Marks a connection that only reads, so that SQLite does not take its write lock.
READ_ONLY = "sagas_read_only"

_UTC = UtcDateTime()
_MYSQL_NOW = literal_column("UTC_TIMESTAMP(6)", type_=_UTC)
_NOW: Mapping[str, Any] = {
    "postgresql": func.clock_timestamp(type_=_UTC),
    "sqlite": literal_column("strftime('%Y-%m-%d %H:%M:%f000', 'now')", type_=_UTC),
    "mysql": _MYSQL_NOW,
    "mariadb": _MYSQL_NOW,
}


def open_engine(given: str) -> Engine:
    """Return an engine for a URL, set up as the rules in here want it."""
    url = make_url(given)
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, hide_parameters=True)
        teach_sqlite(engine)
        return engine
    # READ COMMITTED is what the compare-and-set is made for; MySQL's default would read an old snapshot again.
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",
        hide_parameters=True,  # an error's text must not hold what somebody's saga was started with
        pool_recycle=1800,
        connect_args={
            what: value for what, value in _CONNECT_ARGS.get(url.get_driver_name(), {}).items() if what not in url.query
        },
    )
    # SQLAlchemy asks for it at the first connection of a process, once. A child that is forked in that moment believes
    # that it was asked, and could not put a connection back into its pool.
    engine.dialect.default_isolation_level = "READ COMMITTED"
    if engine.driver == "psycopg":
        _limit_psycopg(engine)
    return engine


def _limit_psycopg(engine: Engine) -> None:
    """Give up on a database that is silent. The driver would wait for ever while its host is there."""
    import psycopg  # noqa: PLC0415 - it is there where it is used

    class Limited(psycopg.Connection[Any]):
        def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
            limit = _LIMIT.get()
            return super().wait(gen if limit is None else self._until(limit, gen), *args, **options)

        def _until(self, limit: float, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
            give_up = time.monotonic() + limit
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted
                    if not ready and time.monotonic() > give_up:  # "not ready" comes ten times a second
                        self.close()
                        raise psycopg.OperationalError(f"no answer within {limit:g} s")
                    wanted = gen.send(ready)
            except StopIteration as end:
                result: T = end.value
                return result

    @event.listens_for(engine, "do_connect")
    def _(_dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
        connection = Limited.connect(*arguments, **options)
        if _is_pooled(connection):
            connection.prepare_threshold = None  # a statement is prepared in one session, and the next may be another
        return connection


def _is_pooled(connection: Any) -> bool:
    """Tell whether a pooler, such as PgBouncer, stands between: it gives its own number in place of the server's."""
    connection.autocommit = True
    (served_by,) = connection.execute("SELECT pg_backend_pid()").fetchone()
    connection.autocommit = False
    return bool(served_by != connection.info.backend_pid)


def teach_sqlite(engine: Engine) -> None:
    """Let several processes share the file: a log that readers do not block, and transactions that say if they write.

    The driver's own transactions begin late and then fail when two writers meet ("database is locked", at once), and
    its savepoints survive the rollback of what is around them.
    """

    @event.listens_for(engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout = 30000")  # milliseconds
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        driver: Any = connection.connection.dbapi_connection
        if driver.in_transaction:
            return  # whoever made the engine begins transactions, too
        reads = connection.get_execution_options().get(READ_ONLY)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


@contextmanager
def translated(engine: Engine, timeout: float | None = None) -> Iterator[None]:
    """Tell "the database did not answer" from every other error: only the former is worth waiting for.

    Raises `StoreUnavailable` for the former. `timeout`: seconds that a statement in the block may take; longer counts
    as no answer. It holds on PostgreSQL, where `open_engine` made the engine.
    """
    unlimited = _LIMIT.set(timeout)
    dbapi = engine.dialect.loaded_dbapi  # where SQLAlchemy sets a connection up, the driver's errors come bare
    try:
        yield
    except (OperationalError, InterfaceError, dbapi.OperationalError, dbapi.InterfaceError) as error:
        cause = _cause(error)
        if may_not(cause):  # what MySQL and SQLite say of it is an OperationalError
            raise _refusal(cause) from _driver_error(cause)
        said = " ".join(str(cause).split())  # PostgreSQL's own text has several lines
        raise StoreUnavailable(f"the database did not answer: {said}") from cause
    except DBAPIError as error:
        if not (error.connection_invalidated or has_ended(_cause(error))):
            raise
        raise StoreUnavailable(f"the database closed the connection: {error.orig}") from error.orig
    finally:
        _LIMIT.reset(unlimited)


@contextmanager
def refused() -> Iterator[None]:
    """Turn what SQLAlchemy raises into `StoreRefused`, for callers who need not know that it is there.

    Neither the message nor the chain of causes holds a parameter of the statement: it may be somebody's card.
    """
    try:
        yield
    except SQLAlchemyError as error:
        said = error.orig if isinstance(error, StatementError) and error.orig is not None else error
        raise _refusal(said) from _driver_error(said)


def _refusal(said: BaseException) -> StoreRefused:
    return StoreRefused(f"the database refused: {first_line(said)}{_hint(said)}")


def _driver_error(said: BaseException) -> BaseException | None:
    return None if isinstance(said, SQLAlchemyError) else said


def first_line(said: BaseException) -> str:
    """Return what the database said, without the values that it may quote."""
    # What follows it in PostgreSQL's is the detail, and that quotes values.
    text = str(said.args[1] if len(said.args) == 2 and isinstance(said.args[0], int) else describe(said))
    return clean(text.partition("\n")[0], _LONGEST)


def _hint(said: BaseException) -> str:
    if lacks_tables(said):
        return ". Bring the tables to this version: `sagas db upgrade`"
    if may_not(said):
        return f". {GRANT}"
    if is_referred_to(said):
        return f". {ON_DELETE}"
    if isinstance(said, SQLAlchemyError) or has_failed(said):
        return ". Roll the session's transaction back, or use a savepoint for what may fail, and start the saga again"
    return ""


def _codes(said: BaseException) -> set[Any]:
    """Return the codes of an error: PostgreSQL's, which others have too, and what MySQL and SQLite put first."""
    first = said.args[0] if said.args and isinstance(said.args[0], int | str) else None
    # Django's errors have the driver's as their cause.
    return {sqlstate(said), sqlstate(said.__cause__), first} - {None}


def sqlstate(said: BaseException | None) -> str | None:
    """Return PostgreSQL's code for an error of its drivers."""
    code: str | None = getattr(said, "sqlstate", None) or getattr(said, "pgcode", None)
    return code


def _says(said: BaseException, known: Collection[Any], *words: str) -> bool:
    codes = _codes(said)
    return not codes.isdisjoint(known) or any(each in str(code) for each in words for code in codes)


def lacks_tables(error: BaseException | None) -> bool:
    """Tell whether a database that did answer said that a table or a column is not there."""
    if isinstance(error, StoreUnavailable | StoreRefused):  # what SQLite says of it is an OperationalError
        error = error.__cause__
    said = error.orig if isinstance(error, DBAPIError) else error
    if said is None:
        return False
    return _says(said, _NOT_THERE, *(("no such table", "no such column") if _is_sqlites(said) else ()))


def _is_sqlites(said: BaseException) -> bool:
    return isinstance(said, sqlite3.Error) or isinstance(said.__cause__, sqlite3.Error)  # Django's has it as its cause


def may_not(said: BaseException) -> bool:
    """Tell whether the database said that the role, or the transaction, may not do what was asked."""
    return _says(_cause(said), _MAY_NOT, "readonly database")


def has_ended(said: BaseException) -> bool:
    """Tell whether PostgreSQL said that it has ended the session."""
    return _says(said, _ENDED)


def has_failed(said: BaseException) -> bool:
    """Tell whether PostgreSQL said that an error has undone the transaction before."""
    return _says(said, (_FAILED,))


def is_referred_to(said: BaseException) -> bool:
    """Tell whether the database said that rows of another table refer to what was to be deleted."""
    return _says(said, _REFERRED_TO, "FOREIGN KEY constraint failed")


ON_DELETE = (
    "Rows of another table refer to sagas that were to be deleted. Give that foreign key ON DELETE SET NULL or CASCADE "
    "in the database, or keep the id of the saga in a column without a foreign key"
)
GRANT = "The role of this connection may not do that: grant it SELECT, INSERT, UPDATE and DELETE"

#: A table or a column is not there: PostgreSQL's, then MySQL's and MariaDB's.
_NOT_THERE = ("42P01", "42703", 1146, 1054)

#: No such privilege, a transaction that only reads: PostgreSQL's, then MySQL's and MariaDB's.
_MAY_NOT = ("42501", "25006", 1142, 1290, 1792, 1836)

#: A foreign key would be left without its row: PostgreSQL's, then MySQL's and MariaDB's.
_REFERRED_TO = ("23503", 1451)

#: PostgreSQL has ended a session that was idle in a transaction for too long: an InternalError to its drivers.
_ENDED = ("25P03",)

#: PostgreSQL: the transaction has failed, and takes no more statements.
_FAILED = "25P02"

_LONGEST = 1_000


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a connection that only reads: on SQLite it takes no lock."""
    with refused(), translated(engine), engine.connect() as connection:
        yield spare(connection).execution_options(**{READ_ONLY: True})


def spare(connection: Connection) -> Connection:
    """Return a connection that was just opened. Raises `ConfigurationError` where a transaction is open on it.

    All connections of a thread to a SQLite database in memory are one: to end this one would undo what the caller of
    the library has written and not committed.
    """
    is_shared = isinstance(connection.engine.pool, SingletonThreadPool)
    if is_shared and getattr(connection.connection.dbapi_connection, "in_transaction", False):
        raise ConfigurationError(
            "a transaction is open in this thread, and a SQLite database in memory has one connection for each thread: "
            "what the transaction has written would be lost. Commit it first, or use a file: sqlite:///shop.db"
        )
    return connection


def database_now(dialect: str) -> Any:
    """Return the SQL expression for the database's own time, in UTC. Raises `ConfigurationError` for a strange one."""
    if dialect not in _NOW:
        raise ConfigurationError(f"sagas and events are kept in PostgreSQL, MySQL, MariaDB or SQLite, not in {dialect}")
    return _NOW[dialect]


_ALL: weakref.WeakSet[Engine] = weakref.WeakSet()


def forget_after_fork(engine: Engine) -> None:
    """Have a forked child connect anew: each side of a shared connection would read the other's answers."""
    _ALL.add(engine)


def _after_fork() -> None:
    for engine in _ALL:
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_after_fork)


def _cause(error: BaseException) -> BaseException:
    """Return what the driver raised: SQLAlchemy's own text may hold the parameters of the statement."""
    return getattr(error, "orig", None) or error
