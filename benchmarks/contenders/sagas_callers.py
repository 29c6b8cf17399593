"""This library on PostgreSQL and Redis, where the threads of a web server start sagas."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.celery_based import Sagas


class Contender(Sagas):
    note = "as sagas_redis; started by 16 threads of one process"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"callers": 16, **options})
