"""This library on PostgreSQL and Redis, as servers and workers of threads use it: what they write shares commits."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders.celery_based import Sagas


class Contender(Sagas):
    note = "as sagas_callers; two workers of threads, -c 8, one for each core"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"pool": "threads", "slots": 8, "workers": 2, "callers": 16, **options})
