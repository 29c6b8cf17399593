"""Errors for Django callers, if a database is unavailable or refuses: `except DatabaseError` also catches them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db.transaction import TransactionManagementError
from django.db.utils import DatabaseError, Error, OperationalError
from sqlalchemy import Engine

from sagas.errors import StoreRefused, StoreUnavailable
from sagas.stores.engines import (
    GRANT,
    ON_DELETE,
    first_line,
    has_ended,
    has_failed,
    is_referred_to,
    lacks_tables,
    may_not,
    refused,
    translated,
)

__all__ = ["DatabaseRefused", "DatabaseUnavailable", "for_django", "told_to_django"]


class DatabaseUnavailable(StoreUnavailable, OperationalError):
    """The database did not answer. It is Django's `OperationalError` and the library's `StoreUnavailable`."""


class DatabaseRefused(StoreRefused, DatabaseError):
    """The database refused. It is Django's `DatabaseError` and the library's `StoreRefused`."""


@contextmanager
def for_django() -> Iterator[None]:
    """Convert the library's exceptions to ones that Django callers expect as well."""
    try:
        yield
    except (DatabaseUnavailable, DatabaseRefused):
        raise
    except StoreUnavailable as error:
        if lacks_tables(error):  # SQLite reports this as an OperationalError
            raise _refusal(error.__cause__ or error) from error.__cause__
        raise DatabaseUnavailable(str(error)) from error.__cause__
    except StoreRefused as error:
        raise (_refusal(error.__cause__) if error.__cause__ else DatabaseRefused(str(error))) from error.__cause__
    except Error as error:  # from a savepoint, which SQLAlchemy does not know
        if has_ended(error):
            raise DatabaseUnavailable(f"the database closed the connection: {error}") from error
        raise _refusal(error) from error


@contextmanager
def told_to_django(engine: Engine) -> Iterator[None]:
    """Convert SQLAlchemy's exceptions on one of Django's databases to ones that Django callers expect."""
    with for_django(), refused(), translated(engine):
        yield


def _refusal(said: BaseException) -> DatabaseRefused:
    if lacks_tables(said):
        hint = ". Upgrade the tables to this version: manage.py migrate"
    elif may_not(said):
        hint = f". {GRANT}"
    elif is_referred_to(said):
        hint = f". {ON_DELETE}"
    elif isinstance(said, TransactionManagementError) or has_failed(said):
        hint = (
            ". An error was caught inside this atomic block, which undoes all of it: put code that may fail into its "
            "own atomic block"
        )
    else:
        hint = ""
    return DatabaseRefused(f"the database refused: {first_line(said)}{hint}")
