"""The items of an `Each` in SQL: child sagas by number, and how many of them have begun.

Nobody reads all of them at once. `sagas_fan_out` holds the number of the next item; whoever moves it locks its row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, case, func, insert, select, update

from sagas.checkpoints import Direction, Items, SagaRecord, SagaStatus
from sagas.errors import KeyConflict
from sagas.stores import bulk, places, schema, statements
from sagas.stores.clock import DatabaseClock
from sagas.stores.codecs import Codec
from sagas.stores.connections import Connections
from sagas.stores.postgres import FastPath
from sagas.stores.rows import saga_of

__all__ = ["SqlItems"]

_sagas, _fan_outs = schema.sagas.c, schema.fan_outs.c

#: Items that one statement stores.
_CHUNK = 500

_UNFINISHED = (SagaStatus.PENDING.value, SagaStatus.RUNNING.value)


def _of(parent_id: str, step: str) -> tuple[ColumnElement[bool], ...]:
    return _sagas.parent_id == parent_id, _sagas.parent_step == step, _sagas.parent_item.is_not(None)


class SqlItems:
    """The items of a `SqlStore`: `store.items`."""

    def __init__(self, connections: Connections, codec: Codec, clock: DatabaseClock, fast: FastPath | None) -> None:
        self._connections = connections
        self._codec = codec
        self._clock = clock
        self._fast = fast

    def insert(
        self,
        connection: Connection,
        items: Sequence[SagaRecord],
        to_row: Callable[[SagaRecord], Mapping[str, Any]],
        of_row: Callable[[RowMapping], SagaRecord],
    ) -> None:
        """Store the items of one step, in the transaction that makes it wait for them.

        Where the step has made its items before, these come in the place of those that have failed.
        """
        first = items[0]
        parent_id, step = first.parent_id, first.parent_step
        assert parent_id is not None
        assert step is not None
        begun = sum(item.next_check_at is not None for item in items)
        again = self._next_item(connection, parent_id, step) is not None
        if again:
            failed = *_of(parent_id, step), _sagas.status == SagaStatus.COMPENSATED.value
            connection.execute(update(schema.sagas).where(*failed).values(parent_item=None))
        keep = statements.DIALECTS[self._connections.dialect].insert_or_keep
        for start in range(0, len(items), _CHUNK):
            chunk = items[start : start + _CHUNK]
            there = bulk.insert_many(connection, keep, chunk, to_row, of_row)
            for item, found in zip(chunk, there, strict=True):
                if item.id != found.id:
                    raise KeyConflict(f"saga {item.name!r}: the key {item.key!r} of an item belongs to {found.id}")
        if not again:
            values = {"saga_id": parent_id, "step": step, "items": len(items), "next_item": begun}
            connection.execute(insert(schema.fan_outs), values)

    def count(self, parent_id: str, step: str) -> Items:
        begun = _sagas.next_check_at.is_not(None) | _sagas.status.not_in([SagaStatus.PENDING.value])
        query = (
            select(_sagas.status, begun.label("begun"), func.count().label("number"))
            .where(*_of(parent_id, step))
            .group_by(_sagas.status, begun)
        )
        numbers = {"waiting": 0, "working": 0, "completed": 0, "failed": 0}
        stuck = False
        for row in self._connections.rows(query):
            status = SagaStatus(row["status"])
            stuck = stuck or status is SagaStatus.STUCK
            kind = {SagaStatus.COMPLETED: "completed", SagaStatus.COMPENSATED: "failed"}.get(status, "working")
            numbers[kind if row["begun"] else "waiting"] += row["number"]
        return Items(**numbers, trouble=self._trouble(parent_id, step) if stuck or numbers["failed"] else None)

    def _trouble(self, parent_id: str, step: str) -> str | None:
        bad = _sagas.status.in_([SagaStatus.STUCK.value, SagaStatus.COMPENSATED.value])
        first_stuck = case((_sagas.status == SagaStatus.STUCK.value, 0), else_=1)
        query = (
            select(_sagas.id, _sagas.parent_item, _sagas.status, _sagas.error)
            .where(*_of(parent_id, step), bad, _sagas.error.is_not(None))
            .order_by(first_stuck, _sagas.parent_item)
            .limit(1)
        )
        for row in self._connections.rows(query):
            return f"item {row['parent_item']} ({row['id']}) is {row['status']}: {row['error']}"
        return None

    def failed(self, parent_id: str, step: str) -> Mapping[int, str] | None:
        """Return the ids of the items that have failed, by number. None where the step has made no items yet."""
        mine = _fan_outs.saga_id == parent_id, _fan_outs.step == step
        if not self._connections.rows(select(_fan_outs.next_item).where(*mine)):
            return None
        failed = *_of(parent_id, step), _sagas.status == SagaStatus.COMPENSATED.value
        rows = self._connections.rows(select(_sagas.parent_item, _sagas.id).where(*failed))
        return {row["parent_item"]: row["id"] for row in rows}

    def begin_next(self, ended: SagaRecord, patience: float) -> SagaRecord | None:
        """Begin the next item in the place of one that has ended, if the step waits for its items. Returns it.

        With that, the parent knows of the one that has ended: see `told`. None where there are no more, and where its
        place was passed on before. `patience`: seconds after which recovery looks at the next.
        """
        now = self._clock.now()
        about: dict[str, Any] = {"_parent": ended.parent_id, "_step": ended.parent_step, "_ended": ended.id}
        about |= {"_now": now, "_check_at": now + timedelta(seconds=patience)}
        if self._fast is not None and (begun := self._fast.pass_place(about)) is not None:
            return saga_of(begun, [], self._codec)  # no step of it has been opened
        with self._connections.writing() as connection:
            # Everybody locks the parent before the row of its fan-out: in another order, two could wait for each other.
            if connection.execute(places.LOCK, about).scalar() is None:
                return None
            number = connection.execute(places.TURN, about).scalar()
            about["_number"] = number
            if number is None or (row := connection.execute(places.ITEM, about).mappings().one_or_none()) is None:
                return None
            if not connection.execute(places.PASS, about).rowcount:
                return None
            about["_id"] = row["id"]
            connection.execute(places.BEGIN, about)
            connection.execute(places.MOVE, about)
            begun = connection.execute(statements.BY_ID, {"id": row["id"]}).mappings().one()
        return saga_of(begun, [], self._codec)

    def told(self, item_id: str) -> None:
        """Note that the parent knows of an item that is at rest."""
        with self._connections.writing() as connection:
            connection.execute(
                update(schema.sagas).where(_sagas.id == item_id, places.AT_REST_NOW).values(next_check_at=None)
            )

    def undo_next(self, parent_id: str, step: str, count: int) -> Sequence[str]:
        """Return the ids of the last items that have begun and were not told to compensate, last first."""
        with self._connections.writing() as connection:
            if self._locked(connection, parent_id, Direction.BACKWARD) is None:
                return []
            number = self._next_item(connection, parent_id, step)
            if not number:
                return []
            rows = connection.execute(
                select(_sagas.id, _sagas.parent_item)
                .where(
                    *_of(parent_id, step),
                    _sagas.parent_item < number,
                    _sagas.status != SagaStatus.COMPENSATED.value,
                )
                .order_by(_sagas.parent_item.desc())
                .limit(count)
            ).all()
            self._move(connection, parent_id, step, min((row.parent_item for row in rows), default=0))
            return [row.id for row in rows]

    def close(self, parent_id: str, step: str) -> None:
        """Begin to compensate: the items that have not begun never will, and all others are to be told."""
        now = self._clock.now()
        with self._connections.writing() as connection:
            if self._locked(connection, parent_id, Direction.BACKWARD) is None:
                return
            never = *_of(parent_id, step), _sagas.status == SagaStatus.PENDING.value, _sagas.next_check_at.is_(None)
            closed = {"status": SagaStatus.COMPENSATED.value, "updated_at": now, "error": "it was never begun"}
            connection.execute(update(schema.sagas).where(*never).values(**closed))
            mine = _fan_outs.saga_id == parent_id, _fan_outs.step == step
            connection.execute(update(schema.fan_outs).where(*mine).values(next_item=_fan_outs["items"]))

    def unfinished(self, parent_id: str, step: str) -> Sequence[str]:
        """Return the ids of the items that are on their way forward."""
        query = select(_sagas.id).where(*_of(parent_id, step), _sagas.status.in_(_UNFINISHED))
        return [row["id"] for row in self._connections.rows(query.order_by(_sagas.parent_item.desc()))]

    def page(self, parent_id: str, step: str, first: int, limit: int) -> Sequence[SagaRecord]:
        """Return items with their steps and payloads, from a number on."""
        mine = *_of(parent_id, step), _sagas.parent_item >= first
        query = select(schema.sagas).where(*mine).order_by(_sagas.parent_item).limit(limit)

        def read(connection: Connection) -> Sequence[SagaRecord]:
            rows = connection.execute(query).mappings().all()
            steps: dict[str, list[RowMapping]] = {row["id"]: [] for row in rows}
            mine = schema.steps.c.saga_id.in_(list(steps))
            asked = select(schema.steps).where(mine).order_by(schema.steps.c.saga_id, schema.steps.c.seq)
            for each in connection.execute(asked).mappings():
                steps[each["saga_id"]].append(each)
            return [saga_of(row, steps[row["id"]], self._codec) for row in rows]

        return self._connections.read(read)

    @staticmethod
    def _locked(connection: Connection, parent_id: str, direction: Direction) -> str | None:
        """Lock the parent, so that it cannot turn meanwhile. None where it goes the other way, or is gone.

        Everybody locks the parent before the row of its fan-out: in another order, two could wait for each other.
        """
        mine = _sagas.id == parent_id, _sagas.direction == direction.value
        found: str | None = connection.execute(select(_sagas.id).where(*mine).with_for_update()).scalar()
        return found

    @staticmethod
    def _next_item(connection: Connection, parent_id: str, step: str) -> int | None:
        mine = _fan_outs.saga_id == parent_id, _fan_outs.step == step
        number: int | None = connection.execute(select(_fan_outs.next_item).where(*mine).with_for_update()).scalar()
        return number

    @staticmethod
    def _move(connection: Connection, parent_id: str, step: str, number: int) -> None:
        mine = _fan_outs.saga_id == parent_id, _fan_outs.step == step
        connection.execute(update(schema.fan_outs).where(*mine).values(next_item=number))
