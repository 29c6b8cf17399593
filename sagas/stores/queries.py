"""The answers of a SQL database to what people ask of the sagas in it. `sagas.stores.protocols.Queries` says more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import RowMapping, Select, select

from sagas.checkpoints import FINISHED, DeadLetter, HistoryEntry, SagaStatus, SagaSummary, step_name
from sagas.errors import AmbiguousSaga, PayloadUnreadable, SagaNotFound
from sagas.stores import gauges, lists, schema
from sagas.stores.clock import DatabaseClock
from sagas.stores.codecs import Codec, input_of, result_of
from sagas.stores.connections import Connections
from sagas.stores.filters import EVERYTHING, AuditEntry, Filter, InFlight, Payloads, Standing, StatusCount
from sagas.stores.rows import entry_of, letter_of, summary_of
from sagas.text import is_clean

__all__ = ["SqlQueries"]

#: Sagas that are named where a text may mean several.
_FEW = 10

#: Sagas of a tree that one query reads.
_PAGE = 100


class SqlQueries:
    """The queries of a `SqlStore`: `store.queries`."""

    def __init__(self, connections: Connections, codec: Codec, clock: DatabaseClock) -> None:
        self._connections = connections
        self._codec = codec
        self._clock = clock

    # -- one saga -----------------------------------------------------------------------------------------------

    def resolve(self, text: str) -> SagaSummary:
        queries: tuple[Select[tuple[object, ...]], ...] = (
            lists.listed(Filter(ids=(text,)), limit=1, before=None, after=None),
            lists.with_prefix(text, _FEW),
            lists.listed(Filter(key=text), limit=_FEW, before=None, after=""),
        )
        askable = text and is_clean(text)
        rows = next((rows for query in queries if askable and (rows := self._connections.rows(query))), [])
        if not rows:
            raise SagaNotFound(f"there is no saga whose id begins with, or whose key is, {text!r}")
        if len(rows) > 1:
            found = ", ".join(f"{row['id']} ({row['name']}, key {row['key']})" for row in rows)
            more = " and more" if len(rows) == _FEW else ""
            raise AmbiguousSaga(f"{text!r} may mean {found}{more}: give the whole id")
        return self.summary(rows[0]["id"])

    def summary(self, saga_id: str) -> SagaSummary:
        rows = self._connections.rows(lists.listed(Filter(ids=(saga_id,)), limit=1, before=None, after=None))
        if not rows:
            raise _not_found(saga_id)
        return summary_of(rows[0], self._connections.rows(lists.steps_of([saga_id])))

    def payloads(self, saga_id: str) -> Payloads:
        sagas, steps = schema.sagas.c, schema.steps.c
        inputs = self._connections.rows(select(sagas.input).where(sagas.id == saga_id)) if is_clean(saga_id) else []
        if not inputs:
            raise _not_found(saga_id)
        results = self._connections.rows(
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
            return self._codec.decode(text, about)
        except PayloadUnreadable as error:
            return error

    def history(self, saga_id: str) -> Sequence[HistoryEntry]:
        if not is_clean(saga_id):
            return []
        query = select(schema.history).where(schema.history.c.saga_id == saga_id).order_by(schema.history.c.id)
        return [entry_of(row) for row in self._connections.rows(query)]

    # -- many sagas ---------------------------------------------------------------------------------------------

    def select(
        self,
        where: Filter = EVERYTHING,
        *,
        limit: int = 100,
        before: str | None = None,
        after: str | None = None,
        with_steps: bool = False,
    ) -> Sequence[SagaSummary]:
        rows = self._connections.rows(lists.listed(where, limit=limit, before=before, after=after))
        steps: dict[str, list[RowMapping]] = {row["id"]: [] for row in rows}
        if with_steps and rows:
            for step in self._connections.rows(lists.steps_of(list(steps))):
                steps[step["saga_id"]].append(step)
        return [summary_of(row, steps[row["id"]]) for row in rows]

    def family(self, root_id: str) -> Sequence[SagaSummary]:
        found: list[SagaSummary] = []
        while (
            len(page := self.select(Filter(family=root_id), limit=_PAGE, after=_last(found), with_steps=True)) == _PAGE
        ):
            found += page
        return [*found, *page]

    def count(self, where: Filter = EVERYTHING) -> int:
        return int(self._connections.scalar(lists.counted(where)))

    def tally(self, where: Filter = EVERYTHING) -> Sequence[StatusCount]:
        rows = self._connections.rows(lists.tallied(where))
        return [StatusCount(row["name"], SagaStatus(row["status"]), row["count"]) for row in rows]

    def in_flight(self) -> Sequence[InFlight]:
        rows = [*self._connections.rows(lists.in_flight()), *self._connections.rows(lists.may_be_undone())]
        return [InFlight(**{**row, "status": SagaStatus(row["status"])}) for row in rows]

    def standing(self, name: str, version: int, outline: str) -> Sequence[Standing]:
        rows = self._connections.rows(lists.standing(name, version, outline))
        return [Standing(row["stage"], row["early"], row["count"], row["example"]) for row in rows]

    def ended(self, since: datetime, *, among: int = 1000) -> int:
        return sum(int(self._connections.scalar(lists.ended(status, since, among))) for status in sorted(FINISHED))

    # -- what needs a person, and what people did -----------------------------------------------------------------

    def dead_letters(self, saga_id: str | None = None, *, unresolved: bool = True) -> Sequence[DeadLetter]:
        query = select(schema.dead_letters).order_by(schema.dead_letters.c.id)
        if saga_id is not None and not is_clean(saga_id):
            return []
        if saga_id is not None:
            query = query.where(schema.dead_letters.c.saga_id == saga_id)
        if unresolved:
            query = query.where(schema.dead_letters.c.resolved_at.is_(None))
        return [letter_of(row) for row in self._connections.rows(query)]

    def audit(
        self,
        *,
        actor: str | None = None,
        name: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> Sequence[AuditEntry]:
        query = lists.audited(actor=actor, name=name, since=since, limit=limit, before=before)
        return [
            AuditEntry(row["id"], row["saga_id"], row["name"], row["key"], entry_of(row), row["parent_id"])
            for row in self._connections.rows(query)
        ]

    # -- gauges -------------------------------------------------------------------------------------------------

    def not_progressing(self) -> Mapping[str, int]:
        return {row["name"]: row["count"] for row in self._connections.rows(gauges.not_progressing())}

    def open_dead_letters(self) -> Mapping[str, int]:
        return {row["name"]: row["count"] for row in self._connections.rows(gauges.open_letters())}

    def overdue(self) -> float:
        first = self._connections.scalar(gauges.first_due())
        return 0.0 if first is None else max((self._clock.now() - first).total_seconds(), 0.0)


def _last(sagas: Sequence[SagaSummary]) -> str:
    return sagas[-1].id if sagas else ""


def _not_found(saga_id: str) -> SagaNotFound:
    return SagaNotFound(f"there is no saga with the id {saga_id!r}")
