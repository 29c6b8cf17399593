"""The operation in Django's migrations: upgrade the tables to one of the library's own revisions."""

from __future__ import annotations

from typing import Any

from django.db.migrations.operations.base import Operation

from sagas.contrib.django.conf import alias
from sagas.contrib.django.connections import open_engine
from sagas.stores import migrate

__all__ = ["UpgradeTables"]


class UpgradeTables(Operation):
    """Runs the library's own migrations up to a revision, on Django's connection and in its transaction.

    The tables therefore have a single definition. If `celery -A yourapp sagas db upgrade` has created them, only the
    remaining migrations run. Only the sagas' database gets the tables. `manage.py sqlmigrate` shows the SQL.
    """

    reduces_to_sql = True

    def __init__(self, revision: str, before: str = "base") -> None:
        self.revision = revision
        self.before = before

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing: the models describe the state."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:  # noqa: ARG002
        if schema_editor.connection.alias != alias():
            return
        engine = open_engine(alias())
        if schema_editor.collect_sql:
            _write(schema_editor, migrate.sql(engine.dialect.name, self.before, self.revision))
        else:
            migrate.upgrade(engine, self.revision)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:  # noqa: ARG002
        if schema_editor.connection.alias != alias():
            return
        engine = open_engine(alias())
        if schema_editor.collect_sql:
            _write(schema_editor, migrate.sql(engine.dialect.name, self.before, self.revision, down=True))
        else:
            migrate.downgrade(engine, self.before)

    def describe(self) -> str:
        return f"Upgrade the tables of sagas to revision {self.revision}"


def _write(schema_editor: Any, sql: str) -> None:
    schema_editor.collected_sql.extend(line for line in sql.splitlines() if line.strip())
