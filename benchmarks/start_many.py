"""Thousands of sagas started one by one, and in one call: by the caller's clock and CPU, and the servers' CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory

from benchmarks.celery_app import make_sagas
from benchmarks.processes import cpu_seconds
from benchmarks.report import Report, ratio, spread
from sagas import SqlStore
from tests.servers import MariaDB, Postgres, Redis

STEPS = 4

_DATABASES = ("PostgreSQL", "MariaDB", "SQLite")


@contextmanager
def _database(name: str) -> Iterator[tuple[str, Sequence[Popen[bytes]]]]:
    if name == "SQLite":
        with TemporaryDirectory() as folder:
            yield f"sqlite:///{Path(folder) / 'bench.db'}", ()
        return
    with Postgres(fsync=True) if name == "PostgreSQL" else MariaDB() as server:
        yield server.database(), server.processes()


def start_many(number: int, rounds: int) -> Report:
    report = Report("start_many")
    rows = []
    for name in _DATABASES:
        one, many = _measure(name, number, rounds)
        report.samples[name] = {"start": one, "start_many": many}
        rate = [[number / each["seconds"] for each in taken] for taken in (many, one)]
        here = [[each["here"] / number * 1000 for each in taken] for taken in (many, one)]
        there = [[each["there"] / number * 1000 for each in taken] for taken in (many, one)]
        rows.append(
            [
                name,
                spread(rate[1], 0),
                spread(rate[0], 0),
                ratio(*rate),
                spread(here[1], 2),
                spread(here[0], 2),
                spread(there[1], 2),
                spread(there[0], 2),
            ]
        )
    report.table(
        f"{number:,} sagas started, with their first messages sent to Redis; {rounds} rounds",
        [
            "",
            "start(), sagas/s",
            "start_many(), sagas/s",
            "ratio",
            "start(), caller's CPU ms a saga",
            "start_many()",
            "start(), servers' CPU ms a saga",
            "start_many()",
        ],
        rows,
    )
    return report


def _measure(name: str, number: int, rounds: int) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    taken: Mapping[str, list[dict[str, float]]] = {"one": [], "many": []}
    with Redis() as broker, _database(name) as (url, database):
        store = SqlStore(url)
        store.upgrade()
        app, saga = make_sagas(broker.url, url, STEPS)
        servers = [process.pid for process in (*broker.processes(), *database)]
        saga.start({"payload": ""})

        def one(keys: list[str]) -> None:
            for key in keys:
                saga.start({"payload": ""}, key=key)

        def many(keys: list[str]) -> None:
            saga.start_many(({"payload": ""}, key) for key in keys)

        ways: dict[str, Callable[[list[str]], None]] = {"one": one, "many": many}
        for turn in range(rounds):
            for way in sorted(ways, reverse=bool(turn % 2)):
                keys = [f"{way}-{turn}-{n}" for n in range(number)]
                began, here, there = time.perf_counter(), time.process_time(), cpu_seconds(servers)
                ways[way](keys)
                taken[way].append(
                    {
                        "seconds": time.perf_counter() - began,
                        "here": time.process_time() - here,
                        "there": cpu_seconds(servers) - there,
                    }
                )
        app.close()
        store.engine.dispose()
    return taken["one"], taken["many"]
