"""Sagas in a SQL database: PostgreSQL, MySQL or MariaDB, SQLite.

All safety rests on one statement, the compare-and-set in `save`: `UPDATE ... WHERE id = ? AND revision = ?`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import datetime, timedelta
from typing import Any, ClassVar, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, RowMapping, Select, case, insert, select, update
from sqlalchemy.orm import Session

from sagas.checkpoints import (
    CLOCKS_DIFFER,
    DeadLetter,
    Direction,
    HistoryEntry,
    SagaRecord,
    SagaStatus,
    SagaSummary,
    replace,
    tells_parent,
)
from sagas.commands import command
from sagas.durations import seconds
from sagas.errors import ConfigurationError, KeyConflict, SagaError, SagaNotFound
from sagas.gathering import Gathering
from sagas.stores import bulk, schema, statements
from sagas.stores.clock import DatabaseClock
from sagas.stores.codecs import PLAIN, STEP_PAYLOADS, Codec, input_of
from sagas.stores.commits import Commits
from sagas.stores.connections import Connections
from sagas.stores.engines import open_engine, spare
from sagas.stores.filters import Filter
from sagas.stores.items import SqlItems
from sagas.stores.postgres import FastPath
from sagas.stores.queries import SqlQueries
from sagas.stores.rows import HISTORY_FIELDS, SAGA_FIELDS, STEP_FIELDS, row_of, saga_of
from sagas.stores.sessions import AnySession, own_session
from sagas.stores.transactions import UNHEARD, Lent, begin_if_late, check, let_go, limit_idle
from sagas.text import is_clean
from sagas.threads import THREADS

__all__ = ["SqlStore"]

T = TypeVar("T")

#: Saves that one transaction of SQLite has at most.
_MOST_TOGETHER = 100


class _Save(NamedTuple):
    """What `save` was given."""

    before: SagaRecord
    after: SagaRecord
    history: Sequence[HistoryEntry]
    dead_letters: Sequence[DeadLetter]
    outbox: Sequence[Mapping[str, Any]]
    children: Sequence[SagaRecord]


class _Alone(enum.Enum):
    """What a caller is told who has to save by itself."""

    ALONE = "alone"


_ALONE = _Alone.ALONE

#: Ids that one query asks for: databases take no more parameters than so many.
_MOST_ASKED = 500


class SqlStore:
    """Keeps sagas in the database behind a SQLAlchemy URL, or behind an `Engine` of the caller's.

    The tables must be there: `celery -A yourapp sagas db upgrade`, or `SqlStore(url).upgrade()`.
    What people want to know of the sagas, `queries` answers: lists, counts, histories, dead letters.

    `timeout`: seconds after which a database that does not answer one of the engine's own statements counts as gone.
    It holds on PostgreSQL by a URL (psycopg), not for an `Engine`, and not for what a step asks of `step.session`.
    `codec`: what inputs and results are encrypted with: `sagas.stores.encryption.AesGcm`. Left out, they are stored as
    they are.

    >>> store = SqlStore("sqlite:///:memory:")
    >>> store.upgrade()
    >>> store.queries.select()
    []
    """

    #: What opens the connections; a framework's store has its own.
    connections_type: ClassVar[type[Connections]] = Connections

    def __init__(self, bind: str | Engine, *, timeout: float | timedelta = 10.0, codec: Codec = PLAIN) -> None:
        limit = seconds(timeout, "SqlStore: timeout", ConfigurationError)
        self.codec = codec
        self.engine = open_engine(bind) if isinstance(bind, str) else bind
        self.connections = self.connections_type(self.engine, limit)
        self.dialect = self.connections.dialect
        self._clock = DatabaseClock(self.connections)
        self.queries = SqlQueries(self.connections, codec, self._clock)
        self._fast = FastPath.of(self.connections, limit)
        self.items = SqlItems(self.connections, codec, self._clock, self._fast)
        self._together = Gathering(self._save_together, most=_MOST_TOGETHER) if _is_file(self.connections) else None
        self._looked_back: float | None = None  # the reading of the clock after which that was done

    def __repr__(self) -> str:
        return f"SqlStore({self.engine.url.render_as_string(hide_password=True)!r})"

    @property
    def shares_commits(self) -> bool:
        return self._fast is not None or self._together is not None

    def now(self) -> datetime:
        return self._clock.now()

    # -- one saga -----------------------------------------------------------------------------------------------

    def insert(self, record: SagaRecord, session: AnySession | None = None) -> SagaRecord:
        if session is None:
            # Inserting it once more finds it there, so this may be repeated.
            return self.connections.again_if_stale(lambda: self._insert_alone(record))
        with self._within(session) as connection:
            return self._insert(connection, record)

    @contextmanager
    def _within(self, session: AnySession) -> Iterator[Connection]:
        """Give the connection of a transaction of the caller's, or of a step's."""
        own = own_session(session)
        lent = isinstance(own, Session) and Lent.verified(own)
        with self.connections.translated(limited=lent):  # the caller's transaction may well wait for another's
            connection = own.connection() if isinstance(own, Session) else own
            self._check_dialect(connection)
            yield connection

    def _check_dialect(self, connection: Connection) -> None:
        if connection.dialect.name != self.dialect:
            raise ConfigurationError(
                f"the session is on {connection.dialect.name}, the sagas are kept on {self.dialect}"
            )

    def _insert_alone(self, record: SagaRecord) -> SagaRecord:
        if self._fast is not None and self._fast.insert(self._saga_row(record)):
            return record
        if self.dialect == "postgresql":
            with self.connections.autocommitting() as connection:
                return self._insert(connection, record)
        with self.connections.writing() as connection:
            return self._insert(connection, record)

    def _insert(self, connection: Connection, record: SagaRecord) -> SagaRecord:
        dialect = statements.DIALECTS[self.dialect]
        inserted = connection.execute(dialect.insert_or_keep, self._saga_row(record)).rowcount
        if inserted == 1 and dialect.counts_inserts:
            return record
        # A locking read: the row that was in the way may be younger than this transaction's snapshot.
        query = select(schema.sagas).where(schema.sagas.c.name == record.name, schema.sagas.c.key == record.key)
        return self._saga_of(connection.execute(query.with_for_update(read=True)).mappings().one())

    @contextmanager
    def inserting(
        self, session: AnySession | None = None
    ) -> Iterator[Callable[[Sequence[SagaRecord]], Sequence[SagaRecord]]]:
        insert_or_keep = statements.DIALECTS[self.dialect].insert_or_keep
        with self._bulk_transaction(session) as connection:

            def insert_many(records: Sequence[SagaRecord]) -> Sequence[SagaRecord]:
                with self.connections.translated(limited=session is None):
                    return bulk.insert_many(connection, insert_or_keep, records, self._saga_row, self._saga_of)

            yield insert_many

    @contextmanager
    def _bulk_transaction(self, session: AnySession | None) -> Iterator[Connection]:
        """Open a transaction for many sagas, or a savepoint in the caller's: an error must leave none of them."""
        if session is not None:
            own = own_session(session)
            with self.connections.translated(limited=False):
                connection = own.connection() if isinstance(own, Session) else own
                self._check_dialect(connection)
                begin_if_late(connection)
            with own.begin_nested():
                # A session makes the savepoint only when it is asked for its connection.
                yield own.connection() if isinstance(own, Session) else own
            return
        self._clock.ask()  # twice if need be: the pool may hold connections from before the database's restart
        with ExitStack() as ends:
            with self.connections.translated():
                connection = ends.enter_context(self.engine.connect())
                ends.enter_context(spare(connection).begin())
                if self.connections.owns(connection):  # the caller's iterable may take its time between two chunks
                    ends.callback(limit_idle(connection, unheard=UNHEARD))
            yield connection
            with self.connections.translated():
                check(connection, "start_many")
                ends.close()

    def _saga_row(self, record: SagaRecord) -> dict[str, Any]:
        row = row_of(record, SAGA_FIELDS)
        row["input"] = self.codec.encode(record.input, input_of(record.id))
        return row

    def _saga_of(self, row: RowMapping) -> SagaRecord:
        return saga_of(row, [], self.codec)

    def after_commit(self, session: AnySession | None, then: Callable[[], object]) -> None:
        if session is None:
            then()
        else:
            Commits.of(own_session(session)).after(then)

    def load(self, saga_id: str, session: AnySession | None = None) -> SagaRecord:
        if session is not None:
            return self._locked(saga_id, session)
        if self._fast is not None and is_clean(saga_id) and (found := self._fast.load(saga_id)) is not None:
            return saga_of(*found, self.codec)
        return self._load(statements.BY_ID, {"id": saga_id}, f"there is no saga with the id {saga_id!r}")

    def _locked(self, saga_id: str, session: AnySession) -> SagaRecord:
        # Locking reads: others see what was committed last, also where the transaction has an older snapshot.
        with self._within(session) as connection:
            row = connection.execute(statements.BY_ID.with_for_update(), {"id": saga_id}).mappings().one_or_none()
            if row is None:
                raise SagaNotFound(f"there is no saga with the id {saga_id!r}")
            steps = connection.execute(statements.STEPS.with_for_update(), {"saga_id": saga_id}).mappings().all()
            return saga_of(row, steps, self.codec)

    def find(self, name: str, key: str) -> SagaRecord:
        return self._load(
            statements.BY_KEY, {"name": name, "key": key}, f"there is no saga {name!r} with the key {key!r}"
        )

    def _load(self, query: Select[Any], values: Mapping[str, str], missing: str) -> SagaRecord:
        if not all(map(is_clean, values.values())):
            raise SagaNotFound(missing)

        # The saga before its steps: if somebody saves in between, the revision is the older one and the next
        # compare-and-set is lost, never won by mistake.
        def read(connection: Connection) -> SagaRecord:
            row = connection.execute(query, values).mappings().one_or_none()
            if row is None:
                raise SagaNotFound(missing)
            if row["revision"] == 1:  # as it was inserted: no step has begun
                return saga_of(row, [], self.codec)
            return saga_of(
                row, connection.execute(statements.STEPS, {"saga_id": row["id"]}).mappings().all(), self.codec
            )

        return self.connections.read(read)

    def save(
        self,
        before: SagaRecord,
        after: SagaRecord,
        history: Sequence[HistoryEntry] = (),
        dead_letters: Sequence[DeadLetter] = (),
        outbox: Sequence[Mapping[str, Any]] = (),
        session: AnySession | None = None,
        children: Sequence[SagaRecord] = (),
    ) -> SagaRecord | None:
        if session is not None:
            with self._within(session) as connection:
                self.connections.free_if_lost(connection)
                return self._save(connection, before, after, history, dead_letters, outbox, children)
        change = _Save(before, after, history, dead_letters, outbox, children)
        goes_along = history or dead_letters or children or _wakes_parent(before, after)
        if self.dialect == "postgresql" and not goes_along and before.outline == after.outline:
            return self._save_at_once(change)
        if self._together is not None and (saved := self._together.ask(change)) is not _ALONE:
            return saved
        with self.connections.writing() as connection:
            return self._save(connection, *change)

    def _save_together(self, saves: Sequence[_Save]) -> Sequence[SagaRecord | _Alone | None]:
        """Save what several threads save at this moment in one transaction: SQLite has one writer."""
        if len(saves) == 1:
            return [_ALONE]
        try:
            with self.connections.writing() as connection:
                return [self._save(connection, *save) for save in saves]
        except (SagaError, UnicodeError):  # one of them cannot be stored, and each has to hear which
            return [_ALONE] * len(saves)

    def _save_at_once(self, change: _Save) -> SagaRecord | None:
        """Compare, set and write the steps in one statement: one round trip, where a transaction takes four."""
        before = change.before
        after = replace(change.after, revision=before.revision + 1)
        rows = self._changed_steps(before, after)
        values = statements.compared_and_set(before, after)
        if self._fast is not None and self._fast.save(values, rows, change.outbox):
            return after
        if change.outbox:
            with self.connections.writing() as connection:
                return self._save(connection, *change)
        values = statements.parameters_of(values, rows)
        with self.connections.autocommitting() as connection:
            return after if connection.execute(statements.save_at_once(len(rows)), values).rowcount > 0 else None

    def _save(
        self,
        connection: Connection,
        before: SagaRecord,
        after: SagaRecord,
        history: Sequence[HistoryEntry],
        dead_letters: Sequence[DeadLetter],
        outbox: Sequence[Mapping[str, Any]],
        children: Sequence[SagaRecord],
    ) -> SagaRecord | None:
        after = replace(after, revision=before.revision + 1)
        if connection.execute(statements.COMPARE_AND_SET, statements.compared_and_set(before, after)).rowcount != 1:
            return None
        if rows := self._changed_steps(before, after):
            connection.execute(statements.DIALECTS[self.dialect].upsert, rows)
        if before.outline != after.outline:
            connection.execute(statements.TAKE_OUTLINE, {"_id": after.id, "_outline": after.outline})
        if history:
            connection.execute(
                insert(schema.history), [{"saga_id": after.id, **row_of(entry, HISTORY_FIELDS)} for entry in history]
            )
        for letter in dead_letters:
            connection.execute(statements.file_letter(letter))
        if outbox:
            connection.execute(insert(schema.outbox), outbox)
        if children:
            self._insert_children(connection, after, children)
        if _wakes_parent(before, after):
            self._wake_parent(connection, after)
        return after

    def _insert_children(self, connection: Connection, after: SagaRecord, children: Sequence[SagaRecord]) -> None:
        if children[0].parent_item is not None:
            self.items.insert(connection, children, self._saga_row, self._saga_of)
            return
        for child in children:
            if (there := self._insert(connection, child)).id != child.id:
                raise KeyConflict(
                    f"saga {child.name!r}: the key {child.key!r} of the child of {after.name!r} ({after.id}), step "
                    f"{child.parent_step!r}, belongs to {there.id}: a child never takes over a saga that was there"
                )

    @staticmethod
    def _wake_parent(connection: Connection, after: SagaRecord) -> None:
        """Have the step of a parent look that waits for this saga."""
        values = {"_parent": after.parent_id, "_child": after.id, "_now": after.updated_at}
        connection.execute(statements.WAKE_PARENT, values)
        connection.execute(statements.WAKE_PARENT_STEP, values)

    def _changed_steps(self, before: SagaRecord, after: SagaRecord) -> list[dict[str, Any]]:
        rows = []
        for name, step in after.steps.items():
            if step == before.steps.get(name):
                continue
            row = {"saga_id": after.id, **row_of(step, STEP_FIELDS)}
            for column, about in STEP_PAYLOADS.items():
                if row[column] is not None:
                    row[column] = self.codec.encode(row[column], about(after.id, name))
            rows.append(row)
        return rows

    def attempt(self, open_session: Callable[[], Session]) -> AbstractContextManager[object]:  # noqa: ARG002
        return nullcontext()

    def session_of_step(self) -> Session:
        """Return the session that becomes the `step.session` of an attempt."""
        return Session(self.engine)

    @contextmanager
    def transaction(self, who: str = "a step", limit: float | None = None) -> Iterator[Session]:
        # What a step does wrong in here is the step's own failure, and stays what it is.
        session = self.session_of_step()
        try:
            with Lent(session, self.engine, who, most=limit) as lent:
                yield session
                with self.connections.translated():
                    lent.commit()
        finally:
            let_go(session)

    # -- recovery -----------------------------------------------------------------------------------------------

    def due(self, limit: int, lease: float) -> Sequence[str]:
        now = self.now()
        if self._looked_back != self._clock.asked_at:
            self._look_back(now)
            self._looked_back = self._clock.asked_at
        ids = (
            select(schema.sagas.c.id)
            .where(schema.sagas.c.next_check_at <= now)
            .order_by(schema.sagas.c.next_check_at)
            .limit(limit)
        )
        # Most looks find nothing: those cost one read, and on SQLite no lock.
        if self.connections.read(lambda connection: connection.execute(ids.limit(1)).first()) is None:
            return []
        with self.connections.writing() as connection:
            found = list(connection.execute(ids.with_for_update(skip_locked=True)).scalars())
            if found:
                later = now + timedelta(seconds=lease)
                connection.execute(update(schema.sagas).where(schema.sagas.c.id.in_(found)).values(next_check_at=later))
            return found

    def summaries(self, saga_ids: Collection[str]) -> Sequence[SagaSummary]:
        return self.queries.select(Filter(ids=tuple(saga_ids)), limit=len(saga_ids), with_steps=True)

    def statuses(self, saga_ids: Collection[str]) -> Mapping[str, SagaStatus]:
        sagas, ids = schema.sagas.c, [saga_id for saga_id in saga_ids if is_clean(saga_id)]
        found: dict[str, SagaStatus] = {}
        for first in range(0, len(ids), _MOST_ASKED):
            query = select(sagas.id, sagas.status).where(sagas.id.in_(ids[first : first + _MOST_ASKED]))
            found |= {row["id"]: SagaStatus(row["status"]) for row in self.connections.rows(query)}
        return found

    def family(self, root_id: str) -> Sequence[SagaSummary]:
        return self.queries.family(root_id)

    async def to_thread(self, function: Callable[[], T]) -> T:
        return await THREADS.call(function)

    def reschedule(self, sagas: Collection[SagaSummary]) -> None:
        # In one order: two that lock the same rows must not wait for each other.
        rows = [
            {
                "_id": saga.id,
                "_revision": saga.revision,
                "_idle_checks": saga.idle_checks,
                "_next_check_at": saga.next_check_at,
            }
            for saga in sorted(sagas, key=lambda saga: saga.id)
        ]
        with self.connections.writing() as connection:
            connection.execute(statements.RESCHEDULE, rows)

    def postpone(self, saga_id: str, seconds: float, why: str) -> str | None:
        sagas = schema.sagas.c
        later = self.now() + timedelta(seconds=seconds)
        error = case((sagas.direction == Direction.FORWARD.value, why), else_=sagas.error)
        mine = sagas.id == saga_id, sagas.next_check_at.is_not(None)
        with self.connections.writing() as connection:
            connection.execute(update(schema.sagas).where(*mine).values(next_check_at=later, error=error))
            name: str | None = connection.execute(select(sagas.name).where(sagas.id == saga_id)).scalar()
            return name

    def arrived(self, task: str, sent_at: datetime) -> None:
        older = schema.arrivals.c.task == task, schema.arrivals.c.sent_at < sent_at
        with self.connections.writing() as connection:
            if not connection.execute(update(schema.arrivals).where(*older).values(sent_at=sent_at)).rowcount:
                connection.execute(statements.DIALECTS[self.dialect].insert_arrival, {"task": task, "sent_at": sent_at})

    def arrivals(self, tasks: Collection[str]) -> Mapping[str, datetime]:
        rows = self.connections.rows(select(schema.arrivals).where(schema.arrivals.c.task.in_(tasks)))
        return {row["task"]: row["sent_at"] for row in rows}

    def _look_back(self, now: datetime) -> None:
        """Make due what was written in the future: the clock was set back since, and it must not wait for old times."""
        sagas = schema.sagas.c
        ahead = sagas.next_check_at > now, sagas.updated_at > now + CLOCKS_DIFFER
        if self.connections.read(
            lambda connection: connection.execute(select(sagas.id).where(*ahead).limit(1)).first()
        ):
            with self.connections.writing() as connection:
                connection.execute(update(schema.sagas).where(*ahead).values(next_check_at=now))

    # -- the tables ---------------------------------------------------------------------------------------------

    @property
    def how_to_upgrade(self) -> str:
        return command("db", "upgrade")

    def upgrade(self) -> None:
        """Bring the tables to what this version needs. Does nothing when they are."""
        from sagas.stores.migrate import upgrade  # noqa: PLC0415 - Alembic is slow to import and rarely needed

        with self.connections.translated(limited=False):  # large tables take their time
            upgrade(self.engine)


def _wakes_parent(before: SagaRecord, after: SagaRecord) -> bool:
    """Tell whether a save has the step of a parent look. Items of an `Each` are counted: each alone wakes nobody."""
    return tells_parent(before, after) and after.parent_item is None


def _is_file(connections: Connections) -> bool:
    """Tell whether all threads share one SQLite file. One in memory is its thread's; a framework has its own rules."""
    in_memory = connections.engine.url.database in (None, "", ":memory:")
    return connections.are_shared and connections.dialect == "sqlite" and not in_memory
