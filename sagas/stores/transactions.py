"""Transactions that a promise depends on.

Three things must hold for them. Only this library ends them, though code of others writes in them. Their commit is a
commit: after an error PostgreSQL answers COMMIT with a rollback, and says nothing. And the database ends them when it
no longer hears of the process, so that a host that vanishes does not keep its locks.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, Self

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction

from sagas.errors import TransactionLost, TransactionMisuse

__all__ = ["IDLE", "UNHEARD", "Lent", "begin_if_late", "begun", "check", "let_go", "limit_idle"]

#: Seconds after which a database that hears nothing of an open transaction ends it. On PostgreSQL a thread speaks for
#: a transaction whose code is busy elsewhere.
IDLE = 30.0

#: The same where no other thread may use a connection (MariaDB), unless the caller knows better: a handler may be busy.
UNHEARD = 900.0

#: What a transaction in which an error occurred is to PostgreSQL's drivers, and one that waits for its next statement.
_IN_TRANSACTION, _IN_ERROR = 2, 3

#: What may not be called on a session that is lent.
_ENDS = ("commit", "rollback", "close", "reset", "invalidate", "prepare")

_MARK = "sagas_lent"

_ENDING = re.compile(
    r"(?:\s|/\*.*?\*/|--[^\n]*\n)*(?:commit|end|abort|begin|start\s+transaction|prepare\s+transaction"
    r"|rollback(?!(?:\s+(?:work|transaction))?\s+to\b))\b",
    re.IGNORECASE | re.DOTALL,
)
#: On MySQL and MariaDB these commit what comes before them.
_COMMITTING = re.compile(
    r"(?:\s|/\*.*?\*/|--[^\n]*\n|#[^\n]*\n)*(?:(?:create|drop)\s+(?!temporary\b)|alter\b|truncate\b|rename\b|grant\b"
    r"|revoke\b|lock\s+tables?\b|unlock\s+tables?\b|analyze\b|optimize\b|repair\b)",
    re.IGNORECASE | re.DOTALL,
)


def _is_aborted(connection: Connection) -> bool:
    raw: Any = connection.connection.driver_connection
    match connection.dialect.driver:
        case "psycopg":
            return int(raw.pgconn.transaction_status) == _IN_ERROR
        case "psycopg2":
            return int(raw.get_transaction_status()) == _IN_ERROR
    if connection.dialect.name != "postgresql":
        return False
    try:
        connection.exec_driver_sql("SELECT 1")  # the other drivers do not tell unless they are asked
    except DBAPIError as error:
        if _says_missing(error):
            return True
        raise
    return False


@contextmanager
def begun(engine: Engine, *, unheard: float | None = None) -> Iterator[Connection]:
    """Open a transaction that commits at the end of the block, and that the database ends if it hears no more of us.

    `unheard`: as in `limit_idle`.
    Raises `TransactionLost` when an error that the block caught has undone it.
    """
    with engine.begin() as connection:
        let_go = limit_idle(connection, unheard=unheard)
        try:
            yield connection
            check(connection, "a transaction of the library's own")
        finally:
            let_go()


def let_go(session: Session) -> None:
    """Close a session, whatever has become of its connection: a rollback that fails there hides what went wrong."""
    try:
        session.close()
    except SQLAlchemyError:  # the connection is lost, and the database has rolled back
        session.invalidate()


def begin_if_late(connection: Connection) -> None:
    """Begin the transaction that a driver begins late. Before a savepoint: else the end of that would commit."""
    if not _is_open(connection):
        connection.exec_driver_sql("BEGIN")


def check(connection: Connection, who: str) -> None:
    """Raise `TransactionLost` where a commit would be answered with a rollback."""
    if _is_aborted(connection):
        raise TransactionLost(_ABORTED.format(who=who))


_ABORTED = (
    "{who}: a statement failed, the error was caught, and PostgreSQL has undone the whole transaction. Nothing of it "
    "is committed. Put what may fail into a savepoint: with session.begin_nested(): ..."
)


# -- ended by the database ------------------------------------------------------------------------------------------


def limit_idle(
    connection: Connection, *, unheard: float | None = None, most: float | None = None, mark: str | None = None
) -> Callable[[], None]:
    """Have the database end the open transaction when it hears nothing of this process.

    Returns what to call at the end of the transaction. `mark`: what PostgreSQL keeps with it, see `Lent`.

    That is after `IDLE` seconds where a thread speaks for the transaction while its code is busy, for `most` seconds at
    most; where it cannot, after `unheard` seconds. SQLite needs neither: its locks end with the process, and are on one
    host.
    """
    if connection.dialect.name == "postgresql":
        # Without somebody to speak for it, its code may be busy for as long as the server allows.
        speaks = connection.dialect.driver in ("psycopg", "psycopg2")
        settings = {f"{_MARK}.it": mark} if mark is not None else {}
        if speaks:
            settings["idle_in_transaction_session_timeout"] = str(round(IDLE * 1000))
        if settings:
            local = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())
            connection.exec_driver_sql(f"SELECT {local}")
        return _VOICE.speak_for(connection, IDLE / 3, most) if speaks else _nothing
    if not getattr(connection.dialect, "is_mariadb", False):
        return _nothing
    connection.exec_driver_sql(f"SET SESSION idle_transaction_timeout = {math.ceil(unheard or IDLE)}")

    def reset() -> None:
        if connection.closed or connection.invalidated:
            return
        # To the driver: SQLAlchemy would refuse it once an error has ended what it takes for the transaction.
        with suppress(connection.dialect.loaded_dbapi.Error), closing(connection.connection.cursor()) as cursor:
            cursor.execute("SET SESSION idle_transaction_timeout = DEFAULT")

    return reset


def _nothing() -> None: ...


@dataclass(eq=False, slots=True)
class _Spoken:
    driver: str
    raw: Any
    every: float
    until: float
    next: float
    over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def end(self) -> None:
        with self.lock:  # nothing is sent on a connection that others may have by then
            self.over = True
        _VOICE.forget(self)

    def speak(self, now: float) -> None:
        with self.lock:
            if self.over or now > self.until:
                return
            self.next = now + self.every
            if self.driver == "psycopg2":
                if self.raw.get_transaction_status() == _IN_TRANSACTION:
                    with self.raw.cursor() as cursor:
                        cursor.execute("SELECT 1")
            elif self.raw.lock.acquire(blocking=False):  # else it is not idle
                try:
                    connection = self.raw.pgconn
                    if int(connection.transaction_status) == _IN_TRANSACTION and not connection.pipeline_status:
                        connection.exec_(b"SELECT 1")
                finally:
                    self.raw.lock.release()


class _Voice:
    """A thread that speaks for transactions whose own threads are busy elsewhere. It ends when there are none."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._all: set[_Spoken] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def speak_for(self, connection: Connection, every: float, most: float | None) -> Callable[[], None]:
        now = time.monotonic()
        raw = connection.connection.driver_connection
        until = float("inf") if most is None else now + most
        spoken = _Spoken(connection.dialect.driver, raw, every, until, now + every)
        with self._lock:
            self._all.add(spoken)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sagas-transactions", daemon=True)
                self._thread.start()
        return spoken.end

    def forget(self, spoken: _Spoken) -> None:
        with self._lock:
            self._all.discard(spoken)

    def _run(self) -> None:
        while True:
            time.sleep(min(1.0, IDLE / 10))
            with self._lock:
                if not self._all:
                    self._thread = None
                    return
                now = time.monotonic()
                due = [spoken for spoken in self._all if spoken.next <= now]
            for spoken in due:
                with suppress(Exception):  # it is gone, and whoever uses it will hear of that
                    spoken.speak(now)


_VOICE = _Voice()
os.register_at_fork(after_in_child=_VOICE.reset)


# -- ended by nobody else ---------------------------------------------------------------------------------------------


class Lent:
    """Lends a session to code that writes in its transaction, and that may not end it.

    Savepoints are that code's own affair. Commits, rollbacks and closing are refused when they are called, and so is
    SQL that does the same; what still ends the transaction, an error of the database or a procedure, is found out
    before the commit, by a mark that ends with the transaction.

    `who`: whose code it is, for messages. `most`: seconds that it may take, where there is a limit.

    As a context manager it takes the session back. It commits nothing unless `commit` is called.
    """

    def __init__(self, session: Session, engine: Engine, who: str, *, most: float | None = None) -> None:
        self.session = session
        self._engine = engine
        self._who = who
        self._most = most
        self._token = secrets.token_hex(8)
        self._connection: Connection | None = None
        self._misuse: TransactionMisuse | None = None
        self._rolled_back = False
        self._verified = False
        self._over = False
        session.info[_MARK] = self
        self._let_go: Callable[[], None] = _nothing
        for name in _ENDS:
            setattr(session, name, partial(self._refuse, f"session.{name}()"))
        event.listen(session, "after_begin", self._session_began)

    @staticmethod
    def verified(session: Session) -> bool:
        """Do as `verify` for a session that may be lent. Return whether it is."""
        lent: Lent | None = session.info.get(_MARK)
        if lent is not None:
            lent.verify()
        return lent is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.take_back()

    def hold(self, connection: Connection) -> None:
        """Keep the transaction of this connection. Without this, that which the session begins next."""
        self._connection = connection
        if connection.dialect.name != "postgresql":
            begin_if_late(connection)
            connection.exec_driver_sql(f"SAVEPOINT {_MARK}")
        unheard = UNHEARD if self._most is None else self._most
        self._let_go = limit_idle(connection, unheard=unheard, most=self._most, mark=self._token)
        event.listen(connection, "commit", self._commits)
        event.listen(connection, "rollback", self._rolls_back)
        event.listen(connection, "before_cursor_execute", self._executes)

    def check(self) -> None:
        """Raise `TransactionMisuse` or `TransactionLost` for what shows without asking the database."""
        if self._misuse is not None:
            raise self._misuse
        connection = self._connection
        if connection is None:
            return
        gone = self._rolled_back or connection.closed or connection.invalidated
        if gone or not self.session.is_active or not _is_open(connection):
            raise TransactionLost(
                f"{self._who}: its transaction was rolled back by an error that was caught. Nothing of it "
                "is committed. Put what may fail into a savepoint: with session.begin_nested(): ..."
            )
        check(connection, self._who)

    def verify(self) -> None:
        """Make sure that everything since the beginning is in this one transaction. Raises as `check` does.

        For when the lent code has ended, and before anything is written that says so: where a transaction has ended,
        the next statement may be one of its own.
        """
        if self._verified:
            return
        self.check()
        self.session.flush()
        self.check()
        if self._connection is not None:
            self._find_mark(self._connection)
        self._verified = True

    def commit(self) -> None:
        """Commit what `verify` finds whole. Raises as that does."""
        self.verify()
        self.take_back()
        self.session.commit()

    def is_whole(self) -> bool:
        """Tell, after an error, whether the transaction is still the one that began, as far as can be told."""
        if self._connection is None or self._rolled_back or self._verified or self._over:
            return True
        try:
            self._find_mark(self._connection)
        except TransactionLost:
            return False
        except SQLAlchemyError:  # whatever it is, it went with the connection
            return True
        return True

    def take_back(self) -> None:
        """Let the session be ended again."""
        if not self._over:
            self._over = True
            del self.session.info[_MARK]
            for name in _ENDS:
                delattr(self.session, name)
            self._let_go()

    def _find_mark(self, connection: Connection) -> None:
        try:
            if connection.dialect.name == "postgresql":
                found = (
                    connection.exec_driver_sql(f"SELECT current_setting('{_MARK}.it', true)").scalar() == self._token
                )
            else:
                connection.exec_driver_sql(f"RELEASE SAVEPOINT {_MARK}")
                found = True
        except DBAPIError as error:
            if not _says_missing(error):
                raise
            found = False
        if not found:
            raise TransactionLost(
                f"{self._who}: its transaction ended before its code did: the database rolled it back (a deadlock, "
                "say) and the error was caught, or a statement in it commits (a procedure, DDL). What came before "
                "may be committed, what came after is not"
            )

    # -- what the lent session, and what is behind it, is asked -------------------------------------------------------

    def _session_began(self, _: Session, __: SessionTransaction, connection: Connection) -> None:
        if not self._over and self._connection is None and connection.engine.pool is self._engine.pool:
            self.hold(connection)

    def _refuse(self, what: str, *_: object, **__: object) -> NoReturn:
        self._misuse = TransactionMisuse(
            f"{self._who} calls {what}, but its transaction is not its own to end: what it writes commits "
            "together with the record that it ran, or not at all. Leave it out. For a part that may fail, use a "
            "savepoint: with session.begin_nested(): ..."
        )
        raise self._misuse

    def _commits(self, connection: Connection) -> None:
        if not self._over:
            # Here and now: SQLAlchemy takes a commit that fails for the end of the transaction, and would give the
            # connection back with all that is in it.
            connection.dialect.do_rollback(connection.connection)
            self._refuse("commit() on its connection")
        check(connection, self._who)  # what is done just before the commit may have failed

    def _rolls_back(self, _: Connection) -> None:
        self._rolled_back = True  # not refused: a flush that fails does it, and its error says more

    def _executes(self, connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if self._over:
            return
        if _ENDING.match(statement):
            self._refuse(f"SQL that ends it ({statement.strip()[:60]!r})")
        if connection.dialect.name in ("mysql", "mariadb") and _COMMITTING.match(statement):
            self._refuse(f"SQL that commits it on {connection.dialect.name} ({statement.strip()[:60]!r})")


def _is_open(connection: Connection) -> bool:
    """Tell whether SQLite's driver is in a transaction: when that ends, it commits each statement by itself."""
    raw: Any = connection.connection.driver_connection
    return connection.dialect.name != "sqlite" or bool(raw.in_transaction)


def _says_missing(error: DBAPIError) -> bool:
    """Tell whether the database said that the mark is not there, or that an error has undone the transaction."""
    original: Any = error.orig
    said = original.args[0] if original is not None and original.args else None
    return (
        getattr(original, "sqlstate", getattr(original, "pgcode", None)) == "25P02"
        or said == 1305  # MySQL, MariaDB
        or str(said).startswith("no such savepoint")  # SQLite
    )
