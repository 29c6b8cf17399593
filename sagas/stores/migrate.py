"""Alembic, pointed at the migrations that ship in the package."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

__all__ = ["VERSION_TABLE", "current", "head", "upgrade"]

#: Ours alone, so that an application with Alembic migrations of its own keeps its own.
VERSION_TABLE = "sagas_alembic_version"


def upgrade(engine: Engine) -> None:
    """Run the migrations that the database lacks, in one transaction where it can."""
    config = _config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def current(engine: Engine) -> str | None:
    """Return the revision that the database is at; None when it has no tables of ours."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def head() -> str | None:
    """Return the revision that this version of the library needs."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "sagas.stores:migrations")
    return config
