"""States that are stored beside their events, so that loading need not read all events."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from sagas.errors import DefinitionError, InvalidMessage
from sagas.stores.engines import database_now, translated
from sagas.stores.schema import snapshots as snapshot_table
from sagas.stores.transactions import begun
from sagas.values import dump, load

__all__ = ["Loaded", "SnapshotTable", "Snapshots"]

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[S]):
    """The state of a stream."""

    state: S
    version: int  #: of the stream; the version to expect in the next append


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshots:
    """How often a stream's state is stored beside its events, so that loading need not read all of them.

    `type`: of the state; it must survive a round trip through JSON. `every`: events between two snapshots.
    `schema_version`: raise it whenever `apply` handles an event differently: snapshots of other versions are ignored,
        and new ones are made from the events. A change of the type's fields is detected without it. Raise it anyway
        while old and new code run side by side, so that they do not replace each other's snapshots.
    """

    type: Any
    every: int = 100
    schema_version: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise DefinitionError(f"Snapshots(every={self.every}): it must be 1 or more")


class SnapshotTable:
    """The stored snapshots. `reading`: opens a connection for a single statement."""

    def __init__(self, engine: Engine, reading: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._engine = engine
        self._reading = reading
        self._now = database_now(engine.dialect.name)

    def find(self, stream: str, kind: Snapshots, initial: S, until: int) -> tuple[S, int]:
        """Return the latest state that is stored and not newer than `until`, with its version; or `initial` and 0."""
        which = {"stream": stream, "schema_version": kind.schema_version}
        with self._reading() as connection:
            row = connection.execute(_SNAPSHOT, which).one_or_none()
        if row is None or row.stream_version > until:
            return initial, 0
        # A snapshot of another form is ignored even if it can be read: a new field would have its default rather than
        # the value that follows from the events.
        if row.form != _form_of(kind.type):
            return initial, 0
        try:
            return load(row.state, kind.type), row.stream_version
        except (msgspec.ValidationError, ValueError):  # its type has changed: the events are the truth
            return initial, 0

    def keep(self, stream: str, version: int, state: Any, kind: Snapshots) -> None:
        """Store a state, unless a newer one is stored."""
        try:
            kept = dump(state, kind.type)
        except TypeError as error:
            raise InvalidMessage(f"stream {stream!r}: its state cannot be stored as a snapshot: {error}") from error
        form = _form_of(kind.type)
        values = {"stream_version": version, "form": form, "state": kept, "recorded_at": self._now}
        which = {"stream": stream, "schema_version": kind.schema_version}
        older = update(snapshot_table).filter_by(**which).where(snapshot_table.c.stream_version <= version)
        # If a newer snapshot exists, it is the better one.
        with translated(self._engine), suppress(IntegrityError), begun(self._engine) as connection:
            if not connection.execute(older.values(values)).rowcount:
                connection.execute(insert(snapshot_table).values(which | values))


@functools.cache
def _form_of(type_: Any) -> str:
    """Return a hash that changes with a type's fields, their types and their defaults."""
    described = msgspec.json.schema(type_, schema_hook=_describe_foreign)
    return hashlib.sha256(msgspec.json.encode(described, order="deterministic")).hexdigest()


def _describe_foreign(type_: Any) -> dict[str, Any]:
    described: dict[str, Any] = type_.model_json_schema()
    return described


_SNAPSHOT = select(snapshot_table.c.stream_version, snapshot_table.c.form, snapshot_table.c.state).where(
    snapshot_table.c.stream == bindparam("stream"), snapshot_table.c.schema_version == bindparam("schema_version")
)
