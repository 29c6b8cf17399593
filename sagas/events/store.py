"""The event store: streams of events that are the source of truth, and from which every state is rebuilt."""

from __future__ import annotations

import enum
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, bindparam, func, select
from sqlalchemy.orm import Session

from sagas.errors import (
    ConfigurationError,
    DefinitionError,
    InvalidMessage,
    UnknownType,
    UnknownVersion,
    WrongExpectedVersion,
)
from sagas.events.envelope import Envelope, new_id
from sagas.events.messages import Kind, MessageType, dump, type_of
from sagas.events.positions import writing_on
from sagas.events.snapshots import Loaded, Snapshots, SnapshotTable
from sagas.events.writing import Row
from sagas.stores.engines import READ_ONLY, translated
from sagas.stores.schema import stored_events, streams
from sagas.stores.sessions import AnySession, own_session
from sagas.stores.transactions import begun

__all__ = ["ANY", "NO_STREAM", "EventStore", "Loaded", "Snapshots", "StoredEvent", "fold"]

E_co = TypeVar("E_co", covariant=True)
S = TypeVar("S")

#: A row of the table of events, as SQLAlchemy returns it.
StoredRow = Any


class _Any(enum.Enum):
    ANY = "any version"


#: Expects any version of a stream, or none. For events that are valid whatever came before them.
ANY: Final = _Any.ANY

#: Expects that a stream has no events yet.
NO_STREAM: Final = 0

_LONGEST_STREAM = 200

#: A version that no stream reaches.
_LAST = 2**31 - 1

#: How many events are read at once when a whole stream is loaded.
_PAGE = 1000


class StoredEvent(msgspec.Struct, Generic[E_co], frozen=True, kw_only=True):
    """An event in the store, with its position."""

    position: int  #: among all events; it rises with every event, with gaps
    stream: str
    stream_version: int  #: within its stream; from 1, without gaps
    event_id: str
    event: E_co  #: the message, upcast to the version that this code reads
    metadata: dict[str, Any]  #: as in its envelope
    recorded_at: datetime  #: when it was stored, by the database's clock

    @property
    def correlation_id(self) -> str:
        """Identifies the flow that the event belongs to; the event's own id if none was set."""
        return self.metadata.get("correlationId") or self.event_id

    @property
    def causation_id(self) -> str | None:
        """The id of the message that led to the event."""
        return self.metadata.get("causationId")


def fold(initial: S, events: Iterable[Any], apply: Callable[[S, Any], S]) -> S:
    """Return the state after applying events in order: `apply(state, event)` for each.

    >>> fold(0, [3, 4], lambda total, event: total + event)
    7
    """
    return functools.reduce(apply, events, initial)


class EventStore:
    """Stores events in an engine's database. Events are appended and read, and never changed.

    `engine`: for PostgreSQL, MySQL, MariaDB or SQLite; `SqlStore.upgrade` creates the tables. `types`: every event type
    that may be in the store, in its newest version; upcasters convert older events when they are read.
    Raises `DefinitionError` for a command, or for two types that read the same events.

    >>> from sagas import SqlStore
    >>> from sagas.events import NO_STREAM, EventStore, event
    >>> @event("accounts.money.deposited")
    ... class MoneyDeposited:
    ...     cents: int
    >>> kept = SqlStore("sqlite://")
    >>> kept.upgrade()
    >>> store = EventStore(kept.engine, types=[MoneyDeposited])
    >>> store.append(None, "account-7", [MoneyDeposited(cents=500)], expected=NO_STREAM)
    1
    >>> store.load("account-7", lambda cents, event: cents + event.cents, 0)
    Loaded(state=500, version=1)
    """

    def __init__(self, engine: Engine, types: Iterable[type]) -> None:
        self.engine = engine
        self.types = tuple(type_of(cls) for cls in types)
        self._readable = _readable(self.types)
        self._writing = writing_on(engine)
        self._snapshots = SnapshotTable(engine, self._reading)
        # Single statements need no transaction on PostgreSQL: one round trip instead of three. SQLite need not lock.
        self._alone: dict[str, Any] = {READ_ONLY: True}
        if engine.dialect.name == "postgresql":
            self._alone["isolation_level"] = "AUTOCOMMIT"

    def __repr__(self) -> str:
        return f"EventStore({self.engine.url.render_as_string(hide_password=True)!r})"

    # -- writing ------------------------------------------------------------------------------------------------

    def append(
        self,
        session: AnySession | None,
        stream: str,
        events: Sequence[Any],
        *,
        expected: int | _Any,
        correlation_id: str | None = None,
        cause: Envelope | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> int:
        """Append events to a stream, all or none. Returns the stream's version, which is that of the last event.

        `session`: the transaction that they are part of; None: a separate one. `stream`: the object that the events
        belong to, such as "account-7". `expected`: the version that the stream must have, as returned by `load` or the
        last append; `NO_STREAM`, or `ANY`. `correlation_id`, `cause`, `metadata`: as in `Envelope.wrap`.

        An event in an `Envelope` keeps its id and metadata. If the stream already contains all of the envelopes, one
        after the other, nothing is written and the version after them is returned: appending envelopes can be repeated.

        Raises `WrongExpectedVersion` if the stream has another version, or contains some of the envelopes. Nothing was
        written then, and your transaction can continue. Raises `UnknownType`, `UnknownVersion` or `InvalidMessage` for
        events that could not be read back.
        """
        if not 0 < len(stream) <= _LONGEST_STREAM:
            raise InvalidMessage(f"stream {stream!r}: a name must have 1 to {_LONGEST_STREAM} characters")
        if not events:
            raise InvalidMessage(f"stream {stream!r}: there are no events to append")
        repeatable = any(isinstance(each, Envelope) for each in events)
        rows = self._rows(stream, events, correlation_id, cause, metadata)
        at = None if expected is ANY else expected
        with translated(self.engine):
            if session is None and not repeatable:
                version = self._writing.append_alone(self.engine, stream, at, rows)
                if version is None:
                    with self._reading() as connection:
                        raise self._conflict(connection, stream, expected)
                return version
            with self._in(session) as connection:
                if repeatable and (before := self._appended(connection, stream, rows)) is not None:
                    return before
                version = self._writing.append(connection, stream, at, rows)
                if version is None:
                    raise self._conflict(connection, stream, expected)
                return version

    def _rows(
        self,
        stream: str,
        events: Sequence[Any],
        correlation_id: str | None,
        cause: Envelope | None,
        metadata: dict[str, Any] | None,
    ) -> list[Row]:
        """Return the rows of events, which may be in envelopes. The metadata of the others differs only in their ids.

        So it is checked and encoded once.
        """
        rows: list[Row] = []
        first: Envelope | None = None
        about = ""
        for number, each in enumerate(events, 1):
            if isinstance(each, Envelope):
                self._check_readable(stream, each.event_type, each.version, each.kind)
                rows.append(_row(number, each))
                continue
            declared = type_of(each)
            self._check_readable(stream, declared.name, declared.version, declared.kind)
            if first is None:
                first = Envelope.wrap(
                    each, source=declared.context, correlation_id=correlation_id, cause=cause, metadata=metadata
                )
                rows.append(_row(number, first))
                about = rows[-1].metadata
            else:
                event_id = new_id()
                # Without a correlation id, the metadata contains the event's own id.
                own = about.replace(first.event_id, event_id)
                rows.append(Row(number, event_id, declared.name, declared.version, dump(each).decode(), own))
        return rows

    def _check_readable(self, stream: str, name: str, version: int, kind: Kind) -> None:
        if (name, version) not in self._readable:
            where = f"stream {stream!r}"
            if kind is not Kind.EVENT:
                raise InvalidMessage(f"{where}: {name!r} is a command. An event store keeps only events")
            raise self._unknown(name, version, where)

    @contextmanager
    def _in(self, session: AnySession | None) -> Iterator[Connection]:
        """Yield a connection in the caller's transaction, or in a new one."""
        if session is None:
            with begun(self.engine) as connection:
                yield connection
        else:
            own = own_session(session)
            connection = own.connection() if isinstance(own, Session) else own
            if connection.dialect.name != self.engine.dialect.name:
                raise ConfigurationError(
                    f"the session uses {connection.dialect.name}, but the events are on {self.engine.dialect.name}. "
                    "Pass a session of the database that EventStore(engine) uses"
                )
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with translated(self.engine), self.engine.connect() as connection:
            # Options of the connection rather than of a derived engine, with which SQLAlchemy is slower.
            yield connection.execution_options(**self._alone)

    def _appended(self, connection: Connection, stream: str, rows: Sequence[Row]) -> int | None:
        """Return the version that these events brought their stream to earlier; None if none of them is stored."""
        self._writing.lock(connection, stream)
        ids = [row.event_id for row in rows]
        found = {row.event_id: row for row in connection.execute(_STORED, {"ids": ids})}
        if not found:
            return None
        first = found.get(ids[0])
        if first is not None and all(
            (each := found.get(id_)) is not None
            and each.stream == stream
            and each.stream_version == first.stream_version + number
            for number, id_ in enumerate(ids)
        ):
            version: int = first.stream_version + len(ids) - 1
            return version
        where = ", ".join(f"{row.event_id}: {row.stream_version} of {row.stream!r}" for row in found.values())
        raise WrongExpectedVersion(
            f"stream {stream!r}: {len(found)} of these {len(ids)} events are already stored, but not from this append "
            f"({where}). Repeat an append with exactly its envelopes, and put other events into new envelopes",
            stream=stream,
        )

    def _conflict(self, connection: Connection, stream: str, expected: Any) -> WrongExpectedVersion:
        actual = connection.execute(_VERSION, {"stream": stream}).scalar_one_or_none() or 0
        return WrongExpectedVersion(
            f"stream {stream!r} was expected "
            f"{f'at version {expected}' if expected else 'not to exist'}, but is at version {actual}: another writer "
            "appended to it, or it is another stream. Nothing was written. Load the stream again, decide again, and "
            "append with the version that was loaded",
            stream=stream,
            expected=expected,
            actual=actual,
        )

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, stream: str, *, after: int = 0, limit: int | None = None) -> list[StoredEvent[Any]]:
        """Return the events of a stream in order, those after version `after`, at most `limit`.

        A stream that does not exist has none. Raises `UnknownType`, `UnknownVersion` or `InvalidMessage`, naming the
        event that this code cannot read.
        """
        query = _STREAM if limit is None else _STREAM.limit(bindparam("limit"))
        with self._reading() as connection:
            rows = connection.execute(query, {"stream": stream, "after": after, "limit": limit}).all()
        return [self.open(row) for row in rows]

    def read_all(self, *, after: int = 0, limit: int = _PAGE) -> list[StoredEvent[Any]]:
        """Return the events of all streams in the order of their positions, those after `after`, at most `limit`.

        A reader that continues from the last event's position misses none, whatever is written meanwhile: an event is
        returned only when no other can still appear before it. It may therefore have to wait for older transactions.
        Raises what `read` raises, and `ConfigurationError` on a PostgreSQL replica, which cannot guarantee this.
        """
        until = self.safe_position()
        with self._reading() as connection:
            rows = self.rows(connection, after=after, until=until, limit=limit)
        return [self.open(row) for row in rows]

    def safe_position(self) -> int | None:
        """Return the position up to which no event is still uncommitted; None if everything visible is safe."""
        with self._reading() as connection:
            return self._writing.safe_position(connection)

    def rows(self, connection: Connection, *, after: int, until: int | None, limit: int) -> Sequence[StoredRow]:
        """Return undecoded events in the order of their positions.

        `until`: the result of `safe_position` from before the connection began its transaction, or read its first row.
        """
        if until is None:
            return connection.execute(_ALL, {"after": after, "limit": limit}).all()
        return connection.execute(_ALL_UNTIL, {"after": after, "until": until, "limit": limit}).all()

    def open(self, row: StoredRow) -> StoredEvent[Any]:
        """Return the decoded event of a row. Raises what `read` raises."""
        return StoredEvent(
            position=row.position,
            stream=row.stream,
            stream_version=row.stream_version,
            event_id=row.event_id,
            event=self._message(row),
            metadata=_METADATA.decode(row.metadata),
            recorded_at=row.recorded_at,
        )

    def type_of(self, row: StoredRow) -> MessageType:
        """Return the type that reads a row. Raises `UnknownType` or `UnknownVersion`."""
        declared = self._readable.get((row.type, row.version))
        if declared is None:
            raise self._unknown(row.type, row.version, _where(row))
        return declared

    def _unknown(self, name: str, version: int, where: str) -> UnknownType | UnknownVersion:
        versions = sorted(known for other, known in self._readable if other == name)
        if versions:
            return UnknownVersion(
                f"{where}: no upcaster leads from version {version} of {name!r} to a version that this code reads. "
                f"Readable: {', '.join(map(str, versions))}. Add an upcaster, or deploy newer code"
            )
        return UnknownType(
            f"{where}: its type {name!r} is not among the store's types: "
            f"{', '.join(known.name for known in self.types) or 'none'}. Add it to EventStore(engine, types=[...])"
        )

    def _message(self, row: StoredRow) -> Any:
        declared = self.type_of(row)
        try:
            return declared.load(row.data, row.version)
        except InvalidMessage as error:
            raise InvalidMessage(f"{_where(row)}: {error}") from error

    # -- rebuilding states ----------------------------------------------------------------------------------------

    def load(
        self,
        stream: str,
        apply: Callable[[S, Any], S],
        initial: S,
        *,
        snapshots: Snapshots | None = None,
        at: datetime | None = None,
    ) -> Loaded[S]:
        """Rebuild the state of a stream from its events: `apply(state, event)` for each, starting with `initial`.

        `snapshots`: start with the latest snapshot of that kind, if there is one, and store a new one if that is
            `snapshots.every` or more events old. It reads committed data on a separate connection.
        `at`: return the state at that time, which needs a time zone: only events recorded by then count, by the
            database's clock. The version is the stream's version at that time.
        Raises what `read` raises, and `InvalidMessage` if the state is not of the type that `snapshots` names.
        """
        until = _LAST if at is None else self._version_at(stream, at)
        state, version = initial, 0
        if snapshots is not None:
            state, version = self._snapshots.find(stream, snapshots, initial, until)
        begun = version
        with self._reading() as connection:
            full = True
            while full:
                which = {"stream": stream, "after": version, "until": until, "limit": _PAGE}
                page = connection.execute(_CONTENT, which).all()
                state = fold(state, map(self._message, page), apply)
                version += len(page)
                full = len(page) == _PAGE
        if snapshots is not None and at is None and version - begun >= snapshots.every:
            self._snapshots.keep(stream, version, state, snapshots)
        return Loaded(state, version)

    def _version_at(self, stream: str, at: datetime) -> int:
        """Return the version of the last event before the first one recorded later."""
        if at.tzinfo is None:
            raise ValueError(f"load(at={at!r}): add a time zone: datetime(2026, 1, 31, 12, tzinfo=UTC)")
        with self._reading() as connection:
            later: int | None = connection.execute(_FIRST_AFTER, {"stream": stream, "at": at}).scalar()
        return _LAST if later is None else later - 1


def _readable(types: Iterable[MessageType]) -> dict[tuple[str, int], MessageType]:
    """Return the type that reads each version of each event name."""
    readable: dict[tuple[str, int], MessageType] = {}
    for declared in types:
        if declared.kind is not Kind.EVENT:
            raise DefinitionError(f"{declared.name!r} is a command. An event store keeps only events")
        for name, version in itertools.product(declared.names, declared.versions):
            other = readable.setdefault((name, version), declared)
            if other is not declared:
                raise DefinitionError(
                    f"version {version} of {name!r} can be read as {other.cls.__qualname__} and as "
                    f"{declared.cls.__qualname__}. Give the store only the newest, with upcasters from the others"
                )
    return readable


def _where(row: StoredRow) -> str:
    return f"event {row.event_id}, stream {row.stream!r} version {row.stream_version}"


def _row(number: int, envelope: Envelope) -> Row:
    return Row(
        number=number,
        event_id=envelope.event_id,
        type=envelope.event_type,
        version=envelope.version,
        data=bytes(envelope.data).decode(),
        metadata=msgspec.json.encode(envelope.metadata).decode(),
    )


_METADATA = msgspec.json.Decoder(dict[str, Any])

# Built once: SQLAlchemy takes longer to build a statement than to execute it.
_EVENTS = stored_events.c
_VERSION = select(streams.c.version).where(streams.c.name == bindparam("stream")).with_for_update(read=True)
_STORED = select(_EVENTS.event_id, _EVENTS.stream, _EVENTS.stream_version).where(
    _EVENTS.event_id.in_(bindparam("ids", expanding=True))
)
_FOLLOWING = (_EVENTS.stream == bindparam("stream"), _EVENTS.stream_version > bindparam("after"))
_STREAM = select(stored_events).where(*_FOLLOWING).order_by(_EVENTS.stream_version)
_CONTENT = (
    select(_EVENTS.stream, _EVENTS.stream_version, _EVENTS.event_id, _EVENTS.type, _EVENTS.version, _EVENTS.data)
    .where(*_FOLLOWING, _EVENTS.stream_version <= bindparam("until"))
    .order_by(_EVENTS.stream_version)
    .limit(bindparam("limit"))
)
_FIRST_AFTER = select(func.min(_EVENTS.stream_version)).where(
    _EVENTS.stream == bindparam("stream"), _EVENTS.recorded_at > bindparam("at")
)
_ALL = (
    select(stored_events)
    .where(_EVENTS.position > bindparam("after"))
    .order_by(_EVENTS.position)
    .limit(bindparam("limit"))
)
_ALL_UNTIL = _ALL.where(_EVENTS.position <= bindparam("until"))
