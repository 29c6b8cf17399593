"""What the doctor says of facts that are hard to provoke; the rest is in tests/integration/test_doctor.py."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from kombu.entity import Queue

from sagas import Retry, Saga, Sagas, SqlStore, Step
from sagas.doctor import broker, database, setup, work, workers
from sagas.doctor.findings import Finding, Level
from sagas.doctor.workers import Worker
from sagas.errors import ConfigurationError
from sagas.stores.inspection import Backlog, Found
from sagas.testing.memory import MemoryStore

NOW = datetime(2026, 1, 2, tzinfo=UTC)
NONE = Found(0)


def codes(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    found = list(findings)
    assert all(finding.do for finding in found if finding.level is not Level.OK), "each says what to do"
    return [(finding.level.value, finding.code) for finding in found if finding.level is not Level.OK]


def sagas(*definitions: Saga, broker: str = "memory://", **conf: Any) -> Sagas:
    app = Celery("ill", broker=broker, set_as_current=False)
    app.conf.update({"worker_prefetch_multiplier": 1, **conf})
    return Sagas(app, SqlStore("sqlite://"), definitions)


def later(made: Sagas, **conf: Any) -> Sagas:
    made.app.conf.update(conf)
    return made


def saga(**options: Any) -> Saga:
    return Saga("s", Step("a", lambda: 1, compensation=None, **options))


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        (lambda: sagas(saga()), []),
        (sagas, [("problem", "no-definitions")]),
        (lambda: later(sagas(saga()), accept_content=["yaml"]), [("problem", "refused")]),
        (lambda: later(sagas(saga()), accept_content=["json", "pickle"]), [("problem", "refused")]),
        (lambda: sagas(saga(), task_create_missing_queues=False, task_queues=[Queue("q")]), [("problem", "refused")]),
        (lambda: sagas(saga(), task_always_eager=True), [("problem", "eager")]),
        (lambda: sagas(saga(), worker_prefetch_multiplier=4), [("warning", "prefetch")]),
        (lambda: sagas(saga(timeout=30, retry=Retry(max_attempts=1))), [("warning", "lease")]),
        (lambda: sagas(saga(timeout=31, retry=Retry(max_attempts=1))), []),
        (lambda: sagas(saga(timeout=30)), []),  # it has attempts left, and a message that comes again
        (lambda: sagas(saga(timeout=60), task_time_limit=60), [("warning", "time-limit")]),
        (lambda: sagas(saga(timeout=60), task_time_limit=61), []),
    ],
)
def test_settings(app: Any, expected: list[tuple[str, str]]) -> None:
    assert codes(setup.examine(app())) == expected


def test_redis_settings() -> None:
    options = {"socket_timeout": 30, "visibility_timeout": 300}
    silent = sagas(saga(timeout=299), broker="redis://127.0.0.1:1/0")
    set_ = sagas(saga(timeout=299), broker="redis://127.0.0.1:1/0", broker_transport_options=options)
    short = sagas(saga(timeout=300), broker="redis://127.0.0.1:1/0", broker_transport_options=options)
    assert codes(broker.examine(silent.app, 1)) == [("problem", "broker-unreachable"), ("warning", "socket-timeout")]
    assert codes(broker.examine(set_.app, 1)) == [("problem", "broker-unreachable")]
    assert codes(broker.examine(short.app, 1)) == [("problem", "broker-unreachable"), ("warning", "visibility-timeout")]


def test_tables() -> None:
    assert database.check_tables("0006", "0006", "migrate").level is Level.OK
    assert "do not exist" in database.check_tables(None, "0006", "migrate").says
    assert "needs 0006" in database.check_tables("0005", "0006", "migrate").says
    assert "newer version" in database.check_tables("0007", "0006", "migrate").says


def test_clocks() -> None:
    assert codes(database.check_skew(timedelta(seconds=1))) == []
    [ahead] = database.check_skew(timedelta(seconds=3))
    assert "3.0 s ahead of this machine's" in ahead.says
    [behind] = database.check_skew(timedelta(hours=-1))
    assert "3600.0 s behind this machine's" in behind.says


@pytest.mark.parametrize(
    ("dialect", "settings", "expected"),
    [
        ("postgresql", {"fsync": "on", "synchronous_commit": "on", "transaction_isolation": "read committed"}, []),
        ("postgresql", {"fsync": "off", "synchronous_commit": "off"}, [("problem", "durability")] * 2),
        ("postgresql", {"transaction_isolation": "repeatable read"}, [("problem", "isolation")]),
        ("postgresql", {"idle_in_transaction_session_timeout": "59000"}, [("warning", "database-timeout")]),
        ("postgresql", {"idle_in_transaction_session_timeout": "60000"}, []),
        ("postgresql", {"transaction_timeout": "1000"}, [("warning", "database-timeout")]),
        ("postgresql", {"statement_timeout": "500"}, [("warning", "database-timeout")]),
        ("postgresql", {"idle_session_timeout": "500"}, [("warning", "idle-session")]),
        ("mariadb", {"innodb_flush_log_at_trx_commit": "1", "wait_timeout": "600"}, []),
        ("mysql", {"innodb_flush_log_at_trx_commit": "0"}, [("problem", "durability")]),
        ("mariadb", {"innodb_flush_log_at_trx_commit": "2"}, [("warning", "durability")]),
        ("mariadb", {"wait_timeout": "28800"}, [("warning", "wait-timeout")]),
        ("mariadb", {"transaction_isolation": "REPEATABLE-READ"}, [("problem", "isolation")]),
        ("sqlite", {"synchronous": "2", "journal_mode": "wal", "foreign_keys": "1"}, []),
        (
            "sqlite",
            {"synchronous": "0", "journal_mode": "delete", "foreign_keys": "0"},
            [("problem", "durability"), ("warning", "journal"), ("warning", "foreign-keys")],
        ),
    ],
)
def test_databases(dialect: str, settings: dict[str, str], expected: list[tuple[str, str]]) -> None:
    assert codes(database.check_settings(dialect, settings, 60)) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, []),
        ({"unfinished": Found(1, NOW - timedelta(days=2), "id")}, [("warning", "old-saga")]),
        ({"stuck": Found(2, NOW, "id"), "letters": Found(2, NOW, "id")}, [("problem", "stuck")]),
        ({"behind_stuck": Found(1, NOW, "id")}, [("warning", "child-stuck")]),
        ({"letters": Found(1, NOW, "id")}, [("problem", "dead-letters")]),
        ({"standing": Found(1, NOW, "id")}, [("problem", "not-progressing")]),
        ({"not_sent": Found(1, NOW, "id")}, [("problem", "not-sent")]),
        ({"event_letters": Found(1, NOW, 1)}, [("warning", "event-dead-letters")]),
    ],
)
def test_work(found: dict[str, Found], expected: list[tuple[str, str]]) -> None:
    none = dict.fromkeys(
        ("unfinished", "stuck", "behind_stuck", "standing", "not_sent", "letters", "event_letters"), NONE
    )
    assert codes(work.check_backlog(Backlog(**{**none, **found}), NOW)) == expected


def test_the_outbox() -> None:
    assert codes(work.check_outbox(0, 0)) == []
    assert codes(work.check_outbox(9, 31)) == [("warning", "outbox")]
    assert codes(work.check_outbox(9, 301)) == [("problem", "outbox")]
    assert codes(work.check_unheard({})) == []
    assert codes(work.check_unheard({"orders.order.placed": 2})) == [("warning", "events-unheard")]


ABOUT: dict[str, Any] = {
    "definitions": {"s 1": '[{"step": "a", "compensation": false}]'}, "event_queues": [], "pool": "prefork", "time_limit": None, "soft_time_limit": None,
    "lease": 30.0, "redispatch_after": 30.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("queues", "about", "expected"),
    [
        (["celery"], ABOUT, []),
        (["other"], ABOUT, [("problem", "queue")]),
        (["celery"], None, [("problem", "worker-without-sagas")]),
        (["celery"], {**ABOUT, "definitions": {}}, [("problem", "worker-definitions")]),
        (["celery"], {**ABOUT, "definitions": {"s 1": '[{"step": "a"}]'}}, [("problem", "worker-definitions")]),
        (["celery"], {**ABOUT, "time_limit": 5, "pool": "solo"}, [("warning", "ignored-limits")]),
        (["celery"], {**ABOUT, "time_limit": 5}, []),
        (["celery"], {**ABOUT, "lease": 5.0}, [("warning", "timing-differs")]),
    ],
)
def test_workers(queues: list[str], about: Any, expected: list[tuple[str, str]]) -> None:
    worker = Worker("w@x", frozenset(queues), frozenset(), about)
    assert codes(workers.check(sagas(saga()), [worker])) == expected


def test_workers_that_answer_late() -> None:
    """What they did not say in time is not held against them, nor against the others."""
    late = Worker("late@x", frozenset(), frozenset(), None, is_late=True)
    assert codes(workers.check(sagas(saga()), [late])) == [("warning", "late-workers")]
    other = Worker("w@x", frozenset(["other"]), frozenset(), {**ABOUT, "lease": 5.0})
    expected = [("warning", "late-workers"), ("warning", "timing-differs")]
    assert codes(workers.check(sagas(saga()), [late, other])) == expected


def test_helpers_have_a_queue_of_their_own() -> None:
    routed = sagas(saga(), task_routes={"s.*": {"queue": "steps"}})
    worker = Worker("w@x", frozenset(["steps"]), frozenset(), ABOUT)
    assert codes(workers.check(routed, [worker])) == [("warning", "queue-of-helpers")]
    assert codes(workers.check(routed, [])) == [("problem", "no-workers")]


def test_a_store_that_is_no_database() -> None:
    from sagas.doctor import examine  # noqa: PLC0415

    with pytest.raises(ConfigurationError, match="has no lists"):
        examine(Sagas(Celery("ill", broker="memory://", set_as_current=False), MemoryStore()))
