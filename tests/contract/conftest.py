"""One database of each kind for the tests of events, emptied for each test: migrating takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import psycopg
import pytest
from sqlalchemy import Engine, create_engine

from sagas.stores import schema
from tests.databases import migrated_store

TABLES = (
    schema.stored_events,
    schema.streams,
    schema.snapshots,
    schema.projections,
    schema.live_projections,
)


@pytest.fixture(scope="module", params=["sqlite", "postgres", "postgres through SQLAlchemy", "mariadb"])
def migrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    kind = request.param.partition(" ")[0]
    with migrated_store(request, kind, tmp_path_factory.mktemp("events")) as kept:
        url = kept.engine.url.render_as_string(hide_password=False)
        engine = through_sqlalchemy(url) if "SQLAlchemy" in request.param else kept.engine
        yield engine
        engine.dispose()


def through_sqlalchemy(url: str) -> Engine:
    """Return an engine whose driver's module is not the driver's own, as Django's: nothing goes past SQLAlchemy."""
    own = {name: value for name, value in vars(psycopg).items() if name != "__name__"}
    return create_engine(url, module=SimpleNamespace(**own))


@pytest.fixture
def event_engine(migrated: Engine) -> Engine:
    empty(migrated)
    return migrated


def empty(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in TABLES:
            connection.execute(table.delete())
