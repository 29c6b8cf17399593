"""A store in memory, for tests that need no database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sagas.checkpoints import (
    AT_REST,
    DeadLetter,
    Direction,
    HistoryEntry,
    Items,
    SagaRecord,
    SagaStatus,
    SagaSummary,
    StepStatus,
    tells_parent,
)
from sagas.errors import ConfigurationError, KeyConflict, SagaNotFound

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sagas.stores.sessions import AnySession

__all__ = ["MemoryLog", "MemoryStore"]


T = TypeVar("T")


class MemoryStore:
    """Stores records in dictionaries, with the same compare-and-set as `SqlStore`. For one thread; no transactions."""

    def __init__(self) -> None:
        self._records: dict[str, SagaRecord] = {}
        self.queries = MemoryLog()
        self.items = _MemoryItems(self)
        self._arrivals: dict[str, datetime] = {}
        self.outbox: list[Mapping[str, Any]] = []  #: outbox rows; no relay sends them

    def __repr__(self) -> str:
        return "MemoryStore()"

    @property
    def shares_commits(self) -> bool:
        return False

    def now(self) -> datetime:
        return datetime.now(UTC)

    def insert(self, record: SagaRecord, session: AnySession | None = None) -> SagaRecord:
        if session is not None:
            raise _no_transactions()
        same = (found for found in self._records.values() if (found.name, found.key) == (record.name, record.key))
        return next(same, None) or self._records.setdefault(record.id, record)

    @contextmanager
    def inserting(
        self, session: AnySession | None = None
    ) -> Iterator[Callable[[Sequence[SagaRecord]], Sequence[SagaRecord]]]:
        before = dict(self._records)
        try:
            yield lambda records: [self.insert(record, session) for record in records]
        except BaseException:
            self._records = before
            raise

    def after_commit(self, session: AnySession | None, then: Callable[[], object]) -> None:
        if session is not None:
            raise _no_transactions()
        then()

    def load(self, saga_id: str, session: AnySession | None = None) -> SagaRecord:
        if session is not None:
            raise _no_transactions()
        if saga_id not in self._records:
            raise SagaNotFound(f"there is no saga with the id {saga_id!r}")
        return self._records[saga_id]

    def find(self, name: str, key: str) -> SagaRecord:
        for record in self._records.values():
            if (record.name, record.key) == (name, key):
                return record
        raise SagaNotFound(f"there is no saga {name!r} with the key {key!r}")

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
            raise _no_transactions()
        if self.load(before.id).revision != before.revision:
            return None
        for child in children:
            if (there := self.insert(child)).id != child.id:
                raise KeyConflict(f"saga {child.name!r}: the key {child.key!r} of a child belongs to {there.id}")
        if tells_parent(before, after) and after.parent_item is None:
            self._wake_parent(after)
        if children and children[0].parent_item is not None:
            self.items.begin(children)
        after = self._records[before.id] = replace(after, revision=before.revision + 1)
        self.queries.entries += [(before.id, entry) for entry in history]
        for letter in dead_letters:
            self.queries.file(letter)
        self.outbox += outbox
        return after

    def _wake_parent(self, child: SagaRecord) -> None:
        parent = self._records.get(child.parent_id or "")
        if parent is None:
            return
        for step in parent.steps.values():
            if step.child_id == child.id and step.status is StepStatus.WAITING:
                parent = parent.with_step(replace(step, due_at=child.updated_at))
        at = None if parent.next_check_at is None else child.updated_at
        self._records[parent.id] = replace(parent, revision=parent.revision + 1, next_check_at=at)

    def replace(self, record: SagaRecord) -> None:
        """Store a record as it is, whatever was there."""
        self._records[record.id] = record

    @property
    def records(self) -> Sequence[SagaRecord]:
        return list(self._records.values())

    def attempt(self, open_session: Callable[[], Session]) -> AbstractContextManager[object]:  # noqa: ARG002
        return nullcontext()

    def transaction(self, who: str = "a step", limit: float | None = None) -> AbstractContextManager[Session]:  # noqa: ARG002
        raise _no_transactions()

    def due(self, limit: int, lease: float) -> Sequence[str]:
        now = self.now()
        due = [
            record
            for record in self._records.values()
            if record.next_check_at is not None and record.next_check_at <= now
        ]
        for record in due[:limit]:
            self._records[record.id] = replace(record, next_check_at=now + timedelta(seconds=lease))
        return [record.id for record in due[:limit]]

    def summaries(self, saga_ids: Collection[str]) -> Sequence[SagaSummary]:
        return [self._records[saga_id] for saga_id in saga_ids if saga_id in self._records]

    def statuses(self, saga_ids: Collection[str]) -> Mapping[str, SagaStatus]:
        return {saga_id: self._records[saga_id].status for saga_id in saga_ids if saga_id in self._records}

    def family(self, root_id: str) -> Sequence[SagaSummary]:
        return [record for record in self._records.values() if record.family == root_id]

    async def to_thread(self, function: Callable[[], T]) -> T:
        return function()  # it is for one thread, and nothing here waits

    def reschedule(self, sagas: Collection[SagaSummary]) -> None:
        for saga in sagas:
            if (record := self._records.get(saga.id)) and record.revision == saga.revision:
                self._records[saga.id] = replace(record, idle_checks=saga.idle_checks, next_check_at=saga.next_check_at)

    def postpone(self, saga_id: str, seconds: float, why: str) -> str | None:
        if (record := self._records.get(saga_id)) is None:
            return None
        if record.next_check_at is not None:
            error = why if record.direction is Direction.FORWARD else record.error
            self._records[saga_id] = replace(record, next_check_at=self.now() + timedelta(seconds=seconds), error=error)
        return record.name

    def arrived(self, task: str, sent_at: datetime) -> None:
        self._arrivals[task] = max(sent_at, self._arrivals.get(task, sent_at))

    def arrivals(self, tasks: Collection[str]) -> Mapping[str, datetime]:
        return {task: at for task, at in self._arrivals.items() if task in tasks}


class _MemoryItems:
    """The items of `Each` nodes, as `SqlStore.items` keeps them."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._next: dict[tuple[str, str], int] = {}
        self._passed: set[str] = set()  # items whose place was passed on

    def begin(self, items: Sequence[SagaRecord]) -> None:
        first = items[0]
        begun = sum(item.next_check_at is not None for item in items)
        if (first.parent_id or "", first.parent_step or "") in self._next:  # those that failed are replaced
            for old in self._of(first.parent_id or "", first.parent_step or ""):
                if old.status is SagaStatus.COMPENSATED:
                    self._store.replace(replace(old, parent_item=None))
            return
        self._next[first.parent_id or "", first.parent_step or ""] = begun

    def _goes(self, saga_id: str, direction: Direction) -> bool:
        return any(each.id == saga_id and each.direction is direction for each in self._store.records)

    def _waits(self, saga_id: str, step: str) -> bool:
        """Tell whether a step of a saga that goes forward waits for its items."""
        sagas = [each for each in self._store.records if each.id == saga_id and each.direction is Direction.FORWARD]
        return any(step in each.steps and each.step(step).status is StepStatus.WAITING for each in sagas)

    def _of(self, parent_id: str, step: str) -> list[SagaRecord]:
        mine = [
            each
            for each in self._store.records
            if (each.parent_id, each.parent_step) == (parent_id, step) and each.parent_item is not None
        ]
        return sorted(mine, key=lambda each: each.parent_item or 0)

    def count(self, parent_id: str, step: str) -> Items:
        numbers = Counter(map(_stands, self._of(parent_id, step)))
        bad = [each for each in self._of(parent_id, step) if each.status in _BAD and each.error]
        bad.sort(key=lambda each: each.status is not SagaStatus.STUCK)
        trouble = f"item {bad[0].parent_item} ({bad[0].id}) is {bad[0].status}: {bad[0].error}" if bad else None
        return Items(**numbers, trouble=trouble)

    def failed(self, parent_id: str, step: str) -> Mapping[int, str] | None:
        if (parent_id, step) not in self._next:
            return None
        failed = (each for each in self._of(parent_id, step) if each.status is SagaStatus.COMPENSATED)
        return {each.parent_item or 0: each.id for each in failed}

    def begin_next(self, ended: SagaRecord, patience: float) -> SagaRecord | None:
        parent_id, step = ended.parent_id or "", ended.parent_step or ""
        if not self._waits(parent_id, step) or ended.id in self._passed:
            return None
        number = self._next[parent_id, step]
        for item in self._of(parent_id, step)[number : number + 1]:
            now = self._store.now()
            begun = replace(
                item,
                dispatches=1,
                stage_ready_at=now,
                updated_at=now,
                next_check_at=now + timedelta(seconds=patience),
                revision=item.revision + 1,
            )
            self._store.replace(begun)
            self._passed.add(ended.id)
            self._next[parent_id, step] = number + 1
            self.told(ended.id)
            return begun
        return None

    def told(self, item_id: str) -> None:
        for item in self._store.records:
            if item.id == item_id and item.status in AT_REST:
                self._store.replace(replace(item, next_check_at=None))

    def undo_next(self, parent_id: str, step: str, count: int) -> Sequence[str]:
        if not self._goes(parent_id, Direction.BACKWARD):
            return []
        number = self._next.get((parent_id, step), 0)
        begun = self._of(parent_id, step)[:number]
        left = [item for item in reversed(begun) if item.status is not SagaStatus.COMPENSATED][:count]
        self._next[parent_id, step] = min((item.parent_item or 0 for item in left), default=0)
        return [item.id for item in left]

    def close(self, parent_id: str, step: str) -> None:
        if not self._goes(parent_id, Direction.BACKWARD):
            return
        items = self._of(parent_id, step)
        for item in items:
            if _stands(item) == "waiting":
                self._store.replace(replace(item, status=SagaStatus.COMPENSATED, error="it was never begun"))
        self._next[parent_id, step] = len(items)

    def unfinished(self, parent_id: str, step: str) -> Sequence[str]:
        working = (SagaStatus.PENDING, SagaStatus.RUNNING)
        return [item.id for item in reversed(self._of(parent_id, step)) if item.status in working]

    def page(self, parent_id: str, step: str, first: int, limit: int) -> Sequence[SagaRecord]:
        return self._of(parent_id, step)[first : first + limit]


_BAD = (SagaStatus.STUCK, SagaStatus.COMPENSATED)


def _stands(item: SagaRecord) -> str:
    """Return which of the numbers in `Items` an item counts for."""
    if item.status is SagaStatus.PENDING and item.next_check_at is None:
        return "waiting"
    return {SagaStatus.COMPLETED: "completed", SagaStatus.COMPENSATED: "failed"}.get(item.status, "working")


class MemoryLog:
    """The histories and dead letters of a `MemoryStore`."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, HistoryEntry]] = []
        self.letters: list[DeadLetter] = []

    def file(self, letter: DeadLetter) -> None:
        """Open a dead letter, or resolve the open ones of its step."""
        if letter.resolved_at is None:
            self.letters.append(letter)
            return
        how = {name: getattr(letter, name) for name in ("resolved_at", "resolution", "reason", "actor")}
        self.letters = [
            replace(open_, **how)
            if open_.resolved_at is None and (open_.saga_id, open_.step) == (letter.saga_id, letter.step)
            else open_
            for open_ in self.letters
        ]

    def history(self, saga_id: str) -> Sequence[HistoryEntry]:
        return [entry for of, entry in self.entries if of == saga_id]

    def dead_letters(self, saga_id: str | None = None, *, unresolved: bool = True) -> Sequence[DeadLetter]:
        return [
            letter
            for letter in self.letters
            if saga_id in (None, letter.saga_id) and (letter.resolved_at is None or not unresolved)
        ]


def _no_transactions() -> ConfigurationError:
    return ConfigurationError("MemoryStore has no transactions. For step.session use Inline(SqlStore(...))")
