"""The Celery app of the benchmarks: a saga, and a plain chain, of steps that do nothing.

A worker imports this module (`celery -A benchmarks.celery_app worker`) and finds its settings in BENCH.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis
from celery import Celery, Task, chain
from celery.canvas import Signature

from sagas import Each, Saga, Sagas, SqlStore, Step

#: Where the last task of a plain chain counts what is done: there is no other record of it.
DONE = "bench:done"


@dataclass
class Input:
    payload: str = ""


@dataclass
class Many:
    lines: list[int]


def one_item(item: int) -> int:
    return item


def step(payload: str) -> int:
    return len(payload)


def waiting_for(pause: float) -> Callable[[str], int]:
    """Return a step that waits so many seconds, as for the answer of another service."""

    def waiting_step(payload: str) -> int:
        time.sleep(pause)
        return len(payload)

    return waiting_step if pause else step


def undo() -> None:
    """There is nothing to undo."""


def make_app(broker: str) -> Celery:
    app = Celery("bench", broker=broker)
    app.conf.worker_hijack_root_logger = False
    app.conf.broker_connection_retry_on_startup = True
    return app


#: Seconds between two looks of a recovery that is as good as switched off.
NEVER = 86_400.0


def make_sagas(
    broker: str, database: str, steps: int, *, recovery: bool = True, pause: float = 0.0
) -> tuple[Celery, Saga]:
    """Return an app and its saga of steps. It also has `bench_each`, of items."""
    act = waiting_for(pause)
    saga = Saga("bench", *(Step(f"step_{i}", act, compensation=undo) for i in range(steps)), input=Input)
    each = Saga("bench_each", Each("each", one_item, compensation=undo, over="lines"), input=Many)
    app = make_app(broker)
    Sagas(app, SqlStore(database), [saga, each], recovery_interval=1.0 if recovery else NEVER)
    return app, saga


def make_chain(broker: str, steps: int, *, pause: float = 0.0) -> tuple[Celery, Any]:
    """Return an app, and a function that makes the chain of a payload. Nothing is kept, nothing is retried."""
    app = make_app(broker)
    app.conf.task_ignore_result = True
    counter, act = redis.Redis.from_url(broker), waiting_for(pause)

    def last(payload: str) -> None:
        act(payload)
        counter.incr(DONE)

    one: Task = app.task(act, name="chain.step", shared=False)
    end: Task = app.task(last, name="chain.last", shared=False)

    def make(payload: str) -> Signature:
        tasks = [one] * (steps - 1) + [end]
        signatures = [task.si(payload=payload) for task in tasks]
        return signatures[0] if steps == 1 else chain(*signatures, app=app)

    return app, make


def _from_environment() -> Celery | None:
    """Return the app of a worker; a publisher makes its own."""
    if (settings := os.environ.get("BENCH")) is None:
        return None
    given = json.loads(settings)
    return make_sagas(**given)[0] if "database" in given else make_chain(**given)[0]


app = _from_environment()
