"""This library on PostgreSQL and Redis, with a worker of threads, whose checkpoints share commits."""

from __future__ import annotations

from benchmarks.contenders.celery_based import Sagas


class Contender(Sagas):
    note = "one worker of threads, -c 16"
    pool = ("-P", "threads", "-c", "16")
