"""What it costs to delete finished sagas, and whether that keeps up with those that finish."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from benchmarks.finished import fill
from benchmarks.measure import Sample, round_of
from benchmarks.processes import cpu_seconds
from benchmarks.report import Report, ratio, spread
from sagas import SqlStore
from sagas.stores.retention import Expired, purge

OURS = "sagas_redis"

#: Of so many sagas one is deleted in one go. `VACUUM` leaves dead rows alone that are on less than 2 % of the pages.
_PART = 40

#: How often the oldest are deleted and as many are made, to see whether the tables grow.
_TURNS = 2

_TABLES = ("sagas_saga", "sagas_step")


def purging(report: Report, url: str, pid: int, rounds: int, seconds: float) -> None:
    """Delete the oldest sagas of a filled database: alone, beside workers, and in turn with new ones."""
    bench = _Bench(url, pid)
    alone = bench.delete(bench.number)
    report.samples["purge"] = {"alone": alone}
    report.table(
        f"`purge` of the {bench.number:,} oldest, alone; PostgreSQL's CPU and WAL for each saga of 4 steps",
        ["", "deleted/s", "CPU ms", "WAL, bytes"],
        [[f"{bench.all:,} sagas", *(f"{alone[what]:,.{digits}f}" for what, digits in _FIGURES.items())]],
    )
    _beside_workers(report, bench, rounds, seconds)
    _in_turn(report, bench)


def _beside_workers(report: Report, bench: _Bench, rounds: int, seconds: float) -> None:
    """Run sagas with and without a purge beside them."""
    samples: dict[str, list[Sample]] = {"without": [], "beside": [], "purge": []}
    options: dict[str, Any] = {"database": bench.url, "database_pid": bench.pid}
    for number in range(rounds):
        for which in ("without", "beside") if number % 2 else ("beside", "without"):
            with bench.deleting(which == "beside") as deleted:
                found = round_of(OURS, options, seconds=seconds)
            assert not isinstance(found, str), found
            samples[which].append(found)
            samples["purge"] += deleted
        print(f"round {number + 1} of {rounds}:", {which: taken[-1]["rate"] for which, taken in samples.items()})
    report.samples["purge"]["beside workers"] = samples
    rates = {which: [sample["rate"] for sample in taken] for which, taken in samples.items()}
    report.table(
        f"Sagas that run while `purge` deletes others; {rounds} alternating rounds",
        ["", "sagas/s", "of those without", "deleted/s", "deleted for each that ran"],
        [
            ["without purge", spread(rates["without"]), ratio(rates["without"], rates["without"]), "-", "-"],
            [
                "beside purge",
                spread(rates["beside"]),
                ratio(rates["beside"], rates["without"]),
                spread(rates["purge"]),
                ratio(rates["purge"], rates["beside"]),
            ],
        ],
    )


def _in_turn(report: Report, bench: _Bench) -> None:
    """Delete the oldest and make as many new ones, in turn."""
    rows = [["before", *(f"{size:,.0f}" for size in bench.megabytes()), "-", "-"]]
    for turn in range(_TURNS):
        found = bench.delete(bench.number)
        took = bench.vacuum()
        bench.make(int(found["deleted"]), turn)
        sizes = [f"{size:,.0f}" for size in bench.megabytes()]
        rows.append([f"turn {turn + 1}", *sizes, f"{found['deleted']:,.0f}", f"{took:.0f}"])
        print(rows[-1])
    report.samples["purge"]["in turn"] = rows
    report.table(
        "The oldest deleted, `VACUUM`, and as many new ones made; MiB with indexes",
        ["", *_TABLES, "deleted and made", "VACUUM, s"],
        rows,
    )


_FIGURES = {"rate": 0, "cpu": 2, "wal": 0}


class _Bench:
    def __init__(self, url: str, pid: int) -> None:
        self.url, self.pid = url, pid
        self.store = SqlStore(url)
        self._watch = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
        self.all = int(self.ask("select reltuples::bigint from pg_class where oid = 'sagas_saga'::regclass"))
        self.number = self.all // _PART

    def ask(self, question: str, *values: Any) -> Any:
        row = self._watch.execute(question, values).fetchone()  # type: ignore[arg-type, unused-ignore]
        assert row is not None
        return row[0]

    def delete(self, number: int, stop: threading.Event | None = None) -> Sample:
        """Delete about so many of the oldest, in the way of `sagas purge`; until `stop`, if that is given."""
        finished = "status in ('COMPLETED', 'COMPENSATED')"
        newest: datetime = self.ask(
            f"select updated_at from sagas_saga where {finished} order by id offset %s limit 1",
            number,
        )
        which = Expired(older_than=self.store.now() - newest)
        began, cpu, wal = time.perf_counter(), cpu_seconds([self.pid]), self._wal()
        deleted = 0
        for count in purge(self.store, which, reason="benchmark"):
            deleted += count
            if stop is not None and stop.is_set():
                break
        took = time.perf_counter() - began
        return {
            "deleted": deleted,
            "rate": deleted / took,
            "cpu": (cpu_seconds([self.pid]) - cpu) / deleted * 1000,
            "wal": (self._wal() - wal) / deleted,
        }

    def _wal(self) -> float:
        return float(self.ask("select pg_current_wal_insert_lsn() - '0/0'"))

    @contextmanager
    def deleting(self, wanted: bool) -> Iterator[list[Sample]]:
        """Delete the oldest for as long as the block lasts; then its list has what came of it."""
        found: list[Sample] = []
        if not wanted:
            yield found
            return
        stop = threading.Event()
        thread = threading.Thread(target=lambda: found.append(self.delete(self.all // 10, stop)))
        thread.start()
        try:
            yield found
        finally:
            stop.set()
            thread.join()

    def make(self, number: int, turn: int) -> None:
        """Make so many young ones, with numbers of their own."""
        begin = self.all + (turn + 1) * 10 * number
        pause = timedelta(milliseconds=1)
        fill(
            self.url.replace("+psycopg", ""), number, first=datetime.now(UTC) - pause * begin, pause=pause, begin=begin
        )

    def vacuum(self) -> float:
        began = time.perf_counter()
        self._watch.execute("vacuum sagas_saga, sagas_step")
        return time.perf_counter() - began

    def megabytes(self) -> list[float]:
        return [self.ask("select pg_total_relation_size(%s::regclass)", table) / 2**20 for table in _TABLES]
