"""A schema registry in a SQL database: PostgreSQL, MySQL, MariaDB or SQLite."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from sqlalchemy import Engine, RowMapping, insert, select
from sqlalchemy.exc import IntegrityError

from sagas.events.schema_registry.compatibility import Mode
from sagas.events.schema_registry.registry import JSON, Format, Schema, SchemaRegistry, canonical
from sagas.stores.engines import reading, translated
from sagas.stores.schema import event_schemas

__all__ = ["SqlSchemaRegistry"]

_COLUMNS = [event_schemas.c[name] for name in ("subject", "revision", "format", "definition", "owner", "fingerprint")]


class SqlSchemaRegistry(SchemaRegistry):
    """Stores schemas in the table `events_schema`.

    `engine`: a database whose tables `celery -A yourapp sagas db upgrade` has created. The other parameters are as for
    `SchemaRegistry`. All methods raise `StoreUnavailable` if the database does not answer.

    >>> from sagas import SqlStore
    >>> store = SqlStore("sqlite://")
    >>> store.upgrade()
    >>> registry = SqlSchemaRegistry(store.engine)
    >>> registry.register("orders.order.placed.v1", {"type": "object"}, "orders")
    1
    >>> registry.subjects()
    ['orders.order.placed.v1']
    """

    def __init__(
        self, engine: Engine, *, mode: Mode = Mode.FULL_TRANSITIVE, formats: Iterable[Format] = (JSON,)
    ) -> None:
        super().__init__(mode=mode, formats=formats)
        self.engine = engine

    def __repr__(self) -> str:
        return f"SqlSchemaRegistry({self.engine.url.render_as_string(hide_password=True)!r})"

    def revisions(self, subject: str) -> Sequence[Schema]:
        query = select(*_COLUMNS).where(event_schemas.c.subject == subject).order_by(event_schemas.c.revision)
        with reading(self.engine) as connection:
            return [_schema(row) for row in connection.execute(query).mappings()]

    def subjects(self) -> Sequence[str]:
        query = select(event_schemas.c.subject).distinct()
        with reading(self.engine) as connection:
            return sorted(connection.execute(query).scalars())

    def _write(self, schema: Schema, before: Sequence[Schema]) -> int | None:  # noqa: ARG002
        row = {column.name: getattr(schema, column.name) for column in _COLUMNS}
        row |= {"definition": canonical(schema.definition), "created_at": datetime.now(UTC)}
        try:
            with translated(self.engine), self.engine.begin() as connection:
                connection.execute(insert(event_schemas), row)
        except IntegrityError:  # the primary key: another process has just used this number
            return None
        return schema.revision


def _schema(row: RowMapping) -> Schema:
    return Schema(**{**row, "definition": json.loads(row["definition"])})
