"""A backlog that nobody served for minutes, and how fast it is worked off: with recovery, and without.

While the backlog waits, a worker of another queue is there, with its recovery. Then a worker for the queue is started.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import redis
from sqlalchemy import func, select

from benchmarks.celery_app import make_sagas
from benchmarks.processes import Program, cpu_seconds
from benchmarks.report import Report, ratio, spread
from sagas import SqlStore
from sagas.stores import schema
from tests.servers import Postgres, Redis, wait_for

STEPS = 4

#: Seconds after which a backlog that is not worked off is given up.
PATIENCE = 1_800.0

#: Where fewer sagas than this wait, a message more or less says nothing.
FEW = 100


@dataclass(frozen=True)
class Setup:
    """How the worker runs that works the backlog off. `share`: of the sagas that were asked for."""

    options: tuple[str, ...]
    sqlite: bool = False
    share: float = 1.0


SETUPS: Mapping[str, Setup] = {
    "prefork, 2 children": Setup(("-c", "2")),
    "prefork, a child for each message": Setup(("-c", "2", "--max-tasks-per-child", "1"), share=0.2),
    "SQLite, 4 children": Setup(("-c", "4"), sqlite=True, share=0.5),
    "gevent, 20 greenlets": Setup(("-P", "gevent", "-c", "20")),
}


@dataclass
class Drained:
    """One backlog."""

    rate: float  #: sagas a second, from the first one that was complete to the last
    worst: float  #: messages in the queue for each saga that waited, at the worst moment
    dispatches: float  #: for each saga, its start included
    cpu: float  #: milliseconds a saga, while the backlog was worked off: of workers, database and broker


def backlog(number: int, rounds: int, away: float) -> Report:
    report = Report("backlog")
    rows = []
    for name, setup in SETUPS.items():
        count = int(number * setup.share)
        found: dict[bool, list[Drained]] = {True: [], False: []}
        for _ in range(rounds):
            for recovery in (True, False):
                found[recovery].append(_drain(setup, count, away, recovery=recovery))
        on, off = found[True], found[False]
        report.samples[name] = {"with": [vars(one) for one in on], "without": [vars(one) for one in off]}
        rows.append(
            [
                name,
                f"{count:,}",
                spread([one.rate for one in on]),
                spread([one.rate for one in off]),
                ratio([one.rate for one in on], [one.rate for one in off]),
                ratio([one.cpu for one in on], [one.cpu for one in off]),
                spread([one.worst for one in on], 2),
                spread([one.dispatches for one in on], 3),
            ]
        )
    report.table(
        f"A backlog that waited for {away:g} s; {rounds} rounds",
        [
            "",
            "sagas",
            "sagas/s",
            "without recovery",
            "ratio",
            "CPU ratio",
            "messages a waiting saga",
            "dispatches a saga",
        ],
        rows,
    )
    return report


@contextmanager
def _database(setup: Setup) -> Iterator[tuple[str, Sequence[Popen[bytes]]]]:
    if setup.sqlite:
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{Path(folder) / 'bench.db'}", ()
        return
    with Postgres(fsync=True) as server:
        yield server.database(), server.processes()


def _drain(setup: Setup, number: int, away: float, *, recovery: bool) -> Drained:
    with Redis() as broker, _database(setup) as (url, database):
        servers = [*broker.processes(), *database]
        store = SqlStore(url)
        store.upgrade()
        _, saga = make_sagas(broker.url, url, STEPS)
        settings = {"broker": broker.url, "database": url, "steps": STEPS, "recovery": recovery}
        command = ("-m", "celery", "-A", "benchmarks.celery_app", "worker", "-l", "WARNING", "--without-mingle")
        env = {"BENCH": json.dumps(settings)}
        elsewhere = Program(*command, "-c", "1", "-Q", "elsewhere", "-n", "elsewhere@bench", env=env)
        client = redis.Redis.from_url(broker.url)
        worker: Program | None = None
        worst, began = 0.0, time.monotonic()

        def waiting() -> int:
            with store.engine.connect() as connection:
                return int(connection.execute(_WAITING).scalar_one())

        def look() -> int:
            nonlocal worst
            left = waiting()
            if left >= FEW:
                worst = max(worst, int(client.llen("celery")) / left)  # type: ignore[arg-type, unused-ignore]
            return left

        try:
            for n in range(number):
                saga.start({"payload": ""}, key=str(n))
            wait_for(lambda: look() >= 0 and time.monotonic() - began >= away, away + 60, "the backlog has waited", 0.5)
            worker = Program(*command, *setup.options, "-n", "worker@bench", env=env)
            wait_for(lambda: look() < number, 120, "the first saga is complete", 0.2)
            processes = [elsewhere.pid, worker.pid, *(process.pid for process in servers)]
            first, left, spent = time.monotonic(), waiting(), cpu_seconds(processes)
            wait_for(lambda: look() == 0, PATIENCE, "all sagas are complete", 0.2)
            seconds, spent = time.monotonic() - first, cpu_seconds(processes) - spent
            with store.engine.connect() as connection:
                dispatches = float(connection.execute(select(func.avg(schema.sagas.c.dispatches))).scalar_one())
            return Drained(left / seconds, worst, dispatches, spent / left * 1000)
        finally:
            elsewhere.stop()
            if worker is not None:
                worker.stop()
            client.close()
            store.engine.dispose()


_WAITING = select(func.count()).where(schema.sagas.c.next_check_at.is_not(None))
