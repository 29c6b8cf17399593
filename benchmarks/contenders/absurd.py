"""Absurd (absurd-sdk): a queue and checkpoints as stored procedures in PostgreSQL, with a thin SDK.

Settings: its documentation scales by processes, so there are several, each with the default concurrency of 1. A worker
claims 10 tasks with one statement (the default is 1) and polls every 20 ms when it has none (the default is 250 ms).
The queue is unpartitioned, its default. Absurd has no call that starts many tasks.
"""

from __future__ import annotations

import os
from typing import ClassVar

import psycopg
from absurd_sdk import Absurd  # type: ignore[import-not-found, unused-ignore]
from absurdctl import BUNDLED_SCHEMA_SQL  # type: ignore[import-not-found, unused-ignore]

from benchmarks.contenders.absurd_app import QUEUE, TASK
from benchmarks.contenders.postgres_based import PostgresBased
from benchmarks.processes import Program


class Contender(PostgresBased):
    note = "2 worker processes; 10 tasks claimed at once (its default is 1), polled every 20 ms (its default is 250 ms)"
    processes: ClassVar[int] = int(os.environ.get("BENCH_ABSURD_PROCESSES", "2"))
    # Runs and not tasks: only they have an index by state.
    unfinished = f"select exists (select from absurd.r_{QUEUE} where state in ('pending', 'running', 'sleeping'))"
    failed = f"select count(*) from absurd.t_{QUEUE} where state in ('failed', 'cancelled')"

    def install(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(BUNDLED_SCHEMA_SQL)
        app = Absurd(self.url, queue_name=QUEUE)
        app.create_queue()
        app.close()

    def work(self) -> Program:
        return Program("-m", "benchmarks.contenders.absurd_app", self.url, str(self.steps))

    def connect(self) -> None:
        self._client = Absurd(self.url, queue_name=QUEUE)

    def start(self, n: int) -> None:
        for _ in range(n):
            self._client.spawn(TASK, {}, queue=QUEUE)
