"""Oban for Python, the open-source package: jobs in PostgreSQL.

It has no steps and no workflows (those are in Oban Pro, which is licensed and was not run), so each job enqueues the
next one. A step that runs twice after a crash therefore starts the rest of its flow twice.

Settings: workers are started by `oban start`, as recommended for production; one queue with a limit of 20, as in Oban's
own benchmark. A process fetches and acknowledges jobs in batches by itself.
"""

from __future__ import annotations

import asyncio
import os
from typing import ClassVar

import psycopg
import uvloop  # type: ignore[import-not-found, unused-ignore]
from oban import Oban  # type: ignore[import-not-found, unused-ignore]
from oban.schema import install_sql  # type: ignore[import-not-found, unused-ignore]

from benchmarks.contenders.oban_app import QUEUE, registered
from benchmarks.contenders.postgres_based import PostgresBased
from benchmarks.processes import Program


class Contender(PostgresBased):
    note = "a job for each step, which enqueues the next; 2 processes of `oban start`, queue with a limit of 20"
    processes: ClassVar[int] = int(os.environ.get("BENCH_OBAN_PROCESSES", "2"))
    unfinished = (
        f"select exists (select from oban_jobs where queue = '{QUEUE}'"
        " and state in ('available', 'scheduled', 'executing', 'retryable'))"
    )
    failed = "select count(*) from oban_jobs where state in ('discarded', 'cancelled') or attempt > 1"

    def install(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(install_sql())

    def work(self) -> Program:
        limit = os.environ.get("BENCH_OBAN_LIMIT", "20")
        return Program(
            *("-m", "oban", "start", "--dsn", self.url, "--queues", f"{QUEUE}:{limit}", "--log-level", "WARNING"),
            *("--cron-modules", "benchmarks.contenders.oban_app"),
        )

    def connect(self) -> None:
        self._loop = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._client = self._loop.run(self._open())

    async def _open(self) -> Oban:
        return Oban(pool=await Oban.create_pool(dsn=self.url))

    def start(self, n: int) -> None:
        self._loop.run(self.enqueue(n))

    async def enqueue(self, n: int) -> None:
        for _ in range(n):
            await self._client.enqueue(self._first())

    def _first(self) -> object:
        return registered.new({"left": self.steps - 1})
