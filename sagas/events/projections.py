"""Projections: tables derived from events, kept up to date, and rebuilt beside the old ones when their code changes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, Update, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sagas.endings import ends_process
from sagas.errors import DefinitionError, DuplicateName, NotAllowed, ProjectionStopped, StoreUnavailable
from sagas.events.messages import MessageType, type_of
from sagas.events.store import EventStore, StoredEvent, StoredRow
from sagas.stores.engines import database_now, reading, translated
from sagas.stores.schema import live_projections, projections
from sagas.stores.transactions import Lent, begun

__all__ = ["Projection", "ProjectionState", "Projections"]

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., None])
W = TypeVar("W", Select[Any], Update)

#: Takes an event, and a session in the transaction that also stores the position. It must not commit the session.
ProjectionHandler = Callable[[StoredEvent[Any], Session], None]


class Projection:
    """What one version of a projection derives from events.

    `name`: the same for all versions. `version`: raise it when the functions derive something else from the same
    events; each version writes to its own tables or rows. `clear`: empties those, so that the version can be rebuilt.

    Its functions are called once for each event, in order, in one transaction with the position, in the database of
    the events: their writes through the session happen exactly once. Other side effects may be repeated.

    >>> from sagas.events import Projection, StoredEvent, event
    >>> @event("accounts.money.deposited")
    ... class MoneyDeposited:
    ...     cents: int
    >>> balances = Projection("balances", version=1)
    >>> @balances.on(MoneyDeposited)
    ... def add(stored: StoredEvent[MoneyDeposited], session: Session) -> None:
    ...     print(stored.stream, "has", stored.event.cents, "more")
    """

    def __init__(self, name: str, *, version: int = 1, clear: Callable[[Session], object] | None = None) -> None:
        if not 0 < len(name) <= 100 or version < 1:
            raise DefinitionError(
                f"projection {name!r} version {version}: a name has 1 to 100 characters, and versions start at 1"
            )
        self.name = name
        self.version = version
        self.clear = clear
        self.handlers: dict[MessageType, ProjectionHandler] = {}

    def __repr__(self) -> str:
        return f"<Projection {self}>"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def on(self, *events: type) -> Callable[[F], F]:
        """Register the function for some event types. It takes the stored event and a session.

        Events without a function are skipped. Raises `DuplicateName` if an event type already has a function.
        """

        def declare(function: F) -> F:
            for declared in map(type_of, events):
                if declared in self.handlers:
                    raise DuplicateName(f"projection {self}: {declared.name!r} already has a function")
                self.handlers[declared] = function
            return function

        return declare


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionState:
    """The state of one version of a projection."""

    name: str
    version: int
    position: int  #: of the last processed event
    live: bool  #: whether readers use this version
    failed_position: int | None  #: of the event it stopped at
    error: str | None  #: the error that this event caused
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class _Failure:
    """An event that could not be handled."""

    row: StoredRow
    error: BaseException

    @property
    def position(self) -> int:
        position: int = self.row.position
        return position

    @property
    def text(self) -> str:
        row = self.row
        text = (
            f"{type(self.error).__name__} at event {row.event_id}, {row.type} version {row.version}, stream "
            f"{row.stream!r} version {row.stream_version}: {self.error}"
        )
        # Only what databases can store: an error may quote anything.
        return text.replace("\0", "\\0").encode(errors="replace").decode()


@dataclass
class _Batch:
    """The progress of one transaction."""

    position: int
    seen: int = 0
    failure: _Failure | None = None


class Projections:
    """Runs projections and promotes their versions.

    `store`: the event store that they derive from; they are in its database. `projections`: every version in this
    code. `batch`: the most events in one transaction.
    Raises `DuplicateName` for two projections with the same name and version, and `DefinitionError` for an event type
    that the store does not know.
    """

    def __init__(self, store: EventStore, projections: Iterable[Projection] = (), *, batch: int = 500) -> None:
        self.store = store
        self.batch = batch
        self.known: dict[tuple[str, int], Projection] = {}
        self._now = database_now(store.engine.dialect.name)
        self._registered: set[tuple[str, int]] = set()
        for projection in projections:
            if (projection.name, projection.version) in self.known:
                raise DuplicateName(f"there are two projections {projection}. Raise the version of one of them")
            for declared in projection.handlers:
                if declared not in store.types:
                    raise DefinitionError(
                        f"projection {projection} handles {declared.name!r} version {declared.version}, which its "
                        "store does not know. Add it to EventStore(engine, types=[...])"
                    )
            self.known[projection.name, projection.version] = projection

    def get(self, name: str, version: int | None = None) -> Projection:
        """Return a projection of this code, by default its newest version. Raises `DefinitionError` if none exists."""
        versions = [projection for projection in self.known.values() if projection.name == name]
        if version is not None:
            versions = [projection for projection in versions if projection.version == version]
        if not versions:
            wanted = name if version is None else f"{name} {version}"
            known = ", ".join(map(str, self.known.values())) or "none"
            raise DefinitionError(f"this code has no projection {wanted}. It has: {known}")
        return max(versions, key=lambda projection: projection.version)

    # -- reading ------------------------------------------------------------------------------------------------

    def live_version(self, name: str, session: Session | Connection | None = None) -> int | None:
        """Return the version of a projection that readers use; None if it never ran.

        `session`: the session you read the tables with. If it uses one snapshot, no promotion can happen in between.
        """
        query = select(live_projections.c.version).where(live_projections.c.name == name)
        if session is not None:
            return session.scalar(query)
        with reading(self.store.engine) as connection:
            return connection.scalar(query)

    def states(self) -> list[ProjectionState]:
        """Return the state of all versions in the database, including those of other code, by name and version."""
        live = live_projections.c
        query = (
            select(projections, live.version.label("live"))
            .outerjoin(live_projections, live.name == projections.c.name)
            .order_by(projections.c.name, projections.c.version)
        )
        with reading(self.store.engine) as connection:
            rows = connection.execute(query).mappings().all()
        return [ProjectionState(**{**row, "live": row["live"] == row["version"]}) for row in rows]

    # -- running ------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event, *, poll: float = 0.2) -> None:
        """Keep all projections up to date until `stop` is set, polling for new events every `poll` seconds.

        Any number of processes may do so: one at a time advances a projection. A projection that stopped at an event
        waits for `resume` and does not delay the others.
        """
        while not stop.is_set():
            seen = 0
            for projection in self.known.values():
                try:
                    seen += self.advance(projection)
                except ProjectionStopped:
                    continue  # it was logged when it stopped, and `states` shows it
                except StoreUnavailable as error:
                    logger.warning("projection %s is waiting for its database: %s", projection, error)
                except Exception:
                    logger.exception("projection %s failed to process its events; it will retry", projection)
                else:
                    continue
                stop.wait(_PAUSE)
            if not seen:
                stop.wait(poll)

    def advance(self, projection: Projection) -> int:
        """Process the next events, at most `batch`, in one transaction. Returns how many.

        Returns 0 if there are none, or if another process is advancing the projection. Raises `ProjectionStopped` if it
        has stopped or stops now: everything before the failing event is then processed, and `states` shows the error.
        """
        self.register(projection)
        until = self.store.safe_position()
        attempt, failure = 1, None
        while True:
            with self._transaction(projection) as lent:
                position = self._take(lent.session, projection)
                if position is None:
                    return 0
                batch = self._handle(projection, lent, position, until)
                if batch.failure is None:
                    lent.verify()
                    self._move(lent.session, projection, position, batch, failure)
                    lent.commit()
            if batch.failure is None:
                break
            # Everything was rolled back. A database in trouble may have recovered next time; any other error is final.
            if isinstance(batch.failure.error, StoreUnavailable) and attempt < _ATTEMPTS:
                attempt += 1
            else:
                failure, until = batch.failure, batch.failure.position - 1
        if failure is not None:
            logger.error("projection %s stopped: %s", projection, failure.text, exc_info=failure.error)
            raise _stopped(projection, failure.position, failure.text) from failure.error
        return batch.seen

    def catch_up(self, projection: Projection) -> int:
        """Process all available events. Returns how many; raises what `advance` raises."""
        total = 0
        while seen := self.advance(projection):
            total += seen
        return total

    def register(self, projection: Projection) -> None:
        """Create the row of a projection unless it exists. The first version of a name is live from the start."""
        key = (projection.name, projection.version)
        if key in self._registered:
            return
        name = {"name": projection.name}
        version = {"version": projection.version}
        if not any((state.name, state.version) == key for state in self.states()):
            self._insert(insert(projections).values(**name, **version, position=0, updated_at=self._now))
        if self.live_version(projection.name) is None:
            self._insert(insert(live_projections).values(**name, **version, since=self._now))
        self._registered.add(key)

    def _insert(self, statement: Any) -> None:
        engine = self.store.engine
        with translated(engine), suppress(IntegrityError), begun(engine) as connection:
            connection.execute(statement)  # unless another process was faster

    @contextmanager
    def _transaction(self, projection: Projection) -> Iterator[Lent]:
        """Yield a session whose transaction the projection's functions cannot end."""
        engine = self.store.engine
        with translated(engine), Session(engine) as session, Lent(session, engine, f"projection {projection}") as lent:
            yield lent

    def _take(self, session: Session, projection: Projection) -> int | None:
        """Lock a projection until the transaction ends and return its position. None if another process holds it."""
        row = session.execute(_row(projection).with_for_update(skip_locked=True)).one_or_none()
        if row is None:
            return None
        if row.error is not None:
            raise _stopped(projection, row.failed_position, row.error)
        position: int = row.position
        return position

    def _handle(self, projection: Projection, lent: Lent, position: int, until: int | None) -> _Batch:
        batch = _Batch(position)
        rows = self.store.rows(lent.session.connection(), after=position, until=until, limit=self.batch)
        for row in rows:
            try:
                with translated(self.store.engine):
                    self._handle_one(projection, lent, row)
            except BaseException as error:
                if ends_process(error):
                    raise
                batch.failure = _Failure(row, error)
                break
            batch.position = row.position
            batch.seen += 1
        return batch

    def _handle_one(self, projection: Projection, lent: Lent, row: StoredRow) -> None:
        function = projection.handlers.get(self.store.type_of(row))
        if function is None:
            return
        function(self.store.open(row), lent.session)
        lent.check()
        lent.session.flush()  # so that invalid writes fail here rather than at the end of the batch

    def _move(
        self, session: Session, projection: Projection, position: int, batch: _Batch, failure: _Failure | None
    ) -> None:
        if not batch.seen and failure is None:
            return
        values: dict[str, Any] = {"position": batch.position, "updated_at": self._now}
        if failure is not None:
            values |= {"failed_position": failure.position, "error": failure.text}
        # On databases without row locks, this keeps two processes from processing the same events.
        mine = _of(update(projections), projection).where(projections.c.position == position)
        if session.connection().execute(mine.values(values)).rowcount != 1:
            raise StoreUnavailable(f"projection {projection}: another process advanced it at the same time. Try again")

    # -- versions -----------------------------------------------------------------------------------------------

    def rebuild(self, projection: Projection) -> int:
        """Build a version that is not live from the first event on. Returns how many events it has processed.

        Readers keep using the live version until `promote`. Raises `NotAllowed` for the live version, and for a version
        that has started and has no `clear`; and what `advance` raises.
        """
        self.register(projection)
        if self.live_version(projection.name) == projection.version:
            raise NotAllowed(
                f"projection {projection} is live and cannot be rebuilt while it is read. Give the new code a higher "
                f"version with its own tables, rebuild that version and promote it"
            )
        with self._transaction(projection) as lent:
            session = lent.session
            row = session.execute(_row(projection).with_for_update()).one()
            if row.position and projection.clear is None:
                raise NotAllowed(
                    f"projection {projection} has processed events up to position {row.position}, and has no function "
                    "that empties its tables: Projection(..., clear=function). To continue from there, run it instead"
                )
            if row.position and projection.clear is not None:
                projection.clear(session)
            lent.verify()
            afresh = {"position": 0, "failed_position": None, "error": None, "updated_at": self._now}
            session.execute(_of(update(projections), projection).values(afresh))
            lent.commit()
        return self.catch_up(projection)

    def promote(self, projection: Projection) -> int | None:
        """Make a version live. Returns the previously live version, or None if this version was already live.

        The version first catches up, so that readers never see less than before. Raises what `advance` raises.
        """
        self.catch_up(projection)
        name = projection.name
        with self._transaction(projection) as lent:
            session = lent.session
            live: int = session.execute(
                select(live_projections.c.version).filter_by(name=name).with_for_update()
            ).scalar_one()
            if live == projection.version:
                return None
            # Both are locked from here on. Everything that the live version has processed is visible.
            rows = session.execute(
                select(projections)
                .where(projections.c.name == name, projections.c.version.in_([live, projection.version]))
                .order_by(projections.c.version)
                .with_for_update()
            )
            positions = {row.version: row.position for row in rows}
            batch = _Batch(positions[projection.version])
            while batch.position < positions[live] and batch.failure is None:
                position = batch.position
                batch = self._handle(projection, lent, position, positions[live])
                if not batch.seen:
                    break
                self._move(session, projection, position, batch, None)
            if batch.failure is None:
                lent.verify()
                now = {"version": projection.version, "since": self._now}
                session.execute(update(live_projections).filter_by(name=name).values(now))
                lent.commit()
                return live
        self.advance(projection)  # stops at the event, and reports it
        raise StoreUnavailable(f"projection {projection}: an event could not be processed. Try again") from (
            batch.failure.error
        )

    def resume(self, projection: Projection) -> None:
        """Let a stopped projection retry the failing event, after its code is fixed."""
        with translated(self.store.engine), begun(self.store.engine) as connection:
            connection.execute(_of(update(projections), projection).values(failed_position=None, error=None))


#: Seconds to wait before using a database in trouble again.
_PAUSE = 1.0

#: How often an event is tried while the database is in trouble.
_ATTEMPTS = 3


def _of(statement: W, projection: Projection) -> W:
    return statement.where(projections.c.name == projection.name, projections.c.version == projection.version)


def _row(projection: Projection) -> Any:
    return _of(select(projections), projection)


def _stopped(projection: Projection, position: int, failure: str) -> ProjectionStopped:
    return ProjectionStopped(
        f"projection {projection} stopped at position {position}: {failure}. Everything before it is processed. Fix "
        f"the code and resume it: sagas events projection resume {projection.name} --version {projection.version}"
    )
