"""One database of each kind for the tests of events, emptied for each test: migrating takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from sagas import SqlStore
from sagas.stores import schema

TABLES = (
    schema.stored_events,
    schema.streams,
    schema.snapshots,
    schema.projections,
    schema.live_projections,
)


@pytest.fixture(scope="module", params=["sqlite", "postgres", "mariadb"])
def migrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    url = (
        f"sqlite:///{tmp_path_factory.mktemp('events') / 'events.db'}"
        if request.param == "sqlite"
        else request.getfixturevalue(request.param).database()
    )
    kept = SqlStore(url)
    kept.upgrade()
    yield kept.engine
    kept.engine.dispose()


@pytest.fixture
def event_engine(migrated: Engine) -> Engine:
    empty(migrated)
    return migrated


def empty(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in TABLES:
            connection.execute(table.delete())
