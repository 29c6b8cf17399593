"""The event store: streams of events that are the truth, and from which every state is made again."""

from __future__ import annotations

import enum
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sagas.errors import (
    ConfigurationError,
    DefinitionError,
    InvalidMessage,
    UnknownType,
    UnknownVersion,
    WrongExpectedVersion,
)
from sagas.events.envelope import Envelope
from sagas.events.messages import Kind, MessageType, type_of
from sagas.events.positions import Row, writing_on
from sagas.stores.engines import READ_ONLY, database_now, translated
from sagas.stores.schema import snapshots as snapshot_table
from sagas.stores.schema import stored_events, streams
from sagas.stores.sessions import AnySession, own_session
from sagas.stores.transactions import begun
from sagas.values import dump, load

__all__ = ["ANY", "NO_STREAM", "EventStore", "Loaded", "Snapshots", "StoredEvent", "fold"]

E_co = TypeVar("E_co", covariant=True)
S = TypeVar("S")

#: A row of the table of events, as SQLAlchemy returns it.
StoredRow = Any


class _Any(enum.Enum):
    ANY = "any version"


#: Expected of a stream: any version, or none. For events that are true whatever came before them.
ANY: Final = _Any.ANY

#: Expected of a stream: that it has no events yet.
NO_STREAM: Final = 0

_LONGEST_STREAM = 200

#: A version that no stream comes to.
_LAST = 2**31 - 1

#: Events that are read at once where all of a stream is wanted.
_PAGE = 1000


class StoredEvent(msgspec.Struct, Generic[E_co], frozen=True, kw_only=True):
    """An event as it is kept: where it stands, and what it says."""

    position: int  #: among all events; rises with every event, with gaps
    stream: str
    stream_version: int  #: in its stream; from 1, without gaps
    event_id: str
    event: E_co  #: the message, brought up to the version that is read here
    metadata: dict[str, Any]  #: as in its envelope
    recorded_at: datetime  #: when it was stored, by the clock of the database

    @property
    def correlation_id(self) -> str:
        """The name of the whole story that it is part of; its own id where nobody said so."""
        return self.metadata.get("correlationId") or self.event_id

    @property
    def causation_id(self) -> str | None:
        """The id of the message that it is the consequence of."""
        return self.metadata.get("causationId")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[S]):
    """What the events of a stream come to."""

    state: S
    version: int  #: of the stream; what to expect of it in the next append


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshots:
    """How often the state of a stream is kept beside its events, so that not all of them need be read.

    `type`: of the state; it must come back from JSON as what it was. `every`: events between two snapshots.
    `schema_version`: raise it whenever what `apply` makes of an event changes: snapshots of another are not read, and
        new ones are made from the events. A change of the fields of the type is noticed without it; raise it all the
        same while old and new code run side by side, so that they do not replace each other's snapshots.
    """

    type: Any
    every: int = 100
    schema_version: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise DefinitionError(f"snapshots every {self.every} events: it must be 1 or more")


def fold(initial: S, events: Iterable[Any], apply: Callable[[S, Any], S]) -> S:
    """Return what events make of a state: `apply(state, event)` for each, in order.

    >>> fold(0, [3, 4], lambda total, event: total + event)
    7
    """
    return functools.reduce(apply, events, initial)


class EventStore:
    """Keeps events in the database behind an engine. They are added and read, and never changed.

    `engine`: of PostgreSQL, MySQL, MariaDB or SQLite; the tables are those of `SqlStore.upgrade`. `types`: every event
    that may be in the store, in the newest version that this code knows; upcasters bring older ones up when read.
    Raises `DefinitionError` for a command among the types, or for two types that read the same.

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
        self._writing = writing_on(engine.dialect.name)
        self._now = database_now(engine.dialect.name)
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
        """Add events to the end of a stream, all or none. Returns the version of the stream, that of its last event.

        `session`: the transaction that they are part of; None: one of their own. `stream`: what they happened to, as
        "account-7". `expected`: the version that the stream must have, as `load` or the last append told; `NO_STREAM`,
        or `ANY`. `correlation_id`, `cause`, `metadata`: as in `Envelope.wrap`.

        An event that comes in an `Envelope` keeps its id and its metadata. If all of the envelopes are in the stream
        already, one behind the other, nothing is written, and the version that they brought it to is returned: an
        append of envelopes may be repeated.

        Raises `WrongExpectedVersion` when the stream is at another version, or has some of the envelopes already; in a
        transaction of yours nothing was written then, and it can go on. `UnknownType`, `UnknownVersion` or
        `InvalidMessage` for what could not be read again.
        """
        if not 0 < len(stream) <= _LONGEST_STREAM:
            raise InvalidMessage(f"stream {stream!r}: its name must have 1 to {_LONGEST_STREAM} characters")
        envelopes = [self._wrap(stream, each, correlation_id, cause, metadata) for each in events]
        if not envelopes:
            raise InvalidMessage(f"stream {stream!r}: there is no event to append")
        repeatable = any(isinstance(each, Envelope) for each in events)
        rows = [_row(number, envelope) for number, envelope in enumerate(envelopes, 1)]
        at_once = self._writing.at_once and not repeatable
        with translated(self.engine), self._in(session, at_once=at_once) as connection:
            if repeatable and (before := self._appended(connection, stream, rows)) is not None:
                return before
            version = self._writing.append(connection, stream, None if expected is ANY else expected, rows)
            if version is None:
                raise self._conflict(connection, stream, expected)
            return version

    def _wrap(
        self,
        stream: str,
        event: Any,
        correlation_id: str | None,
        cause: Envelope | None,
        metadata: dict[str, Any] | None,
    ) -> Envelope:
        envelope = (
            event
            if isinstance(event, Envelope)
            else Envelope.wrap(
                event,
                source=type_of(event).context,
                correlation_id=correlation_id,
                cause=cause,
                metadata=metadata,
            )
        )
        if (envelope.event_type, envelope.version) not in self._readable:
            where = f"stream {stream!r}"
            if envelope.kind is not Kind.EVENT:
                raise InvalidMessage(f"{where}: {envelope.event_type!r} is a command; only what happened is kept")
            raise self._unknown(envelope.event_type, envelope.version, where)
        return envelope

    @contextmanager
    def _in(self, session: AnySession | None, *, at_once: bool) -> Iterator[Connection]:
        """Give a connection in the caller's transaction, or in one of our own."""
        if session is None and at_once:
            with self._reading() as connection:
                yield connection
        elif session is None:
            with begun(self.engine) as connection:
                yield connection
        else:
            own = own_session(session)
            connection = own.connection() if isinstance(own, Session) else own
            if connection.dialect.name != self.engine.dialect.name:
                raise ConfigurationError(
                    f"the session is on {connection.dialect.name}, the events are kept on {self.engine.dialect.name}"
                )
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with translated(self.engine), self.engine.connect() as connection:
            # Of the connection, not of an engine made for it: SQLAlchemy is slower with those.
            yield connection.execution_options(**self._alone)

    def _appended(self, connection: Connection, stream: str, rows: Sequence[Row]) -> int | None:
        """Return the version that these events brought their stream to before; None when none of them is there."""
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
            f"stream {stream!r}: {len(found)} of these {len(ids)} events are stored already, but not as this append "
            f"({where}). Repeat an append with just the envelopes that it had; put other events into new ones",
            stream=stream,
        )

    def _conflict(self, connection: Connection, stream: str, expected: Any) -> WrongExpectedVersion:
        actual = connection.execute(_VERSION, {"stream": stream}).scalar_one_or_none() or 0
        return WrongExpectedVersion(
            f"stream {stream!r} was expected "
            f"{f'at version {expected}' if expected else 'not to be there yet'}, and is at {actual}: somebody else "
            "appended to it, or it is another stream. Nothing was written. Load it again, decide again and append with "
            "the version that was loaded",
            stream=stream,
            expected=expected,
            actual=actual,
        )

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, stream: str, *, after: int = 0, limit: int | None = None) -> list[StoredEvent[Any]]:
        """Return the events of a stream in order, those after version `after`, at most `limit`.

        A stream that is not there has none. Raises `UnknownType`, `UnknownVersion` or `InvalidMessage`, which say which
        event this code cannot read.
        """
        query = _STREAM if limit is None else _STREAM.limit(bindparam("limit"))
        with self._reading() as connection:
            rows = connection.execute(query, {"stream": stream, "after": after, "limit": limit}).all()
        return [self.open(row) for row in rows]

    def read_all(self, *, after: int = 0, limit: int = _PAGE) -> list[StoredEvent[Any]]:
        """Return the events of all streams in the order of their positions, those after `after`, at most `limit`.

        Whoever goes on from the position of the last event misses none, whatever is being written meanwhile: an event
        is shown only when none can come before it any more. It may thus have to wait for older transactions.
        Raises what `read` raises, and `ConfigurationError` on a replica of PostgreSQL, which cannot promise that.
        """
        until = self.safe_position()
        with self._reading() as connection:
            rows = self.rows(connection, after=after, until=until, limit=limit)
        return [self.open(row) for row in rows]

    def safe_position(self) -> int | None:
        """Return the position up to which nothing is still to come; None where that is so of all that can be seen."""
        with self._reading() as connection:
            return self._writing.safe_position(connection)

    def rows(self, connection: Connection, *, after: int, until: int | None, limit: int) -> Sequence[StoredRow]:
        """Return events unopened, in the order of their positions.

        `until`: what `safe_position` said before the connection began its transaction, or read its first row in it.
        """
        if until is None:
            return connection.execute(_ALL, {"after": after, "limit": limit}).all()
        return connection.execute(_ALL_UNTIL, {"after": after, "until": until, "limit": limit}).all()

    def open(self, row: StoredRow) -> StoredEvent[Any]:
        """Return the event of a row. Raises what `read` raises."""
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
        """Return the type that a row is read as. Raises `UnknownType` or `UnknownVersion`."""
        declared = self._readable.get((row.type, row.version))
        if declared is None:
            raise self._unknown(row.type, row.version, _where(row))
        return declared

    def _unknown(self, name: str, version: int, where: str) -> UnknownType | UnknownVersion:
        versions = sorted(known for other, known in self._readable if other == name)
        if versions:
            return UnknownVersion(
                f"{where}: there is no way from version {version} of {name!r} to one that is read here. Readable: "
                f"{', '.join(map(str, versions))}. Add an upcaster, or deploy code that knows it"
            )
        return UnknownType(
            f"{where}: its type {name!r} is not among those that the store was given: "
            f"{', '.join(known.name for known in self.types) or 'none'}. Add it to EventStore(engine, types=[...])"
        )

    def _message(self, row: StoredRow) -> Any:
        declared = self.type_of(row)
        try:
            return declared.load(row.data, row.version)
        except InvalidMessage as error:
            raise InvalidMessage(f"{_where(row)}: {error}") from error

    # -- making states --------------------------------------------------------------------------------------------

    def load(
        self,
        stream: str,
        apply: Callable[[S, Any], S],
        initial: S,
        *,
        snapshots: Snapshots | None = None,
        at: datetime | None = None,
    ) -> Loaded[S]:
        """Make the state of a stream from its events: `apply(state, event)` for each, beginning with `initial`.

        `snapshots`: begin with the last snapshot of that kind instead, if there is one, and keep the state as a new one
        when that is `snapshots.every` events old or more. It reads what is committed, on a connection of its own.
        `at`: the moment whose state is wanted, with a time zone: only the events that had been recorded by then count,
            by the clock of the database. The version is the one that the stream had then.
        Raises what `read` raises, and `InvalidMessage` when the state is not of the type that `snapshots` says.
        """
        until = _LAST if at is None else self._version_at(stream, at)
        state, version = initial, 0
        if snapshots is not None:
            state, version = self._snapshot(stream, snapshots, initial, until)
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
            self._keep(stream, version, state, snapshots)
        return Loaded(state, version)

    def _version_at(self, stream: str, at: datetime) -> int:
        """Return the version of the last event before the first that was recorded later."""
        if at.tzinfo is None:
            raise ValueError(f"load(at={at!r}): say in which time zone: datetime(2026, 1, 31, 12, tzinfo=UTC)")
        with self._reading() as connection:
            later: int | None = connection.execute(_FIRST_AFTER, {"stream": stream, "at": at}).scalar()
        return _LAST if later is None else later - 1

    def _snapshot(self, stream: str, kind: Snapshots, initial: S, until: int) -> tuple[S, int]:
        which = {"stream": stream, "schema_version": kind.schema_version}
        with self._reading() as connection:
            row = connection.execute(_SNAPSHOT, which).one_or_none()
        if row is None or row.stream_version > until:
            return initial, 0
        # Of another form, even one that can be read: a field that is new in it would have its default, and not what the
        # events make of it.
        if row.form != _form_of(kind.type):
            return initial, 0
        try:
            return load(row.state, kind.type), row.stream_version
        except (msgspec.ValidationError, ValueError):  # its type changed under it: the events are the truth
            return initial, 0

    def _keep(self, stream: str, version: int, state: Any, kind: Snapshots) -> None:
        try:
            kept = dump(state, kind.type)
        except TypeError as error:
            raise InvalidMessage(f"stream {stream!r}: its state cannot be kept as a snapshot: {error}") from error
        form = _form_of(kind.type)
        values = {"stream_version": version, "form": form, "state": kept, "recorded_at": self._now}
        which = {"stream": stream, "schema_version": kind.schema_version}
        older = update(snapshot_table).filter_by(**which).where(snapshot_table.c.stream_version <= version)
        # Where a newer one is in the way, it is the better one.
        with translated(self.engine), suppress(IntegrityError), begun(self.engine) as connection:
            if not connection.execute(older.values(values)).rowcount:
                connection.execute(insert(snapshot_table).values(which | values))


@functools.cache
def _form_of(type_: Any) -> str:
    """Return what changes when a type has other fields, of other types, or with other defaults."""
    described = msgspec.json.schema(type_, schema_hook=_describe_foreign)
    return hashlib.sha256(msgspec.json.encode(described, order="deterministic")).hexdigest()


def _describe_foreign(type_: Any) -> dict[str, Any]:
    described: dict[str, Any] = type_.model_json_schema()
    return described


def _readable(types: Iterable[MessageType]) -> dict[tuple[str, int], MessageType]:
    """Return what to read each version of each type as."""
    readable: dict[tuple[str, int], MessageType] = {}
    for declared in types:
        if declared.kind is not Kind.EVENT:
            raise DefinitionError(f"{declared.name!r} is a command; an event store keeps events, which have happened")
        for name, version in itertools.product(declared.names, declared.versions):
            other = readable.setdefault((name, version), declared)
            if other is not declared:
                raise DefinitionError(
                    f"version {version} of {name!r} can be read as {other.cls.__qualname__} and as "
                    f"{declared.cls.__qualname__}: give the store the newest of them, with upcasters from the others"
                )
    return readable


def _where(row: StoredRow) -> str:
    return f"event {row.event_id}, number {row.stream_version} of {row.stream!r}"


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
_SNAPSHOT = select(snapshot_table.c.stream_version, snapshot_table.c.form, snapshot_table.c.state).where(
    snapshot_table.c.stream == bindparam("stream"), snapshot_table.c.schema_version == bindparam("schema_version")
)
