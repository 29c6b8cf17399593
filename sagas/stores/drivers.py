"""Statements that go to the driver itself, where SQLAlchemy takes longer for a statement than the database does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

__all__ = ["autocommitting"]


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
        # What is raised in the middle of a pipeline need not say that the connection is gone.
        lost = driver.broken or engine.dialect.is_disconnect(error, driver, None)
        if lost:
            connection.invalidate(error)
            engine.dispose()  # the others in the pool are as old, and likely lost too
        elif driver.info.transaction_status:  # it is not idle: 0
            connection.invalidate(error)
        else:
            driver.autocommit = False
        raise DBAPIError.instance(
            None, None, error, engine.dialect.loaded_dbapi.Error, connection_invalidated=lost, dialect=engine.dialect
        ) from error
    except BaseException as error:
        connection.invalidate(error)
        raise
    finally:
        connection.close()
