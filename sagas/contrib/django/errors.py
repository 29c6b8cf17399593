"""What callers in Django are told of a database that is away, or refuses: `except DatabaseError` catches it, too."""

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
    """The database did not answer. To Django this is an `OperationalError`, to the library a `StoreUnavailable`."""


class DatabaseRefused(StoreRefused, DatabaseError):
    """The database refused. To Django this is a `DatabaseError`, to the library a `StoreRefused`."""


@contextmanager
def for_django() -> Iterator[None]:
    """Have what is raised for callers of the library be what callers of Django expect as well."""
    try:
        yield
    except (DatabaseUnavailable, DatabaseRefused):
        raise
    except StoreUnavailable as error:
        if lacks_tables(error):  # what SQLite says of it is an OperationalError
            raise _refusal(error.__cause__ or error) from error.__cause__
        raise DatabaseUnavailable(str(error)) from error.__cause__
    except StoreRefused as error:
        raise (_refusal(error.__cause__) if error.__cause__ else DatabaseRefused(str(error))) from error.__cause__
    except Error as error:  # of a savepoint, which is none of SQLAlchemy's
        if has_ended(error):
            raise DatabaseUnavailable(f"the database closed the connection: {error}") from error
        raise _refusal(error) from error


@contextmanager
def told_to_django(engine: Engine) -> Iterator[None]:
    """Have what SQLAlchemy raises on one of Django's databases be what callers of Django expect."""
    with for_django(), refused(), translated(engine):
        yield


def _refusal(said: BaseException) -> DatabaseRefused:
    if lacks_tables(said):
        hint = ". Bring the tables to this version: manage.py migrate"
    elif may_not(said):
        hint = f". {GRANT}"
    elif is_referred_to(said):
        hint = f". {ON_DELETE}"
    elif isinstance(said, TransactionManagementError) or has_failed(said):
        hint = (
            ". An error was caught in this atomic block, which undoes all of it: put what may fail into an atomic "
            "block of its own"
        )
    else:
        hint = ""
    return DatabaseRefused(f"the database refused: {first_line(said)}{hint}")
