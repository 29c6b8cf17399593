"""Projections: tables made of events, kept up to date, and made anew beside the old ones when their code changes."""

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

#: Takes an event, and a session in the transaction that also keeps the position: do not commit it.
ProjectionHandler = Callable[[StoredEvent[Any], Session], None]


class Projection:
    """What one version of a projection makes of events.

    `name`: the same for all versions. `version`: raise it when the functions make something else of the same events;
    it writes to tables, or rows, of its own. `clear`: empties those, so that it can be built again.

    Its functions are called for each event once, in order, in one transaction with the position, in the database of the
    events: what they write through their session is there exactly once. What they do elsewhere may be repeated.

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
                f"projection {name!r} version {version}: a name has 1 to 100 characters, and versions count from 1"
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
        """Declare the function for some events: it takes the stored event and a session.

        Events that no function is declared for are passed over. Raises `DuplicateName` for one that has a function.
        """

        def declare(function: F) -> F:
            for declared in map(type_of, events):
                if declared in self.handlers:
                    raise DuplicateName(f"projection {self}: {declared.name!r} has a function already")
                self.handlers[declared] = function
            return function

        return declare


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionState:
    """Where a version of a projection stands."""

    name: str
    version: int
    position: int  #: of the last event that it has seen
    live: bool  #: whether it is the version that is read
    failed_position: int | None  #: of the event that it stopped at
    error: str | None  #: what that event did to it
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
    def told(self) -> str:
        row = self.row
        told = (
            f"{type(self.error).__name__} at event {row.event_id}, {row.type} version {row.version}, number "
            f"{row.stream_version} of {row.stream!r}: {self.error}"
        )
        # What the databases can keep: an error may quote anything.
        return told.replace("\0", "\\0").encode(errors="replace").decode()


@dataclass
class _Batch:
    """How far one transaction came."""

    position: int
    seen: int = 0
    failure: _Failure | None = None


class Projections:
    """Runs projections, and promotes their versions.

    `store`: whose events they are made of, and in whose database they are. `projections`: every version that this code
    has. `batch`: how many events are handled in one transaction at most.
    Raises `DuplicateName` for two of one name and version, `DefinitionError` for an event that the store was not given.
    """

    def __init__(self, store: EventStore, projections: Iterable[Projection] = (), *, batch: int = 500) -> None:
        self.store = store
        self.batch = batch
        self.known: dict[tuple[str, int], Projection] = {}
        self._now = database_now(store.engine.dialect.name)
        self._registered: set[tuple[str, int]] = set()
        for projection in projections:
            if (projection.name, projection.version) in self.known:
                raise DuplicateName(f"there are two projections {projection}")
            for declared in projection.handlers:
                if declared not in store.types:
                    raise DefinitionError(
                        f"projection {projection} handles {declared.name!r} version {declared.version}, which its "
                        "store does not read: add it to EventStore(engine, types=[...])"
                    )
            self.known[projection.name, projection.version] = projection

    def get(self, name: str, version: int | None = None) -> Projection:
        """Return a projection of this code; without `version` the newest. Raises `DefinitionError` if there is none."""
        versions = [projection for projection in self.known.values() if projection.name == name]
        if version is not None:
            versions = [projection for projection in versions if projection.version == version]
        if not versions:
            wanted = name if version is None else f"{name} {version}"
            known = ", ".join(map(str, self.known.values())) or "none"
            raise DefinitionError(f"this code has no projection {wanted}; it has: {known}")
        return max(versions, key=lambda projection: projection.version)

    # -- reading ------------------------------------------------------------------------------------------------

    def live_version(self, name: str, session: Session | Connection | None = None) -> int | None:
        """Return the version of a projection that is to be read; None when it never ran.

        `session`: where you read its tables, so that a promotion cannot come between where it keeps to one snapshot.
        """
        query = select(live_projections.c.version).where(live_projections.c.name == name)
        if session is not None:
            return session.scalar(query)
        with reading(self.store.engine) as connection:
            return connection.scalar(query)

    def states(self) -> list[ProjectionState]:
        """Return where all versions in the database stand, those of other code too, by name and version."""
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
        """Keep all projections up to date until `stop` is set, looking for new events every `poll` seconds.

        Any number of processes may do so: one at a time is at work on a projection. One that stopped at an event waits
        for `resume`, and does not hold up the others.
        """
        while not stop.is_set():
            seen = 0
            for projection in self.known.values():
                try:
                    seen += self.advance(projection)
                except ProjectionStopped:
                    continue  # it was logged when it stopped, and is in the database to be seen
                except StoreUnavailable as error:
                    logger.warning("projection %s waits for its database: %s", projection, error)
                except Exception:
                    logger.exception("projection %s: its events could not be handled; it is tried again", projection)
                else:
                    continue
                stop.wait(_PAUSE)
            if not seen:
                stop.wait(poll)

    def advance(self, projection: Projection) -> int:
        """Handle the next events, `batch` at most, in one transaction. Returns how many it has seen.

        Returns 0 when there are none, and when another process is at work on it. Raises `ProjectionStopped` when it has
        stopped, or stops now: then all before the failing event is handled, and `states` tells what failed.
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
            # All of it was rolled back. A database in trouble may be over it the next time; anything else is final.
            if isinstance(batch.failure.error, StoreUnavailable) and attempt < _ATTEMPTS:
                attempt += 1
            else:
                failure, until = batch.failure, batch.failure.position - 1
        if failure is not None:
            logger.error("projection %s stopped: %s", projection, failure.told, exc_info=failure.error)
            raise _stopped(projection, failure.position, failure.told) from failure.error
        return batch.seen

    def catch_up(self, projection: Projection) -> int:
        """Handle all events that there are. Returns how many; raises what `advance` raises."""
        total = 0
        while seen := self.advance(projection):
            total += seen
        return total

    def register(self, projection: Projection) -> None:
        """Make the row of a projection, unless it is there. The first version of a name is live from the start."""
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
            connection.execute(statement)  # unless somebody else was quicker

    @contextmanager
    def _transaction(self, projection: Projection) -> Iterator[Lent]:
        """Give a session whose transaction its functions cannot end."""
        engine = self.store.engine
        with translated(engine), Session(engine) as session, Lent(session, engine, f"projection {projection}") as lent:
            yield lent

    def _take(self, session: Session, projection: Projection) -> int | None:
        """Keep all other processes from a projection until the transaction ends. None if one of them was first."""
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
        lent.session.flush()  # so that what it wrote fails here, and not at the end of the batch

    def _move(
        self, session: Session, projection: Projection, position: int, batch: _Batch, failure: _Failure | None
    ) -> None:
        if not batch.seen and failure is None:
            return
        values: dict[str, Any] = {"position": batch.position, "updated_at": self._now}
        if failure is not None:
            values |= {"failed_position": failure.position, "error": failure.told}
        # Where the database has no row locks this is what keeps two processes from handling the same events.
        mine = _of(update(projections), projection).where(projections.c.position == position)
        if session.connection().execute(mine.values(values)).rowcount != 1:
            raise StoreUnavailable(f"projection {projection}: another process was at work on it too; try again")

    # -- versions -----------------------------------------------------------------------------------------------

    def rebuild(self, projection: Projection) -> int:
        """Build a version that is not live from the first event on. Returns how many events it has seen.

        The live one stays as it is, and is read, until `promote`. Raises `NotAllowed` for the live version, and for one
        that has begun and has no `clear`; and what `advance` raises.
        """
        self.register(projection)
        if self.live_version(projection.name) == projection.version:
            raise NotAllowed(
                f"projection {projection} is live: it cannot be built anew under its readers. Give the new code a "
                f"higher version, with tables of its own, rebuild that and promote it"
            )
        with self._transaction(projection) as lent:
            session = lent.session
            row = session.execute(_row(projection).with_for_update()).one()
            if row.position and projection.clear is None:
                raise NotAllowed(
                    f"projection {projection} has seen events up to position {row.position}, and does not know how to "
                    "empty its tables: Projection(..., clear=function). To go on from there, run it instead"
                )
            if row.position and projection.clear is not None:
                projection.clear(session)
            lent.verify()
            afresh = {"position": 0, "failed_position": None, "error": None, "updated_at": self._now}
            session.execute(_of(update(projections), projection).values(afresh))
            lent.commit()
        return self.catch_up(projection)

    def promote(self, projection: Projection) -> int | None:
        """Let a version be the one that is read. Returns the one that was, or None if it was this one already.

        It first catches up, so that readers never see less than they saw before. Raises what `advance` raises.
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
            # Both stand still from here on. What the live one has seen is there to be seen.
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
        self.advance(projection)  # stops there, and says so
        raise StoreUnavailable(f"projection {projection}: an event could not be handled; try again") from (
            batch.failure.error
        )

    def resume(self, projection: Projection) -> None:
        """Let a projection that stopped try the failing event again, once its code is mended."""
        with translated(self.store.engine), begun(self.store.engine) as connection:
            connection.execute(_of(update(projections), projection).values(failed_position=None, error=None))


#: Seconds before a database in trouble is asked again.
_PAUSE = 1.0

#: How often an event is tried that a database in trouble did not let pass.
_ATTEMPTS = 3


def _of(statement: W, projection: Projection) -> W:
    return statement.where(projections.c.name == projection.name, projections.c.version == projection.version)


def _row(projection: Projection) -> Any:
    return _of(select(projections), projection)


def _stopped(projection: Projection, position: int, told: str) -> ProjectionStopped:
    return ProjectionStopped(
        f"projection {projection} stopped at position {position}: {told}. All before it is handled. Mend the code, and "
        f"resume it: sagas events projection resume {projection.name} --version {projection.version}"
    )
