"""What millions of finished sagas in the table cost, what it costs to delete them, and what an idle recovery costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from sqlalchemy import event

from benchmarks.contenders import load
from benchmarks.finished import STEPS, fill
from benchmarks.measure import Sample, round_of
from benchmarks.processes import cpu_seconds
from benchmarks.purging import purging
from benchmarks.report import Report, ratio, spread
from sagas import SqlStore
from sagas.checkpoints import SagaStatus
from sagas.stores import Filter
from sagas.stores.inspection import backlog
from tests.servers import Postgres

OURS, BASE = "sagas_redis", "celery_chain"

#: The days over which the finished sagas are spread. The youngest ends now.
DAYS = 90

#: Seconds for which a worker with nothing to do is watched.
IDLE = 20.0


def table(number: int, rounds: int, seconds: float) -> Report:
    report = Report("table")
    with Postgres(fsync=True) as server:
        assert server.process is not None
        full, empty = server.database(), server.database()
        for url in (full, empty):
            SqlStore(url).upgrade()
        age = timedelta(days=DAYS)
        took = fill(full.replace("+psycopg", ""), number, first=datetime.now(UTC) - age, pause=age / number)
        with psycopg.connect(full.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("vacuum analyze")
        report.notes.append(f"{number:,} finished sagas of {len(STEPS)} steps were made in {took:.0f} s.")
        measure(report, full, empty, server, rounds, seconds)
    return report


def measure(report: Report, full: str, empty: str, server: Postgres, rounds: int, seconds: float) -> None:
    """Measure the two databases of a server: one with finished sagas, one without."""
    assert server.process is not None
    _explain(report, full)
    _compare(report, {"finished": full, "empty": empty}, server.process.pid, rounds, seconds)
    purging(report, full, server.process.pid, rounds, seconds)
    _idle(report, {"finished": full, "empty": empty}, server)


_COMPENSATED, _STUCK = frozenset({SagaStatus.COMPENSATED}), frozenset({SagaStatus.STUCK})

# -- plans ------------------------------------------------------------------------------------------------------------


def _first_id(at: datetime) -> str:
    """Return an id below those of all sagas that began at this time."""
    digits = f"{int(at.timestamp() * 1000):012x}"
    return f"{digits[:8]}-{digits[8:]}-7"


def _explain(report: Report, url: str) -> None:
    """Explain the statements that the store really sends."""
    store = SqlStore(url, timeout=600.0)  # some take longer than a store waits for by itself
    newest = store.queries.select(limit=1)[0]
    middle = store.queries.select(limit=1, before=_first_id(datetime.now(UTC) - timedelta(days=DAYS / 2)))[0].id
    asked: dict[str, Callable[[], object]] = {
        "sweep: what is due": lambda: store.due(100, 10.0),
        "load by id": lambda: store.load(newest.id),
        "find by key": lambda: store.find(newest.name, newest.key),
        "list, newest": store.queries.select,
        "list, a page in the middle": lambda: store.queries.select(before=middle),
        "list, by status COMPENSATED": lambda: store.queries.select(Filter(statuses=_COMPENSATED)),
        "list, by status STUCK (none)": lambda: store.queries.select(Filter(statuses=_STUCK)),
        "list, by name": lambda: store.queries.select(Filter(name="refund")),
        "list, by name and status": lambda: store.queries.select(Filter(name="refund", statuses=_COMPENSATED)),
        "list, by name and status (none)": lambda: store.queries.select(Filter(name="refund", statuses=_STUCK)),
        "list, by step": lambda: store.queries.select(Filter(step=STEPS[1])),
        "list, by error (none)": lambda: store.queries.select(Filter(error="no such error"), limit=50),
        "list, those that need a person": lambda: store.queries.select(Filter(attention=True)),
        "count those that need a person": lambda: store.queries.count(Filter(attention=True)),
        "count all by name and status": store.queries.tally,
        "count by definition (check-deploy)": store.queries.in_flight,
        "doctor: what waits": lambda: backlog(store),
        "gauges": lambda: (store.queries.not_progressing(), store.queries.open_dead_letters(), store.queries.overdue()),
    }
    rows = []
    for what, ask in asked.items():
        store.now()  # so that it is not among the statements
        for statement, parameters in _statements(store, ask):
            plan, milliseconds, buffers = _plan(url, statement, parameters)
            rows.append([what, plan, f"{milliseconds:.2f}", f"{buffers:,}"])
            report.samples.setdefault("plans", []).append(
                {"what": what, "statement": statement, "plan": plan, "ms": milliseconds, "buffers": buffers}
            )
    report.table("EXPLAIN (ANALYZE, BUFFERS), warm", ["", "plan, from the top", "ms", "pages"], rows)


def _statements(store: SqlStore, ask: Callable[[], object]) -> list[tuple[str, Any]]:
    seen: list[tuple[str, Any]] = []

    def listen(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: Any) -> None:
        seen.append((statement, parameters))

    event.listen(store.engine, "before_cursor_execute", listen)
    try:
        ask()
    finally:
        event.remove(store.engine, "before_cursor_execute", listen)
    return seen


def _plan(url: str, statement: str, parameters: Any) -> tuple[str, float, int]:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for _ in range(2):  # the first one warms the cache
            question = f"explain (analyze, buffers, format json) {statement}"
            row = connection.execute(question, parameters).fetchone()  # type: ignore[arg-type, unused-ignore]
        assert row is not None
        top = row[0][0]
        return (
            _nodes(top["Plan"]),
            top["Execution Time"],
            top["Plan"]["Shared Hit Blocks"] + top["Plan"]["Shared Read Blocks"],
        )


def _nodes(plan: dict[str, Any]) -> str:
    index = f" {plan['Index Name']}" if "Index Name" in plan else ""
    filtered = f" (drops {plan['Rows Removed by Filter']:,.0f})" if plan.get("Rows Removed by Filter") else ""
    below = [_nodes(child) for child in plan.get("Plans", ())]
    return " < ".join([f"{plan['Node Type']}{index}{filtered}", *below])


# -- with and without -------------------------------------------------------------------------------------------------


def _compare(report: Report, urls: dict[str, str], pid: int, rounds: int, seconds: float) -> None:
    samples: dict[str, list[Sample]] = {"empty": [], "finished": [], BASE: []}
    for number in range(rounds):
        order = ("empty", "finished") if number % 2 else ("finished", "empty")
        found: dict[str, Sample | str] = {BASE: round_of(BASE, seconds=seconds)}
        for which in order:
            options: dict[str, Any] = {"database": urls[which], "database_pid": pid}
            found[which] = round_of(OURS, options, seconds=seconds)
        print(f"round {number + 1} of {rounds}:", found)
        for which, sample in found.items():
            if not any(isinstance(other, str) for other in found.values()):
                assert not isinstance(sample, str)
                samples[which].append(sample)
    rates = {which: [sample["rate"] for sample in each] for which, each in samples.items()}
    cpu = {
        role: {which: [sample[f"cpu {role}"] for sample in each] for which, each in samples.items() if which != BASE}
        for role in ("database", "publisher")
    }
    report.samples["throughput"] = samples
    report.table(
        f"{OURS} with the table empty at first, and with the finished sagas in it; {rounds} alternating rounds",
        ["", "sagas/s", f"of {BASE}", "of empty", "database CPU ms", "of empty", "caller's CPU ms", "of empty"],
        [
            [
                which,
                spread(rates[which]),
                ratio(rates[which], rates[BASE]),
                ratio(rates[which], rates["empty"]),
                *(
                    text
                    for each in cpu.values()
                    for text in (spread(each[which], 2), ratio(each[which], each["empty"]))
                ),
            ]
            for which in ("empty", "finished")
        ],
    )


# -- nothing to do ----------------------------------------------------------------------------------------------------


def _idle(report: Report, urls: dict[str, str], server: Postgres) -> None:
    """Watch workers that have nothing to do, beside plain Celery's."""
    assert server.process is not None
    rows = []
    watched: list[tuple[str, str, dict[str, Any]]] = [("plain Celery, 1 worker", BASE, {})]
    for which, url in urls.items():
        for workers in (1, 2):
            options: dict[str, Any] = {"database": url, "database_pid": server.process.pid, "workers": workers}
            watched.append((f"{which}, {workers} worker{'s' * (workers > 1)}", OURS, options))
    for what, name, given in watched:
        contender = load(name, given)
        try:
            contender.setup()
            contender.run(10)
            time.sleep(12)  # sessions tell their counts within 10 s
            before = _transactions(server, given.get("database")), _cpu(contender)
            time.sleep(IDLE)
            after = _transactions(server, given.get("database")), _cpu(contender)
        finally:
            contender.teardown()
        queries = (after[0] - before[0]) / IDLE
        spent = {role: (after[1][role] - before[1][role]) / IDLE * 100 for role in after[1]}
        report.samples.setdefault("idle", {})[what] = {"transactions a second": queries, "cpu percent": spent}
        rows.append(
            [what, f"{queries:.1f}", *(f"{spent.get(role, 0):.2f}" for role in ("worker", "database", "broker"))]
        )
    report.table(
        f"With nothing to do, for {IDLE:.0f} s: transactions a second, and per cent of one core",
        ["", "transactions/s", "worker %", "database %", "broker %"],
        rows,
    )


def _cpu(contender: Any) -> dict[str, float]:
    return {role: cpu_seconds(roots) for role, roots in contender.roots().items()}


def _transactions(server: Postgres, url: str | None) -> int:
    if url is None:
        return 0
    with server.connect() as connection:
        question = "select xact_commit + xact_rollback from pg_stat_database where datname = %s"
        row = connection.execute(question, [url.rpartition("/")[2]]).fetchone()
        assert row is not None
        return int(row[0])
