"""This library on PostgreSQL and Redis, with all sagas of a round started by one `start_many`."""

from __future__ import annotations

import time

from benchmarks.contenders.celery_based import Sagas


class Contender(Sagas):
    note = "one start_many, one prefork worker, -c 2, Celery's defaults"

    def run(self, n: int) -> float:
        began = time.perf_counter()
        self._start_all(n)
        self.wait(0.01)
        return time.perf_counter() - began

    def run_started(self, n: int) -> float:
        for worker in self.workers:
            worker.pause()
        self._start_all(n)
        began = time.perf_counter()
        for worker in self.workers:
            worker.resume()
        self.wait(0.01)
        return time.perf_counter() - began

    def _start_all(self, n: int) -> None:
        self.saga.start_many({"payload": self.payload} for _ in range(n))
