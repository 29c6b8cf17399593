"""DBOS Transact with its queue: one process publishes, another works."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from benchmarks.contenders import Base
from benchmarks.contenders.dbos_app import QUEUE, VERSION, WORKFLOW
from benchmarks.processes import Program
from tests.servers import Postgres, wait_for


class Contender(Base):
    note = "one worker process; queue of worker_concurrency 8, polled every 20 ms (its default is 1 s)"

    def __init__(self, steps: int = 4) -> None:
        self.steps = steps
        self.server: Postgres | None = None
        self.worker: Program | None = None

    def setup(self) -> None:
        from dbos import DBOSClient  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415 - only where it runs

        self.server = Postgres(fsync=True).start()
        url = self.server.database().replace("+psycopg", "")
        self.worker = Program("-m", "benchmarks.contenders.dbos_app", url, str(self.steps))
        self._watch = psycopg.connect(url, autocommit=True)
        wait_for(self._is_ready, 60, "the queue is registered")
        self._client = DBOSClient(system_database_url=url)

    def _is_ready(self) -> bool:
        assert self.worker is not None
        self.worker.check()
        try:
            return bool(self._ask("select count(*) from dbos.queues"))
        except psycopg.Error:
            return False

    def start(self) -> Any:
        return self._client.enqueue({"queue_name": QUEUE, "workflow_name": WORKFLOW, "app_version": VERSION})

    def run(self, n: int) -> float:
        began = time.perf_counter()
        for _ in range(n):
            self.start()
        self._wait(0.01)
        return time.perf_counter() - began

    def one(self) -> float:
        began = time.perf_counter()
        self.start()
        self._wait(0.002)
        return time.perf_counter() - began

    def _wait(self, pause: float) -> None:
        left = "select exists (select from dbos.workflow_status where status in ('ENQUEUED', 'PENDING'))"
        wait_for(lambda: not self._ask(left), 240, "all are complete", pause)

    def _ask(self, question: str) -> Any:
        row = self._watch.execute(question).fetchone()  # type: ignore[arg-type, unused-ignore]
        assert row is not None
        return row[0]

    def roots(self) -> Mapping[str, Sequence[int]]:
        assert self.worker is not None
        assert self.server is not None
        assert self.server.process is not None
        return {"worker": [self.worker.pid], "database": [self.server.process.pid]}

    def teardown(self) -> None:
        if self.worker is not None:
            self.worker.stop()
        if self.server is not None:
            self.server.stop()
