"""Databases for tests, of every kind that the library supports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sagas import SqlStore
from sagas.stores.codecs import PLAIN, Codec

__all__ = ["database_url", "migrated_store"]


def database_url(request: pytest.FixtureRequest, kind: str, folder: Path) -> str:
    """Return the URL of a database without tables.

    `kind`: "sqlite", for a file in `folder`, or the fixture of a server, such as "postgres".
    """
    if kind == "sqlite":
        return f"sqlite:///{folder / 'sagas.db'}"
    url: str = request.getfixturevalue(kind).database()
    return url


@contextmanager
def migrated_store(request: pytest.FixtureRequest, kind: str, folder: Path, codec: Codec = PLAIN) -> Iterator[SqlStore]:
    """Yield a store on such a database, with its tables."""
    store = SqlStore(database_url(request, kind, folder), codec=codec)
    store.upgrade()
    yield store
    store.engine.dispose()
