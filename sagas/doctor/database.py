"""The database that the sagas are kept in."""

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

#: Tables that are named at most.
_MOST_TABLES = 3

#: From here on times in logs, ids and events no longer tell what came first.
_SKEW = timedelta(seconds=2)

#: Seconds. MySQL's own default keeps the locks of a lost worker for 8 hours.
_LONG_WAIT = 3600

Settings = Mapping[str, str]


def examine(sagas: Sagas, store: OperatorStore) -> Iterator[Finding]:
    """Look at the database."""
    try:
        skew = store.now() - datetime.now(UTC)
        found = settings(store)
        refusals = forbidden(store, events=sagas.events is not None)
        standby = is_standby(store)
        current, head = tables(store)
    except StoreRefused as error:
        yield problem(PRIVILEGES, f"{store!r}: {error}", "grant it to the role of the workers")
        return
    except StoreUnavailable as error:
        yield problem(
            UNREACHABLE,
            f"{store!r}: {error}. Nothing can be started, and no step can begin or end",
            "start it, or mend the URL; workers go on by themselves when it is back",
        )
        return
    yield ok("database", f"{store!r} answers: {store.dialect} {found['version']}")
    yield check_tables(current, head, store.how_to_upgrade)
    yield from check_privileges(refusals, standby=standby)
    yield from check_skew(skew)
    yield from check_settings(store.dialect, found, longest_step(sagas))


def check_tables(current: str | None, head: str | None, upgrade: str) -> Finding:
    """Compare the revision that the tables are at with the one that this code needs. `upgrade`: brings them there."""
    if current == head:
        return ok("tables-ok", f"the tables are at revision {current}, which this code needs")
    if current is None:
        return problem(OUTDATED, "the tables are not there", upgrade)
    if str(current) > str(head):
        return problem(
            OUTDATED,
            f"the tables are at revision {current}, of a newer version of the library; this one knows {head}",
            "deploy the newer version here too",
        )
    return problem(
        OUTDATED,
        f"the tables are at revision {current}, and this code needs {head}",
        f"{upgrade}, before workers with this code start",
    )


def check_privileges(refusals: Sequence[Forbidden], *, standby: bool = False) -> Iterator[Finding]:
    """Look at what this connection may not do. `standby`: the server follows another one."""
    if standby:
        yield problem(
            READ_ONLY,
            "the database is a standby, which takes no writes: nothing can be started, and no step can begin or end",
            "connect to the primary; with PostgreSQL a URL may name both, with target_session_attrs=read-write",
        )
        return
    if not refusals:
        return
    refused: dict[str, list[str]] = {}
    for each in refusals:
        refused.setdefault(each.table, []).append(each.what)
    told = "; ".join(f"{', '.join(what)} on {table}" for table, what in sorted(refused.items())[:_MOST_TABLES])
    more = f"; and on {len(refused) - _MOST_TABLES} tables more" if len(refused) > _MOST_TABLES else ""
    yield problem(
        READ_ONLY if all({"INSERT", "UPDATE", "DELETE"} <= set(what) for what in refused.values()) else PRIVILEGES,
        f"this connection may not {told}{more}. The database says: {refusals[0].says}",
        "run the doctor as the role of the workers; grant that role SELECT, INSERT, UPDATE and DELETE on the tables of "
        "the library, and USAGE on their sequences, and see that its transactions are not read-only",
    )


def check_skew(skew: timedelta) -> Iterator[Finding]:
    """Look at how far the clock of the database is ahead of ours."""
    if abs(skew) > _SKEW:
        way = "ahead of" if skew > timedelta() else "behind"
        yield warning(
            "clock-skew",
            f"the database's clock is {abs(skew.total_seconds()):.1f} s {way} this machine's. Sagas go by the "
            "database's; but ids of sagas, times of events and logs are of this machine",
            "have both machines keep time, by NTP",
        )


def check_settings(dialect: str, found: Settings, longest: float) -> Iterator[Finding]:
    """Look at the settings of a database. `longest`: seconds that a step may take."""
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
            f"transactions are {isolation.upper()}, and the engine is made for READ COMMITTED: whoever loses a race "
            "would read the old record again, or fail",
            'create_engine(url, isolation_level="READ COMMITTED"), or give SqlStore the URL',
        )


def _loses(what: str) -> str:
    return f"{what}: a database that crashes loses commits that it has acknowledged, and actions run again"


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
                f"{name} is {seconds:g} s, and a step may take {longest:g} s: {says}, and counts as failed",
                f"raise {name} for the role of the workers, or lower the timeouts of steps",
            )
    if seconds := int(found.get("idle_session_timeout") or 0) / 1000:
        yield warning(
            "idle-session",
            f"idle_session_timeout is {seconds:g} s: pooled connections are cut, and the first question after a pause "
            "is asked twice",
            "set idle_session_timeout = 0 for the role of the workers",
        )


def _mysql(found: Settings) -> Iterator[Finding]:
    flush = found.get("innodb_flush_log_at_trx_commit", "1")
    if flush != "1":
        lost = "up to a second of them when it is killed" if flush == "0" else "some when its machine crashes"
        level = problem if flush == "0" else warning
        says = f"{_loses(f'innodb_flush_log_at_trx_commit is {flush}')} ({lost})"
        yield level("durability", says, "innodb_flush_log_at_trx_commit = 1")
    wait = int(float(found.get("wait_timeout", "0")))
    if wait > _LONG_WAIT:
        yield warning(
            "wait-timeout",
            f"wait_timeout is {wait} s: so long may the locks of a worker that is gone hold others up",
            "lower wait_timeout for the user of the workers, above the longest step: 600",
        )


def _sqlite(found: Settings) -> Iterator[Finding]:
    if found["synchronous"] == "0":
        yield problem("durability", _loses("synchronous is OFF"), "PRAGMA synchronous = NORMAL")
    if found["journal_mode"] not in ("wal", "memory"):
        yield warning(
            "journal",
            f"journal_mode is {found['journal_mode']}: readers and the one writer wait for each other",
            "PRAGMA journal_mode = WAL, or give SqlStore the URL",
        )
    if found["foreign_keys"] != "1":
        yield warning(
            "foreign-keys",
            "foreign_keys is off: what is deleted by hand leaves its steps and history behind",
            "PRAGMA foreign_keys = ON on each connection, or give SqlStore the URL",
        )
