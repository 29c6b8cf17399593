"""This library on PostgreSQL and Redis, with all sagas of a round started by one `start_many`."""

from __future__ import annotations

from benchmarks.contenders.celery_based import Sagas


class Contender(Sagas):
    note = "one start_many, one prefork worker, -c 2, Celery's defaults"

    def start_all(self, n: int) -> None:
        self.saga.start_many({"payload": self.payload} for _ in range(n))
