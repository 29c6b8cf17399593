"""Where sagas are kept. `SqlStore` is the one that ships; `CheckpointStore` is what the engine asks of any."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sagas.checkpoints import DeadLetter, HistoryEntry, SagaRecord, SagaStatus, SagaSummary
from sagas.stores.codecs import Codec
from sagas.stores.filters import EVERYTHING, AuditEntry, Filter, InFlight, StatusCount
from sagas.stores.sql import Payloads, SqlStore

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, scoped_session

__all__ = [
    "EVERYTHING",
    "CheckpointStore",
    "Codec",
    "AuditEntry",
    "Filter",
    "InFlight",
    "Payloads",
    "SqlStore",
    "StatusCount",
]


T = TypeVar("T")


class CheckpointStore(Protocol):
    """Keeps records. Every method raises `StoreUnavailable` when the database does not answer.

    The one rule that all safety rests on: `save` stores the new record only if the stored one still has the revision
    of the old. Whoever loses that race loads again and decides again.
    """

    def now(self) -> datetime:
        """Return the database's time, in UTC. It is the only clock that the engine reads."""

    def insert(
        self, record: SagaRecord, session: Session | scoped_session[Any] | Connection | None = None
    ) -> SagaRecord:
        """Store a new saga, in the caller's transaction if one is given.

        Returns the saga that has this name and key: the given one, or the one that was there before it.
        """

    def inserting(
        self, session: Session | scoped_session[Any] | Connection | None = None
    ) -> AbstractContextManager[Callable[[Sequence[SagaRecord]], Sequence[SagaRecord]]]:
        """Open what stores many new sagas, all or none: in a savepoint of the caller's transaction if one is given.

        It is called with sagas of one name, each with a key of its own, and returns, for each of them, the saga that
        has this name and key: the given one, or the one that was there before it.
        """

    def after_commit(
        self, session: Session | scoped_session[Any] | Connection | None, then: Callable[[], object]
    ) -> None:
        """Call `then` once the caller's transaction has committed, and not at all when it rolls back.

        Without a session, at once; or, where the store knows of a transaction that all its writes are a part of, after
        that.
        """

    def load(self, saga_id: str) -> SagaRecord:
        """Return a saga with all its steps. Raises `SagaNotFound`."""

    def find(self, name: str, key: str) -> SagaRecord:
        """Return the saga of this name and key. Raises `SagaNotFound`."""

    def save(
        self,
        before: SagaRecord,
        after: SagaRecord,
        history: Sequence[HistoryEntry] = (),
        dead_letters: Sequence[DeadLetter] = (),
        outbox: Sequence[Mapping[str, Any]] = (),
        session: Session | None = None,
    ) -> SagaRecord | None:
        """Replace `before` by `after`, all or nothing. None when somebody else has replaced it first.

        `outbox`: rows of the outbox, for messages that leave if and only if this is stored.
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

    async def to_thread(self, function: Callable[[], T]) -> T:
        """Call a function that blocks, and that uses this store, without blocking the event loop."""

    def reschedule(self, sagas: Collection[SagaSummary]) -> None:
        """Store when recovery looks at these sagas again (`next_check_at`), and for the how many times (`idle_checks`).

        That is no save: the revision stays, and a saga that somebody has saved since stays as it is.
        """

    def postpone(self, saga_id: str, seconds: float, why: str) -> str | None:
        """Keep a saga from recovery for so long, though its record may not be readable. Return its name.

        `why`: becomes its error, unless that says why it turned back. None where there is no such saga.
        """

    def arrived(self, task: str, sent_at: datetime) -> None:
        """Note that what was sent for a Celery task before `sent_at` has arrived, or is lost. An older note is kept."""

    def arrivals(self, tasks: Collection[str]) -> Mapping[str, datetime]:
        """Return the latest such time of those tasks that have one."""

    def history(self, saga_id: str) -> Sequence[HistoryEntry]:
        """Return what happened to a saga beside its plain way forward, oldest first."""

    def dead_letters(self, saga_id: str | None = None, *, unresolved: bool = True) -> Sequence[DeadLetter]:
        """Return the steps that wait for a person, oldest first; with `unresolved=False` the resolved ones too."""


if "alembic" in sys.modules:
    # This may be the `env.py` of an application, which imports us: our tables are kept out of what is generated
    # there, for those too who have not read how to. Elsewhere Alembic is slow to import, and rarely needed.
    importlib.import_module("sagas.stores.autogenerate")
