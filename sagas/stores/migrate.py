"""Alembic, pointed at the migrations that ship in the package."""

from __future__ import annotations

import io

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

__all__ = ["VERSION_TABLE", "current", "downgrade", "head", "sql", "upgrade"]

#: Ours alone, so that an application with Alembic migrations of its own keeps its own.
VERSION_TABLE = "sagas_alembic_version"


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Run the migrations that the database lacks, up to a revision, in one transaction where it can."""
    config = _config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Undo the migrations after a revision; after "base" all of them, with all that is in the tables."""
    config = _config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def sql(dialect: str, before: str, revision: str, *, down: bool = False) -> str:
    """Return the SQL of the migrations after a revision up to another, or with `down` of those that undo them.

    It is for a database of this dialect. Nothing is asked of one.
    """
    config = _config()
    config.output_buffer = written = io.StringIO()
    config.attributes["dialect"] = dialect
    if down:
        command.downgrade(config, f"{revision}:{before}", sql=True)
    else:
        command.upgrade(config, f"{before}:{revision}", sql=True)
    return written.getvalue()


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
