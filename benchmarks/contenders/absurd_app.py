"""The Absurd application: a task of no-op steps. Run as a program it is one worker process."""

from __future__ import annotations

import os
import sys
from typing import Any

from absurd_sdk import Absurd  # type: ignore[import-not-found, unused-ignore]

QUEUE = "bench"
TASK = "bench"


def step() -> int:
    return 0


def work(database: str, steps: int) -> None:
    """Serve the queue until this process is ended."""
    app = Absurd(database, queue_name=QUEUE)

    def task(_params: Any, ctx: Any) -> int:
        return sum(ctx.step(f"step_{number}", step) for number in range(steps))

    app.register_task(TASK)(task)
    app.start_worker(
        batch_size=int(os.environ.get("BENCH_ABSURD_BATCH", "10")),
        poll_interval=float(os.environ.get("BENCH_ABSURD_POLL", "0.02")),
    )


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
