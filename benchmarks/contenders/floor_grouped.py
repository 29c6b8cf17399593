"""The least that PostgreSQL would take if 50 sagas shared each commit: the same rows, by two psycopg connections."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg

from benchmarks.contenders import floor

_SAGAS = 50

_ID, _IDS = "%(id)s", "unnest(%(ids)s::text[]) as given (id)"


def _of_many(statement: str) -> str:
    """Return a statement of the floor for many sagas in place of one."""
    many = statement.replace("where id = %(id)s", "where id = any(%(ids)s)").replace(
        "where saga_id = %(id)s", "where saga_id = any(%(ids)s)"
    )
    if " values (" not in many.replace("\n", " "):
        return many
    head, _, values = many.partition("values (")
    return f"{head}select {values.strip().removesuffix(')').replace(_ID, 'given.id')} from {_IDS}"


START, MOVE, FINISH, CLAIM, DONE = map(_of_many, (floor.START, floor.MOVE, floor.FINISH, floor.CLAIM, floor.DONE))


class Contender(floor.Contender):
    note = f"as floor, with {_SAGAS} sagas in each statement and each commit"

    def _many(self, n: int, connection: psycopg.Connection[Any]) -> None:
        for first in range(0, n, _SAGAS):
            self._group(min(_SAGAS, n - first), connection)

    def _group(self, n: int, connection: psycopg.Connection[Any]) -> None:
        ids = [str(uuid.uuid4()) for _ in range(n)]
        self._carry(connection, {"ids": ids}, START, MOVE, CLAIM, FINISH, DONE)
