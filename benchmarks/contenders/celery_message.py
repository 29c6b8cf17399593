"""One message of Celery's that does nothing: what each saga costs that is started by itself, whatever else it does."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.celery_based import Chain


class Contender(Chain):
    note = "one task for each flow in place of four, on a worker of threads, -c 16"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"pool": "threads", "slots": 16, **options, "steps": 1})
