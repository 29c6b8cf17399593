"""Sagas in a SQL database: PostgreSQL, MySQL or MariaDB, SQLite.

All safety rests on one statement, the compare-and-set in `save`: `UPDATE ... WHERE id = ? AND revision = ?`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    RowMapping,
    Select,
    bindparam,
    case,
    cast,
    insert,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Session, scoped_session

from sagas.checkpoints import (
    CLOCKS_DIFFER,
    FINISHED,
    DeadLetter,
    Direction,
    HistoryEntry,
    SagaRecord,
    SagaStatus,
    SagaSummary,
    StepRecord,
    StepStatus,
    step_name,
)
from sagas.commands import command
from sagas.durations import seconds
from sagas.errors import AmbiguousSaga, ConfigurationError, PayloadUnreadable, SagaNotFound, StoreUnavailable
from sagas.stores import bulk, gauges, lists, schema
from sagas.stores.codecs import PLAIN, Codec, input_of, result_of
from sagas.stores.commits import Commits, own_session
from sagas.stores.engines import READ_ONLY, database_now, forget_after_fork, open_engine, refused, translated
from sagas.stores.filters import EVERYTHING, AuditEntry, Filter, InFlight, StatusCount
from sagas.stores.transactions import UNHEARD, Lent, begin_if_late, check, let_go, limit_idle
from sagas.text import is_clean
from sagas.threads import THREADS

__all__ = ["Payloads", "SqlStore", "entry_of", "letter_of", "saga_of"]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Payloads:
    """The payloads of one saga as JSON. In the place of one that cannot be read is the error."""

    input: str | PayloadUnreadable
    results: Mapping[str, str | PayloadUnreadable]  #: by step


#: Seconds for which the difference between the database's clock and ours is believed.
_CLOCK_TRUST = 30.0


#: Ids that one query asks for: databases take no more parameters than so many.
_MOST_ASKED = 500


class SqlStore:
    """Keeps sagas in the database behind a SQLAlchemy URL, or behind an `Engine` of the caller's.

    The tables must be there: `celery -A yourapp sagas db upgrade`, or `SqlStore(url).upgrade()`.

    `timeout`: seconds after which a database that does not answer one of the engine's own statements counts as gone.
    It holds on PostgreSQL by a URL (psycopg), not for an `Engine`, and not for what a step asks of `step.session`.
    `codec`: what inputs and results are encrypted with: `sagas.stores.encryption.AesGcm`. Left out, they are stored as
    they are.

    >>> store = SqlStore("sqlite:///:memory:")
    >>> store.upgrade()
    >>> store.select()
    []
    """

    def __init__(self, bind: str | Engine, *, timeout: float | timedelta = 10.0, codec: Codec = PLAIN) -> None:
        self._timeout = seconds(timeout, "SqlStore: timeout", ConfigurationError)
        self.codec = codec
        self.engine = open_engine(bind) if isinstance(bind, str) else bind
        self.dialect = self.engine.dialect.name
        self._now = database_now(self.dialect)
        self._clock = _Clock()
        forget_after_fork(self.engine)
        self._looked_back: float | None = None  # the reading of the clock after which that was done

    def __repr__(self) -> str:
        return f"SqlStore({self.engine.url.render_as_string(hide_password=True)!r})"

    # -- time ---------------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        return self._clock.read(self._ask_time)

    def _ask_time(self) -> tuple[datetime, float]:
        """Return the database's time, and when that was by our monotonic clock."""
        query = select(self._now)

        def ask(connection: Connection) -> tuple[datetime, float]:
            before = time.monotonic()  # to connect may take long, and tells nothing about the age of the answer
            now = connection.execute(query).scalar_one()
            # The answer is as old as half the way there and back.
            return now, (before + time.monotonic()) / 2

        return self._read(ask)

    # -- one saga -----------------------------------------------------------------------------------------------

    def insert(
        self, record: SagaRecord, session: Session | scoped_session[Any] | Connection | None = None
    ) -> SagaRecord:
        if session is None:
            # Inserting it once more finds it there, so this may be repeated.
            return self._again_if_stale(lambda: self._insert_alone(record))
        own = own_session(session)
        with self._translated(limited=False):  # the caller's transaction may well wait for another's
            connection = own.connection() if isinstance(own, Session) else own
            self._check_dialect(connection)
            return self._insert(connection, record)

    def _check_dialect(self, connection: Connection) -> None:
        if connection.dialect.name != self.dialect:
            raise ConfigurationError(
                f"the session is on {connection.dialect.name}, the sagas are kept on {self.dialect}"
            )

    def _insert_alone(self, record: SagaRecord) -> SagaRecord:
        if self.dialect == "postgresql":
            with self._translated(), self.engine.connect() as connection:
                return self._insert(connection.execution_options(isolation_level="AUTOCOMMIT"), record)
        with self.writing() as connection:
            return self._insert(connection, record)

    def _insert(self, connection: Connection, record: SagaRecord) -> SagaRecord:
        dialect = _DIALECTS[self.dialect]
        inserted = connection.execute(dialect.insert_or_keep, self._saga_row(record)).rowcount
        if inserted == 1 and dialect.counts_inserts:
            return record
        # A locking read: the row that was in the way may be younger than this transaction's snapshot.
        query = select(schema.sagas).where(schema.sagas.c.name == record.name, schema.sagas.c.key == record.key)
        return self._saga_of(connection.execute(query.with_for_update(read=True)).mappings().one())

    @contextmanager
    def inserting(
        self, session: Session | scoped_session[Any] | Connection | None = None
    ) -> Iterator[Callable[[Sequence[SagaRecord]], Sequence[SagaRecord]]]:
        insert_or_keep = _DIALECTS[self.dialect].insert_or_keep
        with self._bulk_transaction(session) as connection:

            def insert_many(records: Sequence[SagaRecord]) -> Sequence[SagaRecord]:
                with self._translated(limited=session is None):
                    return bulk.insert_many(connection, insert_or_keep, records, self._saga_row, self._saga_of)

            yield insert_many

    @contextmanager
    def _bulk_transaction(self, session: Session | scoped_session[Any] | Connection | None) -> Iterator[Connection]:
        """Open a transaction for many sagas, or a savepoint in the caller's: an error must leave none of them."""
        if session is not None:
            own = own_session(session)
            with self._translated(limited=False):
                connection = own.connection() if isinstance(own, Session) else own
                self._check_dialect(connection)
                begin_if_late(connection)
            with own.begin_nested():
                # A session makes the savepoint only when it is asked for its connection.
                yield own.connection() if isinstance(own, Session) else own
            return
        self._ask_time()  # twice if need be: the pool may hold connections from before the database's restart
        with ExitStack() as ends:
            with self._translated():
                connection = ends.enter_context(self.engine.begin())
                if self._owns(connection):  # the caller's iterable may take its time between two chunks
                    ends.callback(limit_idle(connection, unheard=UNHEARD))
            yield connection
            with self._translated():
                check(connection, "start_many")
                ends.close()

    def _owns(self, connection: Connection) -> bool:  # noqa: ARG002
        """Tell whether a transaction of ours is no part of a larger one, whose pauses are somebody else's."""
        return True

    def _saga_row(self, record: SagaRecord) -> dict[str, Any]:
        row = _row(record, _SAGA_FIELDS)
        row["input"] = self.codec.encode(record.input, input_of(record.id))
        return row

    def _saga_of(self, row: RowMapping) -> SagaRecord:
        return saga_of(row, [], self.codec)

    def after_commit(
        self, session: Session | scoped_session[Any] | Connection | None, then: Callable[[], object]
    ) -> None:
        if session is None:
            then()
        else:
            Commits.of(own_session(session)).after(then)

    def load(self, saga_id: str) -> SagaRecord:
        return self._load(_BY_ID, {"id": saga_id}, f"there is no saga with the id {saga_id!r}")

    def find(self, name: str, key: str) -> SagaRecord:
        return self._load(_BY_KEY, {"name": name, "key": key}, f"there is no saga {name!r} with the key {key!r}")

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
            return saga_of(row, connection.execute(_STEPS, {"saga_id": row["id"]}).mappings().all(), self.codec)

        return self._read(read)

    def save(
        self,
        before: SagaRecord,
        after: SagaRecord,
        history: Sequence[HistoryEntry] = (),
        dead_letters: Sequence[DeadLetter] = (),
        outbox: Sequence[Mapping[str, Any]] = (),
        session: Session | None = None,
    ) -> SagaRecord | None:
        if session is not None:
            with self._translated():
                Lent.verified(session)
                self._free_if_lost(session.connection())
                return self._save(session.connection(), before, after, history, dead_letters, outbox)
        if self.dialect == "postgresql" and not (history or dead_letters or outbox):
            return self._save_at_once(before, after)
        with self.writing() as connection:
            return self._save(connection, before, after, history, dead_letters, outbox)

    def _save_at_once(self, before: SagaRecord, after: SagaRecord) -> SagaRecord | None:
        """Compare, set and write the steps in one statement: one round trip, where a transaction takes four."""
        after = replace(after, revision=before.revision + 1)
        rows = self._changed_steps(before, after)
        values = _compared_and_set(before, after)
        for number, row in enumerate(rows):
            values |= {f"{name}_{number}": value for name, value in row.items()}
        with self._translated(), self.engine.connect() as connection:
            autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
            return after if autocommit.execute(_save_at_once(len(rows)), values).rowcount > 0 else None

    def _save(
        self,
        connection: Connection,
        before: SagaRecord,
        after: SagaRecord,
        history: Sequence[HistoryEntry],
        dead_letters: Sequence[DeadLetter],
        outbox: Sequence[Mapping[str, Any]],
    ) -> SagaRecord | None:
        after = replace(after, revision=before.revision + 1)
        if connection.execute(_COMPARE_AND_SET, _compared_and_set(before, after)).rowcount != 1:
            return None
        if rows := self._changed_steps(before, after):
            connection.execute(_DIALECTS[self.dialect].upsert, rows)
        if history:
            connection.execute(
                insert(schema.history), [{"saga_id": after.id, **_row(entry, _HISTORY_FIELDS)} for entry in history]
            )
        for letter in dead_letters:
            connection.execute(_file(letter))
        if outbox:
            connection.execute(insert(schema.outbox), outbox)
        return after

    def _changed_steps(self, before: SagaRecord, after: SagaRecord) -> list[dict[str, Any]]:
        rows = []
        for name, step in after.steps.items():
            if step == before.steps.get(name):
                continue
            row = {"saga_id": after.id, **_row(step, _STEP_FIELDS)}
            if step.result is not None:
                row["result"] = self.codec.encode(step.result, result_of(after.id, name))
            rows.append(row)
        return rows

    def attempt(self, open_session: Callable[[], Session]) -> AbstractContextManager[object]:  # noqa: ARG002
        return nullcontext()

    @contextmanager
    def transaction(self, who: str = "a step", limit: float | None = None) -> Iterator[Session]:
        # What a step does wrong in here is the step's own failure, and stays what it is.
        session = Session(self.engine)
        try:
            with Lent(session, self.engine, who, most=limit) as lent:
                yield session
                with self._translated():
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
        if self._read(lambda connection: connection.execute(ids.limit(1)).first()) is None:
            return []
        with self.writing() as connection:
            found = list(connection.execute(ids.with_for_update(skip_locked=True)).scalars())
            if found:
                later = now + timedelta(seconds=lease)
                connection.execute(update(schema.sagas).where(schema.sagas.c.id.in_(found)).values(next_check_at=later))
            return found

    def summaries(self, saga_ids: Collection[str]) -> Sequence[SagaSummary]:
        return self.select(Filter(ids=tuple(saga_ids)), limit=len(saga_ids), with_steps=True)

    def statuses(self, saga_ids: Collection[str]) -> Mapping[str, SagaStatus]:
        sagas, ids = schema.sagas.c, [saga_id for saga_id in saga_ids if is_clean(saga_id)]
        found: dict[str, SagaStatus] = {}
        for first in range(0, len(ids), _MOST_ASKED):
            query = select(sagas.id, sagas.status).where(sagas.id.in_(ids[first : first + _MOST_ASKED]))
            found |= {row["id"]: SagaStatus(row["status"]) for row in self._rows(query)}
        return found

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
        with self.writing() as connection:
            connection.execute(_RESCHEDULE, rows)

    def postpone(self, saga_id: str, seconds: float, why: str) -> str | None:
        sagas = schema.sagas.c
        later = self.now() + timedelta(seconds=seconds)
        error = case((sagas.direction == Direction.FORWARD.value, why), else_=sagas.error)
        mine = sagas.id == saga_id, sagas.next_check_at.is_not(None)
        with self.writing() as connection:
            connection.execute(update(schema.sagas).where(*mine).values(next_check_at=later, error=error))
            name: str | None = connection.execute(select(sagas.name).where(sagas.id == saga_id)).scalar()
            return name

    def arrived(self, task: str, sent_at: datetime) -> None:
        older = schema.arrivals.c.task == task, schema.arrivals.c.sent_at < sent_at
        with self.writing() as connection:
            if not connection.execute(update(schema.arrivals).where(*older).values(sent_at=sent_at)).rowcount:
                connection.execute(_DIALECTS[self.dialect].insert_arrival, {"task": task, "sent_at": sent_at})

    def arrivals(self, tasks: Collection[str]) -> Mapping[str, datetime]:
        rows = self._rows(select(schema.arrivals).where(schema.arrivals.c.task.in_(tasks)))
        return {row["task"]: row["sent_at"] for row in rows}

    def _look_back(self, now: datetime) -> None:
        """Make due what was written in the future: the clock was set back since, and it must not wait for old times."""
        sagas = schema.sagas.c
        ahead = sagas.next_check_at > now, sagas.updated_at > now + CLOCKS_DIFFER
        if self._read(lambda connection: connection.execute(select(sagas.id).where(*ahead).limit(1)).first()):
            with self.writing() as connection:
                connection.execute(update(schema.sagas).where(*ahead).values(next_check_at=now))

    # -- reading ------------------------------------------------------------------------------------------------

    def history(self, saga_id: str) -> Sequence[HistoryEntry]:
        if not is_clean(saga_id):
            return []
        query = select(schema.history).where(schema.history.c.saga_id == saga_id).order_by(schema.history.c.id)
        return [entry_of(row) for row in self._rows(query)]

    def dead_letters(self, saga_id: str | None = None, *, unresolved: bool = True) -> Sequence[DeadLetter]:
        query = select(schema.dead_letters).order_by(schema.dead_letters.c.id)
        if saga_id is not None and not is_clean(saga_id):
            return []
        if saga_id is not None:
            query = query.where(schema.dead_letters.c.saga_id == saga_id)
        if unresolved:
            query = query.where(schema.dead_letters.c.resolved_at.is_(None))
        return [letter_of(row) for row in self._rows(query)]

    def select(
        self,
        where: Filter = EVERYTHING,
        *,
        limit: int = 100,
        before: str | None = None,
        after: str | None = None,
        with_steps: bool = False,
    ) -> Sequence[SagaSummary]:
        """Return the sagas that fit a filter, newest first, without their payloads.

        `before`: an id, for the next page. `after`: an id, or "" for the first page, to get them oldest first.
        `with_steps`: load their steps too; left out, the records have none.
        """
        rows = self._rows(lists.listed(where, limit=limit, before=before, after=after))
        steps: dict[str, list[RowMapping]] = {row["id"]: [] for row in rows}
        if with_steps and rows:
            for step in self._rows(lists.steps_of(list(steps))):
                steps[step["saga_id"]].append(step)
        return [summary_of(row, steps[row["id"]]) for row in rows]

    def summary(self, saga_id: str) -> SagaSummary:
        """Return a saga with its steps, without its payloads. Raises `SagaNotFound`."""
        rows = self._rows(lists.listed(Filter(ids=(saga_id,)), limit=1, before=None, after=None))
        if not rows:
            raise SagaNotFound(f"there is no saga with the id {saga_id!r}")
        return summary_of(rows[0], self._rows(lists.steps_of([saga_id])))

    def payloads(self, saga_id: str) -> Payloads:
        """Return the input of a saga and the results of its steps. Raises `SagaNotFound`."""
        sagas, steps = schema.sagas.c, schema.steps.c
        inputs = self._rows(select(sagas.input).where(sagas.id == saga_id)) if is_clean(saga_id) else []
        if not inputs:
            raise SagaNotFound(f"there is no saga with the id {saga_id!r}")
        results = self._rows(
            select(steps.node, steps.item, steps.result)
            .where(steps.saga_id == saga_id, steps.result.is_not(None))
            .order_by(steps.seq)
        )
        named = {step_name(row["node"], row["item"]): row["result"] for row in results}
        return Payloads(
            self._decoded(inputs[0]["input"], input_of(saga_id)),
            {name: self._decoded(result, result_of(saga_id, name)) for name, result in named.items()},
        )

    def _decoded(self, text: str, about: str) -> str | PayloadUnreadable:
        try:
            return self.codec.decode(text, about)
        except PayloadUnreadable as error:
            return error

    def count(self, where: Filter = EVERYTHING) -> int:
        """Return how many sagas fit a filter."""
        return int(self._scalar(lists.counted(where)))

    def tally(self, where: Filter = EVERYTHING) -> Sequence[StatusCount]:
        """Return how many of the sagas that fit a filter have each name and status."""
        rows = self._rows(lists.tallied(where))
        return [StatusCount(row["name"], SagaStatus(row["status"]), row["count"]) for row in rows]

    def audit(
        self,
        *,
        actor: str | None = None,
        name: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> Sequence[AuditEntry]:
        """Return what operators did, newest first: one of them, to sagas of one name, since a moment.

        `before`: the number of a deed, for the next page.
        """
        rows = self._rows(lists.audited(actor=actor, name=name, since=since, limit=limit, before=before))
        return [
            AuditEntry(row["id"], row["saga_id"], row["name"], row["key"], HistoryEntry(**_pick(row, _HISTORY_FIELDS)))
            for row in rows
        ]

    def ended(self, since: datetime, *, among: int = 1000) -> int:
        """Return how many sagas have come to their end since then, of the `among` that were started last of each end.

        Cheap, for a rate: it looks at no more rows than that, and so counts at most twice as many.
        """
        return sum(int(self._scalar(lists.ended(status, since, among))) for status in sorted(FINISHED))

    def in_flight(self) -> Sequence[InFlight]:
        """Return the unfinished sagas, by name, version, shape and status."""
        return [InFlight(**{**row, "status": SagaStatus(row["status"])}) for row in self._rows(lists.in_flight())]

    def standing_still(self) -> Mapping[str, int]:
        """Return how many sagas of each name stand still: nobody has begun their next step for a long time."""
        return {row["name"]: row["count"] for row in self._rows(gauges.standing_still())}

    def open_dead_letters(self) -> Mapping[str, int]:
        """Return how many steps of the sagas of each name wait for a person."""
        return {row["name"]: row["count"] for row in self._rows(gauges.open_letters())}

    def overdue(self) -> float:
        """Return for how many seconds the saga that waits longest has been due, and no recovery took it up."""
        first = self._read(lambda connection: connection.execute(gauges.first_due()).scalar_one())
        return 0.0 if first is None else max((self.now() - first).total_seconds(), 0.0)

    def resolve(self, text: str) -> SagaSummary:
        """Return the saga that an operator means by its id, the start of its id, or its key.

        It has its steps, and no payloads.

        Raises `SagaNotFound`; `AmbiguousSaga` where there are several.
        """
        few = 10
        queries = (
            lists.listed(Filter(ids=(text,)), limit=1, before=None, after=None),
            lists.with_prefix(text, few),
            lists.listed(Filter(key=text), limit=few, before=None, after=""),
        )
        rows = next((rows for query in queries if text and is_clean(text) and (rows := self._rows(query))), [])
        if not rows:
            raise SagaNotFound(f"there is no saga whose id begins with, or whose key is, {text!r}")
        if len(rows) > 1:
            found = ", ".join(f"{row['id']} ({row['name']}, key {row['key']})" for row in rows)
            more = " and more" if len(rows) == few else ""
            raise AmbiguousSaga(f"{text!r} may mean {found}{more}: give the whole id")
        return self.summary(rows[0]["id"])

    @property
    def how_to_upgrade(self) -> str:
        """The command that brings the tables to what this version needs."""
        return command("db", "upgrade")

    # -- the tables ---------------------------------------------------------------------------------------------

    def upgrade(self) -> None:
        """Bring the tables to what this version needs. Does nothing when they are."""
        from sagas.stores.migrate import upgrade  # noqa: PLC0415 - Alembic is slow to import and rarely needed

        with self._translated(limited=False):  # large tables take their time
            upgrade(self.engine)

    # -- connections --------------------------------------------------------------------------------------------

    def _rows(self, query: Select[Any]) -> Sequence[RowMapping]:
        return self._read(lambda connection: connection.execute(query).mappings().all())

    def _scalar(self, query: Select[Any]) -> Any:
        return self._read(lambda connection: connection.execute(query).scalar_one())

    def _read(self, ask: Callable[[Connection], T]) -> T:
        options: dict[str, Any] = {READ_ONLY: True}
        if self.dialect == "postgresql":  # single statements need no transaction: one round trip instead of three
            options["isolation_level"] = "AUTOCOMMIT"

        def attempt() -> T:
            with self._translated(), self.engine.connect() as connection:
                return ask(connection.execution_options(**options))

        return self._again_if_stale(attempt)

    @staticmethod
    def _again_if_stale(attempt: Callable[[], T]) -> T:
        """Try once more when the database does not answer: the pool may hold connections from before its restart."""
        try:
            return attempt()
        except StoreUnavailable:
            return attempt()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that ends with the block, and that the database ends if it hears no more of us."""
        with self._translated(), self.engine.begin() as connection:
            self._free_if_lost(connection)
            yield connection
            check(connection, "a transaction of the engine")

    def _free_if_lost(self, connection: Connection) -> None:
        """Have the database end this transaction if it hears no more of us: its locks would hold the others up."""
        if self.dialect == "postgresql":
            milliseconds = int(self._timeout * 1000)
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}")

    @contextmanager
    def _translated(self, *, limited: bool = True) -> Iterator[None]:
        with refused(), translated(self.engine, self._timeout if limited else None):
            yield


class _Clock:
    """The database's time, kept between looks by our monotonic clock: nobody's wall clock can step a lease."""

    def __init__(self) -> None:
        self._known: tuple[datetime, float] | None = None

    @property
    def asked_at(self) -> float | None:
        """When the database was last asked, by the monotonic clock."""
        return None if self._known is None else self._known[1]

    def read(self, ask: Callable[[], tuple[datetime, float]]) -> datetime:
        known = self._known
        if known is None or time.monotonic() - known[1] > _CLOCK_TRUST:
            known = self._known = ask()
        return known[0] + timedelta(seconds=time.monotonic() - known[1])


@dataclasses.dataclass(frozen=True)
class _Dialect:
    """What the databases do not say alike: the statements for which that matters."""

    insert_or_keep: Any
    insert_arrival: Any
    upsert: Any
    counts_inserts: bool = True  #: whether the row count tells an insert from a row that was kept


_STEP_KEY = [column.name for column in schema.steps.primary_key]


def _upsert(statement: Any) -> Any:
    return statement.on_conflict_do_update(index_elements=_STEP_KEY, set_=_not_key(statement.excluded))


def _mysql_upsert(statement: mysql.Insert) -> Any:
    return statement.on_duplicate_key_update(_not_key(statement.inserted))


def _not_key(new: Any) -> dict[str, Any]:
    return {column.name: new[column.name] for column in schema.steps.columns if column.name not in _STEP_KEY}


def _keep(statement: Any, *unique: str) -> Any:
    return statement.on_conflict_do_nothing(index_elements=unique)


# SQLAlchemy says how many rows an INSERT wrote only when it is asked; here that tells who won.
_COUNTED = {"preserve_rowcount": True}


_MYSQL = _Dialect(
    # Not INSERT IGNORE: that also cuts what is too long, and says nothing.
    insert_or_keep=mysql.insert(schema.sagas).on_duplicate_key_update(id=schema.sagas.c.id),
    insert_arrival=mysql.insert(schema.arrivals).on_duplicate_key_update(task=schema.arrivals.c.task),
    counts_inserts=False,
    upsert=_mysql_upsert(mysql.insert(schema.steps)),
)
_DIALECTS: Mapping[str, _Dialect] = {
    "postgresql": _Dialect(
        insert_or_keep=_keep(postgresql.insert(schema.sagas), "name", "key").execution_options(**_COUNTED),
        insert_arrival=_keep(postgresql.insert(schema.arrivals), "task"),
        upsert=_upsert(postgresql.insert(schema.steps)),
    ),
    "sqlite": _Dialect(
        insert_or_keep=_keep(sqlite.insert(schema.sagas), "name", "key").execution_options(**_COUNTED),
        insert_arrival=_keep(sqlite.insert(schema.arrivals), "task"),
        upsert=_upsert(sqlite.insert(schema.steps)),
    ),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}


def _fields(record: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(record))


_SAGA_FIELDS = tuple(name for name in _fields(SagaRecord) if name != "steps")
#: What a saga is started with, and keeps. Everything else may be changed by a save.
FIXED_FIELDS = frozenset(
    {"id", "name", "version", "key", "outline", "correlation_id", "input", "caused_by", "traceparent", "created_at"}
)
_MUTABLE_FIELDS = tuple(name for name in _SAGA_FIELDS if name not in FIXED_FIELDS)
_SUMMARY_FIELDS = tuple(name for name in _SAGA_FIELDS if name != "input")
_STEP_FIELDS = _fields(StepRecord)
_SEEN = tuple(name for name in _STEP_FIELDS if name != "result")
_HISTORY_FIELDS = _fields(HistoryEntry)
_LETTER_FIELDS = _fields(DeadLetter)


# Built once: SQLAlchemy takes longer to build a statement than to execute it.
_BY_ID = select(schema.sagas).where(schema.sagas.c.id == bindparam("id"))
_BY_KEY = select(schema.sagas).where(schema.sagas.c.name == bindparam("name"), schema.sagas.c.key == bindparam("key"))
_STEPS = select(schema.steps).where(schema.steps.c.saga_id == bindparam("saga_id")).order_by(schema.steps.c.seq)
#: The one statement that all safety rests on.
_COMPARE_AND_SET = (
    update(schema.sagas)
    .where(schema.sagas.c.id == bindparam("_id"), schema.sagas.c.revision == bindparam("_revision"))
    .values({name: bindparam(name, type_=schema.sagas.c[name].type) for name in _MUTABLE_FIELDS})
)

_RESCHEDULE = (
    update(schema.sagas)
    .where(schema.sagas.c.id == bindparam("_id"), schema.sagas.c.revision == bindparam("_revision"))
    .values(
        idle_checks=bindparam("_idle_checks"),
        next_check_at=bindparam("_next_check_at", type_=schema.sagas.c.next_check_at.type),
    )
)


def _compared_and_set(before: SagaRecord, after: SagaRecord) -> dict[str, Any]:
    return {"_id": before.id, "_revision": before.revision, **_row(after, _MUTABLE_FIELDS)}


@functools.cache
def _save_at_once(steps: int) -> Any:
    """Build PostgreSQL's statement that compares and sets, and writes so many steps if it won."""
    if not steps:
        return _COMPARE_AND_SET
    won = _COMPARE_AND_SET.returning(schema.sagas.c.id).cte("won")
    columns = list(schema.steps.c)
    rows = [
        select(*(cast(bindparam(f"{c.name}_{n}", type_=c.type), c.type) for c in columns)).select_from(won)
        for n in range(steps)
    ]
    source = rows[0] if steps == 1 else union_all(*rows)
    insertion = postgresql.insert(schema.steps).from_select(columns, source)
    return _upsert(insertion).add_cte(won).execution_options(**_COUNTED)


def _row(record: Any, fields: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(record, name) for name in fields}


def _pick(row: RowMapping, fields: Sequence[str]) -> dict[str, Any]:
    return {name: row[name] for name in fields}


def summary_of(row: RowMapping, step_rows: Iterable[RowMapping]) -> SagaSummary:
    """Return what lists show of the saga that the rows are of."""
    values = _pick(row, _SUMMARY_FIELDS)
    values["status"], values["direction"] = SagaStatus(row["status"]), Direction(row["direction"])
    steps = [StepRecord(**{**_pick(step, _SEEN), "status": StepStatus(step["status"])}) for step in step_rows]
    return SagaSummary(**values, steps={step.name: step for step in steps})


def saga_of(row: RowMapping, step_rows: Iterable[RowMapping], codec: Codec) -> SagaRecord:
    """Return the record that the rows of a saga and of its steps are."""
    values = _pick(row, _SAGA_FIELDS)
    values["status"], values["direction"] = SagaStatus(row["status"]), Direction(row["direction"])
    values["input"] = codec.decode(row["input"], input_of(row["id"]))
    steps = [_step(row["id"], step, codec) for step in step_rows]
    return SagaRecord(**values, steps={step.name: step for step in steps})


def _step(saga_id: str, row: RowMapping, codec: Codec) -> StepRecord:
    values = _pick(row, _STEP_FIELDS)
    values["status"] = StepStatus(row["status"])
    if row["result"] is not None:
        values["result"] = codec.decode(row["result"], result_of(saga_id, step_name(row["node"], row["item"])))
    return StepRecord(**values)


def entry_of(row: RowMapping) -> HistoryEntry:
    """Return the entry that a row of the history is."""
    return HistoryEntry(**_pick(row, _HISTORY_FIELDS))


def letter_of(row: RowMapping) -> DeadLetter:
    """Return the dead letter that a row is."""
    return DeadLetter(**{**_pick(row, _LETTER_FIELDS), "direction": Direction(row["direction"])})


def _file(letter: DeadLetter) -> Any:
    """Open a dead letter, or close the open ones of its step."""
    if letter.resolved_at is None:
        return insert(schema.dead_letters).values(_row(letter, _LETTER_FIELDS))
    table = schema.dead_letters.c
    return (
        update(schema.dead_letters)
        .where(table.saga_id == letter.saga_id, table.step == letter.step, table.resolved_at.is_(None))
        .values(_row(letter, ("resolved_at", "resolution", "reason", "actor")))
    )
