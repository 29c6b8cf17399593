"""What an item of an `Each` costs, as the number of items in one saga grows."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import redis

from benchmarks.celery_app import make_sagas
from benchmarks.processes import Program, cpu_seconds
from benchmarks.report import Report, spread
from sagas import Saga, SagaHandle, SagaStatus, SqlStore
from tests.servers import Postgres, Redis

#: Seconds that a run may take.
_PATIENCE = 3600.0

_COUNTS = """
SELECT xact_commit, tup_returned + tup_fetched, tup_inserted + tup_updated
FROM pg_stat_database WHERE datname = current_database()
"""


def each(numbers: Sequence[int], rounds: int) -> Report:
    """Run sagas of so many items each, in turn, with one worker of four processes."""
    report = Report("each")
    with Redis() as broker, Postgres(fsync=True) as database:
        url = database.database()
        store = SqlStore(url)
        store.upgrade()
        app, _ = make_sagas(broker.url, url, 1)
        saga = app.sagas.orchestrator.sagas["bench_each", 1]
        servers = [process.pid for process in (*broker.processes(), *database.processes())]
        with _worker(broker.url, url) as worker:
            _run(saga, 20)
            bench = _Bench(saga, store, [worker.pid, *servers], worker.pid)
            samples: dict[int, list[dict[str, float]]] = {number: [] for number in numbers}
            for turn in range(rounds):
                for number in numbers if turn % 2 else reversed(numbers):
                    samples[number].append(bench.measure(number))
            largest = _largest_message(broker.url, lambda: _run(saga, 100))
        app.close()
        store.engine.dispose()
    report.samples = {str(number): taken for number, taken in samples.items()}
    _tell(report, samples, rounds, largest)
    return report


def _tell(report: Report, samples: dict[int, list[dict[str, float]]], rounds: int, largest: int) -> None:
    report.table(
        f"An `Each` of so many items, `max_concurrency=20`; {rounds} rounds; for each item",
        ["items", "CPU, ms", "commits", "rows read", "rows written", "ms", "worker's memory, MiB"],
        [
            [
                f"{number:,}",
                *(spread([one[what] for one in taken], digits) for what, digits in _COLUMNS.items()),
            ]
            for number, taken in samples.items()
        ],
    )
    report.notes.append(f"CPU is that of the worker, PostgreSQL and Redis. The largest message has {largest:,} bytes.")


_COLUMNS = {"cpu": 1, "commits": 1, "read": 0, "written": 1, "wall": 1, "memory": 0}


class _Bench:
    def __init__(self, saga: Saga[Any], store: SqlStore, roots: Sequence[int], worker: int) -> None:
        self._saga, self._store, self._roots, self._worker = saga, store, roots, worker

    def measure(self, number: int) -> dict[str, float]:
        began, cpu, counted = time.perf_counter(), cpu_seconds(self._roots), self._counts()
        memory = _run(self._saga, number, self._worker)
        wall, spent = time.perf_counter() - began, cpu_seconds(self._roots) - cpu
        commits, read, written = (after - before for after, before in zip(self._counts(), counted, strict=True))
        sample = {"cpu": spent * 1000, "wall": wall * 1000, "commits": commits, "read": read, "written": written}
        return {**{what: value / number for what, value in sample.items()}, "memory": memory}

    def _counts(self) -> Sequence[float]:
        time.sleep(1.5)  # sessions report to the statistics at most once a second
        with self._store.engine.connect() as connection:
            return [float(value) for value in connection.exec_driver_sql(_COUNTS).one()]


def _run(saga: Saga[Any], number: int, worker: int | None = None) -> float:
    """Run a saga of so many items. Return the most memory that the worker had, in MiB."""
    handle: SagaHandle = saga.start({"lines": list(range(number))})
    most, give_up = 0.0, time.monotonic() + _PATIENCE
    while handle.status is not SagaStatus.COMPLETED:
        if time.monotonic() > give_up:
            raise RuntimeError(f"{number} items are not done in {_PATIENCE:g} s: {handle.record}")
        if worker is not None:
            top = psutil.Process(worker)
            most = max(most, sum(each.memory_info().rss for each in [top, *top.children(recursive=True)]) / 2**20)
        time.sleep(0.2)
    return most


@contextmanager
def _worker(broker: str, database: str) -> Iterator[Program]:
    settings = json.dumps({"broker": broker, "database": database, "steps": 1})
    words = ("-m", "celery", "-A", "benchmarks.celery_app", "worker", "-c", "4", "--loglevel=ERROR")
    program = Program(*words, env={"BENCH": settings})
    try:
        yield program
    finally:
        program.stop()


def _largest_message(broker: str, run: Any) -> int:
    """Return the size of the largest command that Redis receives while a saga runs."""
    sizes, client = [0], redis.Redis.from_url(broker)

    def listen() -> None:
        with client.monitor() as monitor:  # type: ignore[no-untyped-call, unused-ignore]
            for command in monitor.listen():
                sizes.append(len(command["command"]))
                if command["command"].startswith("ECHO"):
                    return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    run()
    client.echo("done")
    thread.join(10)
    return max(sizes)
