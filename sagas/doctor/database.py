"""Check the database that stores the sagas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from sagas.app import Sagas
from sagas.doctor.findings import Finding, ok, problem, warning
from sagas.doctor.setup import longest_step
from sagas.errors import StoreRefused, StoreUnavailable
from sagas.stores import OperatorStore
from sagas.stores.inspection import Forbidden, forbidden, is_standby, settings, tables

__all__ = ["OUTDATED", "UNREACHABLE", "check_privileges", "check_settings", "check_skew", "check_tables", "examine"]

UNREACHABLE = "database-unreachable"
OUTDATED = "tables"

READ_ONLY = "read-only"
PRIVILEGES = "privileges"

#: How many tables are named at most.
_MOST_TABLES = 3

#: With a larger skew, times in logs, ids and events no longer show what came first.
_SKEW = timedelta(seconds=2)

#: Seconds. MySQL's default keeps the locks of a lost worker for 8 hours.
_LONG_WAIT = 3600

Settings = Mapping[str, str]


def examine(sagas: Sagas, store: OperatorStore) -> Iterator[Finding]:
    """Check the database."""
    try:
        skew = store.now() - datetime.now(UTC)
        found = settings(store)
        refusals = forbidden(store, events=sagas.events is not None)
        standby = is_standby(store)
        current, head = tables(store)
    except StoreRefused as error:
        yield problem(PRIVILEGES, f"{store!r}: {error}", "grant the privilege to the workers' role")
        return
    except StoreUnavailable as error:
        yield problem(
            UNREACHABLE,
            f"{store!r}: {error}. No saga can be started, and no step can begin or end",
            "start the database or fix the URL; workers continue automatically when it is back",
        )
        return
    yield ok("database", f"{store!r} answers: {store.dialect} {found['version']}")
    yield check_tables(current, head, store.how_to_upgrade)
    yield from check_privileges(refusals, standby=standby)
    yield from check_skew(skew)
    yield from check_settings(store.dialect, found, longest_step(sagas))


def check_tables(current: str | None, head: str | None, upgrade: str) -> Finding:
    """Compare the tables' revision with the one that this code needs. `upgrade`: how to upgrade the tables."""
    if current == head:
        return ok("tables-ok", f"the tables are at revision {current}, which this code needs")
    if current is None:
        return problem(OUTDATED, "the tables do not exist", upgrade)
    if str(current) > str(head):
        return problem(
            OUTDATED,
            f"the tables are at revision {current}, which belongs to a newer version of the library; this version "
            f"knows {head}",
            "deploy the newer version here too",
        )
    return problem(
        OUTDATED,
        f"the tables are at revision {current}, but this code needs {head}",
        f"{upgrade}, before workers with this code start",
    )


def check_privileges(refusals: Sequence[Forbidden], *, standby: bool = False) -> Iterator[Finding]:
    """Check what this connection is not allowed to do. `standby`: the server replicates another one."""
    if standby:
        yield problem(
            READ_ONLY,
            "the database is a standby and accepts no writes: no saga can be started, and no step can begin or end",
            "connect to the primary; with PostgreSQL a URL may name both, with target_session_attrs=read-write",
        )
        return
    if not refusals:
        return
    refused: dict[str, list[str]] = {}
    for each in refusals:
        refused.setdefault(each.table, []).append(each.what)
    forbidden_here = "; ".join(
        f"{', '.join(what)} on {table}" for table, what in sorted(refused.items())[:_MOST_TABLES]
    )
    more = f"; and on {len(refused) - _MOST_TABLES} more tables" if len(refused) > _MOST_TABLES else ""
    yield problem(
        READ_ONLY if all({"INSERT", "UPDATE", "DELETE"} <= set(what) for what in refused.values()) else PRIVILEGES,
        f"this connection is not allowed to {forbidden_here}{more}. The database says: {refusals[0].says}",
        "run the doctor as the workers' role; grant that role SELECT, INSERT, UPDATE and DELETE on the library's "
        "tables, and USAGE on their sequences, and make sure that its transactions are not read-only",
    )


def check_skew(skew: timedelta) -> Iterator[Finding]:
    """Check how far the database's clock is ahead of ours."""
    if abs(skew) > _SKEW:
        way = "ahead of" if skew > timedelta() else "behind"
        yield warning(
            "clock-skew",
            f"the database's clock is {abs(skew.total_seconds()):.1f} s {way} this machine's. Sagas use the "
            "database's clock, but saga ids, event times and logs use this machine's",
            "synchronize both clocks with NTP",
        )


def check_settings(dialect: str, found: Settings, longest: float) -> Iterator[Finding]:
    """Check the database's settings. `longest`: seconds that a step may take."""
    match dialect:
        case "postgresql":
            yield from _postgresql(found, longest)
        case "sqlite":
            yield from _sqlite(found)
        case _:
            yield from _mysql(found)
    isolation = found.get("transaction_isolation", "read committed").lower().replace("-", " ")
    if isolation != "read committed":
        yield problem(
            "isolation",
            f"transactions are {isolation.upper()}, but the engine needs READ COMMITTED: the loser of a race would "
            "read the old record again, or fail",
            'create_engine(url, isolation_level="READ COMMITTED"), or pass SqlStore the URL',
        )


def _loses(what: str) -> str:
    return f"{what}: after a crash, the database loses commits that it has acknowledged, and actions run again"


def _postgresql(found: Settings, longest: float) -> Iterator[Finding]:
    for name in ("fsync", "synchronous_commit"):
        if found.get(name) == "off":
            yield problem("durability", _loses(f"{name} is off"), f"{name} = on")
    rules: tuple[tuple[str, Callable[[float], bool], str], ...] = (
        ("idle_in_transaction_session_timeout", lambda s: s < longest, "a step that uses step.session is cut off"),
        ("transaction_timeout", lambda s: s < longest, "a step that uses step.session is cut off"),
        ("statement_timeout", lambda s: s < 1, "the engine's own statements may be cut off"),
    )
    for name, short, says in rules:
        seconds = int(found.get(name) or 0) / 1000
        if seconds and short(seconds):
            yield warning(
                "database-timeout",
                f"{name} is {seconds:g} s, but a step may take {longest:g} s: {says}, and counts as failed",
                f"raise {name} for the workers' role, or lower the steps' timeouts",
            )
    if seconds := int(found.get("idle_session_timeout") or 0) / 1000:
        yield warning(
            "idle-session",
            f"idle_session_timeout is {seconds:g} s: pooled connections are cut, and the first query after a pause "
            "is sent twice",
            "set idle_session_timeout = 0 for the workers' role",
        )


def _mysql(found: Settings) -> Iterator[Finding]:
    flush = found.get("innodb_flush_log_at_trx_commit", "1")
    if flush != "1":
        lost = "up to a second of commits when it is killed" if flush == "0" else "some when its machine crashes"
        level = problem if flush == "0" else warning
        says = f"{_loses(f'innodb_flush_log_at_trx_commit is {flush}')} ({lost})"
        yield level("durability", says, "innodb_flush_log_at_trx_commit = 1")
    wait = int(float(found.get("wait_timeout", "0")))
    if wait > _LONG_WAIT:
        yield warning(
            "wait-timeout",
            f"wait_timeout is {wait} s: the locks of a lost worker may block others for that long",
            "lower wait_timeout for the workers' user, but keep it above the longest step: 600",
        )


def _sqlite(found: Settings) -> Iterator[Finding]:
    if found["synchronous"] == "0":
        yield problem("durability", _loses("synchronous is OFF"), "PRAGMA synchronous = NORMAL")
    if found["journal_mode"] not in ("wal", "memory"):
        yield warning(
            "journal",
            f"journal_mode is {found['journal_mode']}: readers and the writer wait for each other",
            "PRAGMA journal_mode = WAL, or pass SqlStore the URL",
        )
    if found["foreign_keys"] != "1":
        yield warning(
            "foreign-keys",
            "foreign_keys is off: a saga that is deleted by hand leaves its steps and history behind",
            "PRAGMA foreign_keys = ON on each connection, or pass SqlStore the URL",
        )
