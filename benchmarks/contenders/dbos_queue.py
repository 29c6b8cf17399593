"""DBOS Transact with its queue: one process publishes, another works.

Settings: 8 workflows at once, polling every 20 ms (the default is 1 s). On two cores a second worker process cost more
CPU time a workflow, and was not clearly faster.
"""

from __future__ import annotations

import os
from typing import ClassVar

from benchmarks.contenders.dbos_app import QUEUE, VERSION, WORKFLOW
from benchmarks.contenders.postgres_based import PostgresBased
from benchmarks.processes import Program


class Contender(PostgresBased):
    note = "one worker process; queue of worker_concurrency 8, polled every 20 ms (its default is 1 s)"
    processes: ClassVar[int] = int(os.environ.get("BENCH_DBOS_PROCESSES", "1"))
    unfinished = "select exists (select from dbos.workflow_status where status in ('ENQUEUED', 'PENDING'))"
    failed = "select count(*) from dbos.workflow_status where status not in ('ENQUEUED', 'PENDING', 'SUCCESS')"

    def work(self) -> Program:
        return Program("-m", "benchmarks.contenders.dbos_app", self.url, str(self.steps))

    def ready(self) -> bool:
        return bool(self.ask("select count(*) from dbos.queues"))

    def connect(self) -> None:
        from dbos import DBOSClient  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415 - only where it runs

        self._client = DBOSClient(system_database_url=self.url)

    def start(self, n: int) -> None:
        for _ in range(n):
            self._client.enqueue({"queue_name": QUEUE, "workflow_name": WORKFLOW, "app_version": VERSION})
