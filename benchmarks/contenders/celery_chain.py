"""A plain Celery chain on Redis: nothing is kept, nothing is undone, a lost message is lost."""

from __future__ import annotations

from benchmarks.contenders.celery_based import Chain


class Contender(Chain):
    note = "no durability; its last task counts in Redis, so that its end is seen"
