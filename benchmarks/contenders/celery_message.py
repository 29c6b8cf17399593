"""One message of Celery's that does nothing: what each saga costs that is started by itself, whatever else it does."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.celery_based import Chain


class Contender(Chain):
    note = "one task for each flow in place of four, on a worker of threads, -c 16"
    pool = ("-P", "threads", "-c", "16")

    def __init__(self, steps: int = 4, **options: Any) -> None:  # noqa: ARG002 - it is of one step whatever is asked
        super().__init__(steps=1, **options)
