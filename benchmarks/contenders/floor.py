"""The least that PostgreSQL would take: the same rows, committed as often, by two bare psycopg connections.

The transactions are those of a saga whose steps are each claimed and then recorded; the report scales the figure to
the transactions that the library really made in the same round.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

from benchmarks.contenders import Base
from sagas import SqlStore
from tests.servers import Postgres

START = """
insert into sagas_saga (id, name, version, key, outline, correlation_id, input, status, direction, epoch, revision,
                        idle_checks, created_at, updated_at, stage_ready_at, next_check_at)
values (%(id)s, 'bench', 1, %(id)s, %(outline)s, %(id)s, '{"payload":""}', 'PENDING', 'FORWARD', 1, 0,
        0, now(), now(), now(), now() + interval '30 s')
"""
CHANGE = """
update sagas_saga
set status = %(status)s, revision = revision + 1, updated_at = now(), stage_ready_at = now(), next_check_at = {}
where id = %(id)s and revision = %(revision)s
"""
CLAIM = """
insert into sagas_step (saga_id, seq, node, stage, kind, status, started_seq, failures, lost, owner, lease_until,
                        deadline, started_at)
values (%(id)s, %(seq)s, %(step)s, %(seq)s - 1, 'step', 'RUNNING', %(seq)s, 0, 0, %(id)s, now(), now(), now())
"""
DONE = """
update sagas_step set status = 'DONE', owner = null, lease_until = null, deadline = null, result = '0',
                      finished_at = now()
where saga_id = %(id)s and seq = %(seq)s
"""
MOVE, FINISH = CHANGE.format("now() + interval '30 s'"), CHANGE.format("null")


class Contender(Base):
    note = "bare commits of the same rows, 2 connections; scaled to the commits that sagas_redis made"

    def __init__(self, steps: int = 4) -> None:
        self.steps = steps
        self.outline = json.dumps([{"step": f"step_{i}"} for i in range(steps)])
        self.server: Postgres | None = None
        self._writes = 0

    def setup(self) -> None:
        self.server = Postgres(fsync=True).start()
        url = self.server.database()
        SqlStore(url).upgrade()
        self._threads = ThreadPoolExecutor(2)
        self._connections = [psycopg.connect(url.replace("+psycopg", ""), autocommit=True) for _ in range(2)]

    def _saga(self, connection: psycopg.Connection[Any]) -> None:
        self._carry(connection, {"id": str(uuid.uuid4())}, START, MOVE, CLAIM, FINISH, DONE)

    def _carry(
        self,
        connection: psycopg.Connection[Any],
        sagas: Mapping[str, Any],
        start: str,
        move: str,
        claim: str,
        finish: str,
        done: str,
    ) -> None:
        values: dict[str, Any] = {**sagas, "outline": self.outline, "status": "RUNNING", "revision": -1}

        def commit(*statements: str) -> None:
            with connection.transaction():
                for statement in statements:
                    connection.execute(statement, values, prepare=True)  # type: ignore[arg-type, unused-ignore]
            values["revision"] += 1

        commit(start)
        for number in range(self.steps):
            values |= {"step": f"step_{number}", "seq": number + 1}
            commit(move, claim)
            if number == self.steps - 1:
                values["status"] = "COMPLETED"
            commit(finish if number == self.steps - 1 else move, done)

    def _many(self, n: int, connection: psycopg.Connection[Any]) -> None:
        for _ in range(n):
            self._saga(connection)

    def run(self, n: int) -> float:
        began = time.perf_counter()
        list(self._threads.map(self._many, [n - n // 2, n // 2], self._connections))
        self._writes += n * (1 + 2 * self.steps)
        return time.perf_counter() - began

    def one(self) -> float:
        began = time.perf_counter()
        self._saga(self._connections[0])
        self._writes += 1 + 2 * self.steps
        return time.perf_counter() - began

    def extra(self) -> Mapping[str, float]:
        return {"writes": self._writes}

    def roots(self) -> Mapping[str, Sequence[int]]:
        assert self.server is not None
        assert self.server.process is not None
        return {"database": [self.server.process.pid]}

    def teardown(self) -> None:
        for connection in getattr(self, "_connections", ()):
            connection.close()
        if self.server is not None:
            self.server.stop()
