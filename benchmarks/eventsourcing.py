"""How many events a second an event store takes and gives back, beside the library `eventsourcing`."""

from __future__ import annotations

import importlib
import multiprocessing
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any

from benchmarks.measure import Sample
from benchmarks.processes import ROOT, cpu_seconds
from benchmarks.report import Report, ratio, spread
from tests.servers import Postgres

OURS, BASE = "event_store", "eventsourcing_library"

#: Events that a stream has when it is replayed.
LENGTH = 2000

#: Forks: the parent holds no connection, and what a writer measures does not share an interpreter with another.
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Figure:
    """Something that is measured."""

    what: str
    per_transaction: int = 1
    writers: int = 1
    replay: bool = False


FIGURES = (
    Figure("append, 1 a transaction"),
    Figure("append, 100 a transaction", per_transaction=100),
    Figure("append, 1 a transaction, 4 writers", writers=4),
    Figure(f"replay of a stream of {LENGTH:,}", replay=True),
)


def eventsourcing(rounds: int, seconds: float) -> Report:
    """Both in each round, one after the other for each figure; who begins changes from round to round."""
    report = Report("eventsourcing", document=ROOT / "docs" / "event-sourcing.md")
    samples: dict[str, dict[str, list[Sample]]] = {each.what: {OURS: [], BASE: []} for each in FIGURES}
    with Postgres(fsync=True) as server:
        assert server.process is not None
        urls = {name: server.database() for name in (OURS, BASE)}
        for name, url in urls.items():
            _in_a_child(_prepare, name, url)
        for number in range(rounds):
            names = (OURS, BASE) if number % 2 else (BASE, OURS)
            for figure in FIGURES:
                print(f"round {number + 1} of {rounds}: {figure.what} ", end="", flush=True)
                for name in names:
                    stream = f"{figure.what} {number}"
                    sample = _measure(name, urls[name], figure, seconds, stream, server.process.pid)
                    samples[figure.what][name].append(sample)
                    print(f"{name} {sample['rate']:,.0f}/s ", end="", flush=True)
                print()
    report.samples = samples
    for what, title in (("rate", "Events a second"), ("cpu", "CPU microseconds an event, of writer and database")):
        report.table(
            f"{title}; median (lowest..highest) of {rounds} rounds",
            ["", "ours", "`eventsourcing`", "ours / `eventsourcing`"],
            [_row(figure, what, each) for figure, each in samples.items()],
        )
    return report


def _row(figure: str, what: str, each: Mapping[str, list[Sample]]) -> list[str]:
    ours, base = ([sample[what] for sample in each[name]] for name in (OURS, BASE))
    return [figure, spread(ours), spread(base), ratio(ours, base)]


def _measure(name: str, url: str, figure: Figure, seconds: float, stream: str, server: int) -> Sample:
    """Let so many processes do it for some seconds, all at once; return what all of them did and took."""
    ready, answers = _FORK.Barrier(figure.writers + 1), _FORK.Queue()
    children = [
        _FORK.Process(target=_work, args=(name, url, figure, seconds, f"{stream} {number}", ready, answers))
        for number in range(figure.writers)
    ]
    for child in children:
        child.start()
    ready.wait(120)
    before = cpu_seconds([server])
    told: list[tuple[int, float, float]] = [answers.get(timeout=60 + 10 * seconds) for _ in children]
    database = cpu_seconds([server]) - before
    for child in children:
        child.join()
    events = sum(done for done, _, _ in told)
    cpu = database + sum(spent for _, _, spent in told)
    return {"rate": sum(done / took for done, took, _ in told), "cpu": cpu / events * 1e6}


def _work(
    name: str, url: str, figure: Figure, seconds: float, stream: str, ready: Barrier, answers: Queue[Any]
) -> None:
    writer = _contender(name).Writer(url, stream)
    for _ in range(20):  # caches, pools, prepared statements
        writer.append(figure.per_transaction)
    if figure.replay:
        for _ in range(LENGTH // 100):
            writer.append(100)
        writer.replay()
    ready.wait(120)
    done, began, spent = 0, time.perf_counter(), time.process_time()
    while (took := time.perf_counter() - began) < seconds:
        if figure.replay:
            done += writer.replay()
        else:
            writer.append(figure.per_transaction)
            done += figure.per_transaction
    answers.put((done, took, time.process_time() - spent))


def _prepare(name: str, url: str) -> None:
    _contender(name).prepare(url)


def _in_a_child(target: Any, *arguments: Any) -> None:
    child = _FORK.Process(target=target, args=arguments)
    child.start()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"{arguments[0]}: it could not be set up")


def _contender(name: str) -> Any:
    return importlib.import_module(f"benchmarks.contenders.{name}")
