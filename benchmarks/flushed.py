"""A broker that lost all its messages, or a sleep that ends for many: what it costs recovery to send them again.

Recovery looks in the calling thread. Nobody works on the sagas: what is counted is only what brings them on their way.
"""

from __future__ import annotations

import time
from datetime import timedelta

import redis
from sqlalchemy import update

from benchmarks.celery_app import Input, make_app, step, undo
from benchmarks.processes import cpu_seconds
from benchmarks.report import Report, spread
from sagas import Saga, Sagas, Sleep, SqlStore, Step
from sagas.stores import schema
from tests.servers import Postgres, Redis

STEPS = 4
LOST, SLEPT = "messages lost", "a sleep ended"


def flushed(number: int, rounds: int) -> Report:
    report = Report("flushed")
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for turn in range(rounds):
        for what in (LOST, SLEPT):
            for size in (1, 50) if turn % 2 else (50, 1):
                found.setdefault((what, size), []).append(_measure(what, number, size))
    rows = []
    for (what, size), taken in sorted(found.items()):
        report.samples[f"{what}, {size}"] = taken
        rows.append(
            [
                what,
                str(size),
                spread([each["messages"] for each in taken], 0),
                spread([number / each["seconds"] for each in taken], 0),
                spread([each["here"] / number * 1000 for each in taken], 2),
                spread([each["there"] / number * 1000 for each in taken], 2),
            ]
        )
    report.table(
        f"{number:,} sagas of {STEPS} steps that recovery sends on their way; {rounds} rounds",
        ["", "batch_size", "messages", "sagas/s", "recovery's CPU, ms a saga", "servers' CPU, ms a saga"],
        rows,
    )
    return report


def _measure(what: str, number: int, size: int) -> dict[str, float]:
    with Redis() as broker, Postgres(fsync=True) as database:
        store = SqlStore(database.database())
        store.upgrade()
        steps = [Step(f"step_{i}", step, compensation=undo) for i in range(STEPS)]
        saga = Saga("bench", *([Sleep("night", timedelta(hours=8))] if what == SLEPT else []), *steps, input=Input)
        app = make_app(broker.url)
        sagas = Sagas(app, store, [saga], batch_size=size)
        client = redis.Redis.from_url(broker.url)
        servers = [process.pid for process in (*broker.processes(), *database.processes())]
        try:
            saga.start_many([Input()] * number)
            if what == SLEPT:
                _send(sagas, number)  # to their beds
            client.flushall()
            _let_time_pass(store)
            here, there, began = time.thread_time(), cpu_seconds(servers), time.perf_counter()
            _send(sagas, number)
            return {
                "seconds": time.perf_counter() - began,
                "here": time.thread_time() - here,
                "there": cpu_seconds(servers) - there,
                "messages": float(client.llen("celery")),  # type: ignore[arg-type, unused-ignore]
            }
        finally:
            client.close()
            app.close()
            store.engine.dispose()


def _send(sagas: Sagas[SqlStore], number: int) -> None:
    """Have recovery look until it has sent as many sagas on their way."""
    sent = 0
    while sent < number:
        sent += sagas.recovery.run_once()
        if sent == 1:  # a probe: a worker would take it at once, for the queue is empty
            sagas.store.arrived("bench.step_0", sagas.store.now())


def _let_time_pass(store: SqlStore) -> None:
    """Have everything be as if it had been written nine hours ago."""
    before = store.now() - timedelta(hours=9)
    moved = ("created_at", "updated_at", "stage_ready_at", "next_check_at")
    with store.engine.begin() as connection:
        connection.execute(update(schema.sagas).values(dict.fromkeys(moved, before)))
        connection.execute(update(schema.steps).values(due_at=before))
