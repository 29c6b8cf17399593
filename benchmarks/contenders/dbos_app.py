"""The DBOS application: a workflow of no-op steps. Run as a program it is the worker of a queue."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

QUEUE = "bench"
WORKFLOW = "bench_workflow"
VERSION = "bench"


def launch(database: str, steps: int) -> Any:
    """Start DBOS in this process, with PostgreSQL's defaults and room for every thread; return the workflow."""
    from dbos import DBOS  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415 - only where it runs

    DBOS(
        config={
            "name": "bench",
            "executor_id": f"bench-{os.getpid()}",  # its limit of workflows at once is for each executor
            "system_database_url": database,
            "sys_db_pool_size": 20,
            "application_version": VERSION,
            "log_level": "ERROR",
        }
    )

    def step() -> int:
        return 0

    durable = DBOS.step(name="step")(step)

    def workflow() -> int:
        return sum(durable() for _ in range(steps))

    made = DBOS.workflow(name=WORKFLOW)(workflow)
    DBOS.launch()
    return made


if __name__ == "__main__":
    launch(sys.argv[1], int(sys.argv[2]))
    from dbos import DBOS  # type: ignore[import-not-found, unused-ignore]

    DBOS.register_queue(
        QUEUE,
        worker_concurrency=int(os.environ.get("BENCH_DBOS_CONCURRENCY", "8")),
        polling_interval_sec=float(os.environ.get("BENCH_DBOS_POLL", "0.02")),
    )
    threading.Event().wait()
