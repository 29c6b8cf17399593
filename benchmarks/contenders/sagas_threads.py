"""This library on PostgreSQL and Redis, with a worker of threads, whose checkpoints share commits."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.celery_based import Sagas


class Contender(Sagas):
    note = "one worker of threads, -c 16"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"pool": "threads", "slots": 16, **options})
