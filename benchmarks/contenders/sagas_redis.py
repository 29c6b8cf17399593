"""This library on PostgreSQL and Redis."""

from __future__ import annotations

from benchmarks.contenders.celery_based import Sagas


class Contender(Sagas):
    note = "one prefork worker, -c 2, Celery's defaults"
