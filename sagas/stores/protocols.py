"""What the engine, and what operators, ask of a store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol, TypeVar, runtime_checkable

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sagas.checkpoints import DeadLetter, HistoryEntry, Items, SagaRecord, SagaStatus, SagaSummary
from sagas.errors import ConfigurationError
from sagas.stores.codecs import Codec
from sagas.stores.connections import Connections
from sagas.stores.filters import EVERYTHING, AuditEntry, Filter, InFlight, Payloads, Standing, StatusCount
from sagas.stores.sessions import AnySession

__all__ = ["CheckpointStore", "ItemStore", "OperatorStore", "Queries", "SagaLog", "operator_store"]

T = TypeVar("T")


class SagaLog(Protocol):
    """Reads what a store keeps beside the records of sagas."""

    def history(self, saga_id: str) -> Sequence[HistoryEntry]:
        """Return what happened to a saga beside its plain way forward, oldest first."""

    def dead_letters(self, saga_id: str | None = None, *, unresolved: bool = True) -> Sequence[DeadLetter]:
        """Return the steps that wait for a person, oldest first; with `unresolved=False` the resolved ones too."""


class ItemStore(Protocol):
    """The items of `Each` nodes: child sagas by number. Nobody reads all of them at once."""

    def count(self, parent_id: str, step: str) -> Items:
        """Return how the items of a step stand."""

    def failed(self, parent_id: str, step: str) -> Mapping[int, str] | None:
        """Return the ids of the items that have failed, by number. None where the step has made no items yet."""

    def begin_next(self, ended: SagaRecord, patience: float) -> SagaRecord | None:
        """Begin the next item in the place of one that has ended, if the step waits for its items. Returns it.

        With that, the parent knows of the one that has ended: see `told`. None where there are no more, and where its
        place was passed on before. `patience`: seconds after which recovery looks at the next.
        """

    def told(self, item_id: str) -> None:
        """Note that the parent knows of an item that is at rest."""

    def undo_next(self, parent_id: str, step: str, count: int) -> Sequence[str]:
        """Return the ids of the last items that have begun and were not told to compensate, last first."""

    def close(self, parent_id: str, step: str) -> None:
        """Begin to compensate: the items that have not begun never will, and all others are to be told."""

    def unfinished(self, parent_id: str, step: str) -> Sequence[str]:
        """Return the ids of the items that are on their way forward."""

    def page(self, parent_id: str, step: str, first: int, limit: int) -> Sequence[SagaRecord]:
        """Return items with their steps and payloads, from a number on."""


class CheckpointStore(Protocol):
    """What the engine asks of a store. Every method raises `StoreUnavailable` when the database does not answer.

    The one rule that all safety rests on: `save` stores the new record only if the stored one still has the revision
    of the old. Whoever loses that race loads again and decides again.
    """

    @property
    def queries(self) -> SagaLog:
        """What people read. The engine reads none of it."""

    @property
    def items(self) -> ItemStore:
        """The items of `Each` nodes."""

    @property
    def shares_commits(self) -> bool:
        """Whether threads that save at the same moment share a commit, so that more of them are faster than one."""

    def now(self) -> datetime:
        """Return the database's time, in UTC. It is the only clock that the engine reads."""

    def insert(self, record: SagaRecord, session: AnySession | None = None) -> SagaRecord:
        """Store a new saga, in the caller's transaction if one is given.

        Returns the saga that has this name and key: the given one, or the one that was there before it.
        """

    def inserting(
        self, session: AnySession | None = None
    ) -> AbstractContextManager[Callable[[Sequence[SagaRecord]], Sequence[SagaRecord]]]:
        """Open a transaction that stores many new sagas, all or none: a savepoint of the caller's if one is given.

        It is called with sagas of one name, each with a key of its own. It returns, for each of them, the saga that
        has this name and key: the given one, or the one that was there before it.
        """

    def after_commit(self, session: AnySession | None, then: Callable[[], object]) -> None:
        """Call `then` once the caller's transaction has committed, and not at all when it rolls back.

        Without a session, at once; or, where the store knows of a transaction that all its writes are a part of, after
        that.
        """

    def load(self, saga_id: str, session: AnySession | None = None) -> SagaRecord:
        """Return a saga with all its steps; with `session`, lock it until that transaction ends.

        Raises `SagaNotFound`.
        """

    def find(self, name: str, key: str) -> SagaRecord:
        """Return the saga of this name and key. Raises `SagaNotFound`."""

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
        """Replace `before` by `after`, all or nothing. None when somebody else has replaced it first.

        `outbox`: rows of the outbox, for messages that leave if and only if this is stored.
        `children`: sagas that begin if and only if this is stored. Raises `KeyConflict`, with nothing stored, where
        another saga has the name and key of one of them.
        Where the change concerns the saga's parent (`tells_parent`), the step of that which waits for it becomes due,
        and the parent with it: that, too, is stored with this.
        """

    def attempt(self, open_session: Callable[[], Session]) -> AbstractContextManager[object]:
        """Return what an attempt at a step runs in, from before its function is called until it has returned.

        With `step.session`, until that is committed. An error that leaves it at the end is a failure of the step.

        `open_session`: what `step.session` asks; it opens `transaction`, the first time.
        """

    def transaction(self, who: str = "a step", limit: float | None = None) -> AbstractContextManager[Session]:
        """Open a session for a step that wants its effect and its checkpoint in one transaction.

        Only the end of the block ends that transaction: the step is refused when it does so. It counts as committed
        only if it was. `who`: the step, for messages. `limit`: seconds after which nobody waits for the step.
        """

    def due(self, limit: int, lease: float) -> Sequence[str]:
        """Return the ids of sagas that recovery has to look at, kept from other recoveries for `lease` seconds."""

    def summaries(self, saga_ids: Collection[str]) -> Sequence[SagaSummary]:
        """Return those of these sagas that exist, with their steps, without their payloads."""

    def statuses(self, saga_ids: Collection[str]) -> Mapping[str, SagaStatus]:
        """Return the status of those of these sagas that exist, by id."""

    def family(self, root_id: str) -> Sequence[SagaSummary]:
        """Return a saga and all that are below it, oldest first, with their steps, without their payloads."""

    async def to_thread(self, function: Callable[[], T]) -> T:
        """Call a function that blocks and uses this store, without blocking the event loop."""

    def reschedule(self, sagas: Collection[SagaSummary]) -> None:
        """Store when recovery looks at these sagas again (`next_check_at`), and for the how many times (`idle_checks`).

        That is no save: the revision stays, and a saga that somebody has saved since stays as it is.
        """

    def postpone(self, saga_id: str, seconds: float, why: str) -> str | None:
        """Keep a saga from recovery for so long, though its record may not be readable. Return its name.

        `why`: becomes its error, unless that says why it compensates. None where there is no such saga.
        """

    def arrived(self, task: str, sent_at: datetime) -> None:
        """Note that what was sent for a Celery task before `sent_at` has arrived, or is lost. An older note is kept."""

    def arrivals(self, tasks: Collection[str]) -> Mapping[str, datetime]:
        """Return the latest such time of those tasks that have one."""


class Queries(SagaLog, Protocol):
    """What people ask of the sagas in a store. Nothing here changes a saga, and the engine needs none of it.

    Every method raises `StoreUnavailable` when the database does not answer.
    """

    def resolve(self, text: str) -> SagaSummary:
        """Return the saga that an operator means by its id, the start of its id, or its key.

        It has its steps, and no payloads. Raises `SagaNotFound`; `AmbiguousSaga` where there are several.
        """

    def summary(self, saga_id: str) -> SagaSummary:
        """Return a saga with its steps, without its payloads. Raises `SagaNotFound`."""

    def payloads(self, saga_id: str) -> Payloads:
        """Return the input of a saga and the results of its steps. Raises `SagaNotFound`."""

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

    def family(self, root_id: str) -> Sequence[SagaSummary]:
        """Return a saga and all that are below it, oldest first, with their steps, without their payloads."""

    def count(self, where: Filter = EVERYTHING) -> int:
        """Return how many sagas fit a filter."""

    def tally(self, where: Filter = EVERYTHING) -> Sequence[StatusCount]:
        """Return how many of the sagas that fit a filter have each name and status."""

    def in_flight(self) -> Sequence[InFlight]:
        """Return the unfinished sagas, by name, version, outline and status.

        A COMPLETED child is among them as long as the top of its tree is unfinished: it may have to compensate.
        """

    def standing(self, name: str, version: int, outline: str) -> Sequence[Standing]:
        """Return where the sagas stand that `in_flight` counts for one outline.

        One row for each stage, and one for each wait ahead whose signal has come.
        """

    def ended(self, since: datetime, *, among: int = 1000) -> int:
        """Return how many sagas have ended since then, of the `among` that were started last with each end.

        Cheap, for a rate: it reads at most `among` rows for each end.
        """

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

        `before`: the number of an entry, for the next page.
        """

    def not_progressing(self) -> Mapping[str, int]:
        """Return how many sagas of each name wait, for a long time, for somebody to begin their next step."""

    def open_dead_letters(self) -> Mapping[str, int]:
        """Return how many steps of the sagas of each name wait for a person."""

    def overdue(self) -> float:
        """Return for how many seconds the saga that waits longest has been due without a recovery pass."""


@runtime_checkable
class OperatorStore(CheckpointStore, Protocol):
    """A store that operators can work with: its sagas are in the library's tables, in a SQL database.

    The command line, Flower, the admin, the doctor, metrics and retention need one. `SqlStore` is one.
    """

    @property
    def queries(self) -> Queries:
        """The answers to what people ask."""

    @property
    def engine(self) -> Engine:
        """The database."""

    @property
    def dialect(self) -> str:
        """The kind of database, as SQLAlchemy names it."""

    @property
    def connections(self) -> Connections:
        """What opens its transactions."""

    @property
    def codec(self) -> Codec:
        """What payloads are encrypted with."""

    @property
    def how_to_upgrade(self) -> str:
        """The command that brings the tables to what this version needs."""


def operator_store(store: CheckpointStore) -> OperatorStore:
    """Return a store as one that operators can work with. Raises `ConfigurationError` where it is none."""
    if not isinstance(store, OperatorStore):
        raise ConfigurationError(f"{store!r} has no lists for operators; keep the sagas in a SqlStore")
    return store
