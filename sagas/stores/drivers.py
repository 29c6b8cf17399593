"""Statements that go to the driver itself, where SQLAlchemy takes longer for a statement than the database does."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

__all__ = ["Kept", "autocommitting"]

#: PostgreSQL keeps the plan that it made for a prepared statement while the tables were empty. With these settings it
#: finds rows by an index. Else it would read whole tables, or whole indexes for a join, until it has analysed them.
#: What only a scan can read, such as a sequence, then seems so expensive that PostgreSQL would compile the statement.
_BY_INDEX = "; ".join(f"SET {way} = off" for way in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"))

#: Connections that are kept beside an engine's pool: for whoever loads, whoever saves, and one who inserts or appends.
_MOST_KEPT = 3

#: Seconds after which a kept connection is replaced, as those of the pool are: a firewall may have dropped it.
_RECYCLE = 1_800


@contextmanager
def autocommitting(engine: Engine) -> Iterator[Any]:
    """Lend a connection of psycopg's from an engine's pool. Each statement on it is a transaction of its own.

    Raises SQLAlchemy's errors, as if the statement had gone through SQLAlchemy. A connection that is lost, or that an
    exception found in the middle of a statement, does not go back into the pool.
    """
    connection: Any = engine.raw_connection()
    try:
        driver = connection.driver_connection
        driver.autocommit = True
        yield driver
        driver.autocommit = False
    except engine.dialect.loaded_dbapi.Error as error:
        raised = _as_sqlalchemys(engine, driver, error)
        if raised.connection_invalidated or driver.info.transaction_status:  # it is not idle: 0
            connection.invalidate(error)
        else:
            driver.autocommit = False
        raise raised from error
    except BaseException as error:
        connection.invalidate(error)
        raise
    finally:
        connection.close()


def _as_sqlalchemys(engine: Engine, driver: Any, error: Any) -> DBAPIError:
    """Return SQLAlchemy's error for one of the driver's. Where the connection is lost, drop those of the pool, too."""
    # What is raised in the middle of a pipeline need not say that the connection is gone.
    lost = driver.broken or engine.dialect.is_disconnect(error, driver, None)
    if lost:
        engine.dispose()  # the others are as old, and likely lost too
    base = engine.dialect.loaded_dbapi.Error
    raised: DBAPIError = DBAPIError.instance(
        None, None, error, base, connection_invalidated=lost, dialect=engine.dialect
    )
    return raised


@dataclass(frozen=True, slots=True)
class _Connection:
    driver: Any
    opened_at: float  #: by the monotonic clock
    home: deque[_Connection]  #: where it goes when it is not lent


class Kept:
    """Connections of psycopg's that are kept beside an engine's pool, and stay in autocommit mode.

    To take one out of the pool, and to change its mode twice, costs as much as a statement. Whoever finds none gets one
    of the pool's. Safe to use from any thread, and after a fork. Where the engine is disposed of, they are closed.

    `most`: how many are kept at most. None are where the pool keeps none either.
    """

    def __init__(self, engine: Engine, most: int) -> None:
        self._weak_engine = weakref.ref(engine)  # which knows this one, and would never be collected otherwise
        self._most = most if isinstance(engine.pool, QueuePool) else 0
        self._begin_anew()
        event.listen(engine, "engine_disposed", lambda _engine: self._forget())

    @classmethod
    def of(cls, engine: Engine) -> Kept:
        """Return those of an engine: all stores that use it share them."""
        if engine not in _KEPT:
            _KEPT.setdefault(engine, cls(engine, _MOST_KEPT))
        return _KEPT[engine]

    @property
    def _engine(self) -> Engine:
        engine = self._weak_engine()
        assert engine is not None
        return engine

    def _begin_anew(self) -> None:
        self._idle: deque[_Connection] = deque()
        self._open = 0
        self._lock = threading.Lock()
        self._process = os.getpid()

    def _forget(self) -> None:
        before, is_own = self._idle, self._process == os.getpid()
        self._begin_anew()  # what is lent is closed when it comes back
        while before and is_own:  # to close them in a forked child would end the parent's sessions
            before.pop().driver.close()

    @contextmanager
    def lend(self) -> Iterator[tuple[Any, bool]]:
        """Lend a connection, and tell whether it is a kept one. Raises SQLAlchemy's errors, as `autocommitting` does.

        On a kept one, plans find rows by an index, and join by nested loops.
        """
        if (kept := self._take()) is None:
            with autocommitting(self._engine) as driver:
                yield driver, False
            return
        try:
            yield kept.driver, True
        except self._engine.dialect.loaded_dbapi.Error as error:
            raised = _as_sqlalchemys(self._engine, kept.driver, error)
            self._give_back(kept)
            raise raised from error
        except BaseException:  # it may be in the middle of a statement
            self._close(kept)
            raise
        else:
            self._give_back(kept)

    def _take(self) -> _Connection | None:
        if self._process != os.getpid():
            self._begin_anew()
        idle = self._idle
        while idle:
            try:
                kept = idle.pop()
            except IndexError:
                break  # another thread was quicker
            if time.monotonic() - kept.opened_at < _RECYCLE:
                return kept
            self._close(kept)
        with self._lock:
            if self._open >= self._most:
                return None
            self._open += 1
        try:
            return _Connection(self._opened(), time.monotonic(), idle)
        except BaseException:
            self._is_gone(idle)
            raise

    def _opened(self) -> Any:
        connection: Any = self._engine.raw_connection()
        driver = connection.driver_connection
        connection.detach()
        try:
            driver.autocommit = True
            if driver.prepare_threshold is not None:  # no pooler stands between: the session is its own
                driver.execute(_BY_INDEX)
        except self._engine.dialect.loaded_dbapi.Error as error:
            driver.close()
            raise _as_sqlalchemys(self._engine, driver, error) from error
        return driver

    def _give_back(self, kept: _Connection) -> None:
        if kept.driver.closed or kept.driver.info.transaction_status or kept.home is not self._idle:  # 0 is idle
            self._close(kept)
        else:
            kept.home.append(kept)

    def _close(self, kept: _Connection) -> None:
        kept.driver.close()
        self._is_gone(kept.home)

    def _is_gone(self, home: deque[_Connection]) -> None:
        with self._lock:
            if home is self._idle:
                self._open -= 1


_KEPT: weakref.WeakKeyDictionary[Engine, Kept] = weakref.WeakKeyDictionary()
