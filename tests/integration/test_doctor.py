"""The doctor, on real servers and workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app.control import Inspect
from celery.contrib.testing.worker import start_worker
from sqlalchemy import create_engine, insert, text

from sagas import Saga, Sagas, SqlStore, Step
from sagas.doctor import Finding, Level, examine
from sagas.events import Events, Service, event
from sagas.events.brokers.redis_streams import RedisBroker
from sagas.stores import schema
from tests import forks
from tests.conftest import Rig
from tests.rig import ROOT
from tests.servers import MariaDB, Postgres, Redis, wait_for


@event("patients.patient.admitted")
class PatientAdmitted:
    name: str


@pytest.fixture(scope="module")
def redis_server() -> Iterator[Redis]:
    """A broker of their own: workers of other tests would answer too."""
    with Redis() as server:
        yield server


def found(sagas: Sagas, **options: Any) -> dict[str, Level]:
    findings = examine(sagas, **options)
    assert all(finding.do for finding in findings if finding.level is not Level.OK)
    return {finding.code: finding.level for finding in findings}


def examined_beside_a_worker(sagas: Sagas) -> Sequence[Finding]:
    """Ask again until the worker answers: on a busy machine it may have begun and not listen yet."""

    def answered() -> Sequence[Finding] | None:
        findings = examine(sagas)
        return None if {"no-workers", "late-workers"} & {finding.code for finding in findings} else findings

    findings: Sequence[Finding] = wait_for(answered, 60, "the worker answers")
    return findings


def found_beside_a_worker(sagas: Sagas) -> dict[str, Level]:
    return {finding.code: finding.level for finding in examined_beside_a_worker(sagas)}


def test_workers_that_answer(rig: Rig) -> None:
    rig.configure(worker_prefetch_multiplier=1, broker_transport_options={"socket_timeout": 30})
    queue = rig.settings["options"]["task_default_queue"]
    assert found(rig.sagas, timeout=0.5)["no-workers"] is Level.PROBLEM
    rig.worker("-Q", f"{queue},nobody")
    findings = examined_beside_a_worker(rig.sagas)
    bad = {finding.code: finding.says for finding in findings if finding.level is Level.PROBLEM}
    assert bad == {"durability": bad["durability"]}  # the tests' server does not sync
    assert "fsync is off" in bad["durability"]
    assert {finding.code for finding in findings if finding.level is Level.OK} >= {"broker", "database", "workers"}
    # A definition more than the worker has, with steps that go where nobody listens.
    rig.sagas.register(Saga("newer", Step("one", lambda: 1, compensation=None, queue="elsewhere")))
    findings = examined_beside_a_worker(rig.sagas)
    says = {finding.code: finding.says for finding in findings if finding.level is Level.PROBLEM}
    assert "lacks newer 1" in says["worker-definitions"]
    assert "no worker consumes 'elsewhere', which receives newer.one, sagas.fail" in says["queue"]


def test_a_worker_that_falls_silent(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers the ping and nothing more in time: nothing is said about its queues and its code."""
    worker = rig.worker()
    examined_beside_a_worker(rig.sagas)
    registered = Inspect.registered

    def stopped(inspect: Inspect, *args: Any) -> Any:
        worker.signal(signal.SIGSTOP)
        return registered(inspect, *args)

    monkeypatch.setattr(Inspect, "registered", stopped)
    try:
        codes = found(rig.sagas)
    finally:
        worker.signal(signal.SIGCONT)
    assert codes["late-workers"] is Level.WARNING
    assert codes.keys().isdisjoint({"no-workers", "queue", "worker-without-sagas", "workers"})


def test_a_worker_without_sagas(redis_server: Redis, postgres: Postgres) -> None:
    """Another app on the same broker and queue takes the messages of sagas and discards them."""
    bare = Celery("bare", broker=redis_server.url, set_as_current=False)
    app = Celery("doctor", broker=redis_server.url, set_as_current=False)
    bare.conf.task_default_queue = app.conf.task_default_queue = "bare"
    store = SqlStore(postgres.database())
    sagas = Sagas(app, store, [Saga("s", Step("a", lambda: 1, compensation=None))])
    with start_worker(bare, pool="solo", perform_ping_check=False, loglevel="ERROR"):
        codes = found_beside_a_worker(sagas)
    assert codes["worker-without-sagas"] is Level.PROBLEM
    assert codes["tables"] is Level.PROBLEM  # nobody has made them
    app.close()
    store.engine.dispose()


def test_workers_of_other_apps_are_their_own_affair(redis_server: Redis, tmp_path: Path) -> None:
    """They have queues of their own on the same broker; one of them has sagas too, in another database."""
    (tmp_path / "mail.py").write_text(
        f"from celery import Celery\napp = Celery('mail', broker={redis_server.url!r})\n"
        "app.conf.task_default_queue = 'doctor-mail'\n"
    )
    (tmp_path / "other.py").write_text(
        "from mail import app\nfrom sagas import Saga, Sagas, SqlStore, Step\n"
        f"store = SqlStore('sqlite:///{tmp_path / 'theirs.db'}')\nstore.upgrade()\n"
        "app.main = 'other'\n"
        "Sagas(app, store, [Saga('strange', Step('b', lambda: 1, compensation=None))], lease=7)\n"
        "app.conf.task_default_queue = 'doctor-other'\n"
    )
    store = SqlStore(f"sqlite:///{tmp_path / 'ours.db'}")
    store.upgrade()
    ours = Celery("ours", broker=redis_server.url, set_as_current=False)
    ours.conf.task_default_queue = "doctor-ours"
    sagas = Sagas(ours, store, [Saga("greet", Step("a", lambda: 1, compensation=None))])
    options = ["-P", "solo", "--without-gossip", "--without-mingle"]
    running = [
        forks.Popen(
            [sys.executable, "-m", "celery", "-A", name, "worker", "-n", f"{name}@x", *options],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for name in ("mail", "other")
    ]  # fmt: skip

    def both_answered() -> dict[str, Finding] | None:
        findings = {finding.code: finding for finding in examine(sagas)}
        others = findings.get("other-workers")
        return findings if others is not None and others.says.endswith("mail@x, other@x") else None

    try:
        findings = wait_for(both_answered, 60, "both answer")
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert {code for code, finding in findings.items() if finding.level is Level.PROBLEM} == {"no-workers"}
    assert findings.keys().isdisjoint({"timing-differs", "worker-definitions", "worker-without-sagas"})
    ours.close()
    store.engine.dispose()


def privileges(sagas: Sagas) -> tuple[str, str] | None:
    """Return the finding about what the connection may do."""
    findings = [each for each in examine(sagas, timeout=0.2) if each.code in ("privileges", "read-only")]
    assert all(finding.level is Level.PROBLEM and finding.do for finding in findings)
    return (findings[0].code, findings[0].says) if findings else None


def test_what_a_role_may_not_do(postgres: Postgres, mariadb: MariaDB, tmp_path: Path) -> None:
    app = Celery("doctor", broker="memory://", set_as_current=False)
    sagas = Sagas(app, SqlStore("sqlite://"), [Saga("s", Step("a", lambda: 1, compensation=None))])
    owner = SqlStore(postgres.database())
    owner.upgrade()

    def code() -> str | None:
        found = privileges(sagas)
        return found[0] if found else None

    def admin(*statements: str) -> None:
        with owner.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    name = f"worker_{owner.engine.url.database}"
    admin(
        f"CREATE ROLE {name} LOGIN", f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}",
    )  # fmt: skip
    sagas.store = store = SqlStore(owner.engine.url.set(username=name).render_as_string(hide_password=False))
    assert code() is None
    admin(f"REVOKE DELETE ON sagas_history FROM {name}")
    found = privileges(sagas)
    assert found is not None
    assert found[0] == "privileges"
    assert "not allowed to DELETE on sagas_history. The database says: permission denied" in found[1]
    admin(f"GRANT DELETE ON sagas_history TO {name}", f"REVOKE USAGE ON SEQUENCE sagas_history_id_seq FROM {name}")
    found = privileges(sagas)
    assert found is not None
    assert found[0] == "privileges"
    assert "not allowed to USAGE on sagas_history. The database says: permission denied for sequence" in found[1]
    admin(f"REVOKE SELECT ON ALL TABLES IN SCHEMA public FROM {name}")
    assert code() == "privileges"
    admin(
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}",
        f"REVOKE INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public FROM {name}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}",
    )
    assert code() == "read-only"
    admin(
        f"GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}",
        f"ALTER ROLE {name} SET default_transaction_read_only = on",
    )
    store.engine.dispose()
    found = privileges(sagas)
    assert found is not None
    assert found[0] == "read-only"
    assert "cannot execute INSERT in a read-only transaction" in found[1]

    mine = SqlStore(mariadb.database())
    mine.upgrade()
    with mine.engine.begin() as connection:
        connection.execute(text("CREATE OR REPLACE USER reader@'127.0.0.1'"))
        connection.execute(text(f"GRANT SELECT ON {mine.engine.url.database}.* TO reader@'127.0.0.1'"))
    sagas.store = reader = SqlStore(mine.engine.url.set(username="reader").render_as_string(hide_password=False))
    assert code() == "read-only"
    sagas.store = mine
    assert privileges(sagas) is None

    file = SqlStore(f"sqlite:///{tmp_path / 'x.db'}")
    file.upgrade()
    sagas.store = read = SqlStore(f"sqlite:///file:{tmp_path / 'x.db'}?mode=ro&uri=true")
    assert code() == "read-only"
    for each in (owner, store, mine, reader, file, read):
        each.engine.dispose()
    app.close()


def test_a_standby(tmp_path: Path) -> None:
    app = Celery("doctor", broker="memory://", set_as_current=False)
    server = Postgres()
    with server:
        store = SqlStore(server.database())
        store.upgrade()
        sagas = Sagas(app, store, [Saga("s", Step("a", lambda: 1, compensation=None))])
        assert privileges(sagas) is None
        store.engine.dispose()
        assert server.process is not None
        server.process.send_signal(server.grace)  # it must end in order, to be a standby without a primary
        server.process.wait(20)
        (server.folder / "data" / "standby.signal").touch()
        server.start()
        found = privileges(sagas)
        assert found is not None
        assert "is a standby" in found[1]
        store.engine.dispose()
    app.close()


def test_events(redis_server: Redis, tmp_path: Path) -> None:
    patients = Service("patients", publishes=[PatientAdmitted])

    @patients.on(PatientAdmitted)
    def greet(event: PatientAdmitted) -> None: ...

    store = SqlStore(f"sqlite:///{tmp_path / 'events.db'}")
    store.upgrade()
    events = Events([patients], engine=store.engine, broker=RedisBroker(redis_server.url), exchange="doctor")
    app = Celery("doctor", broker=redis_server.url, set_as_current=False)
    app.conf.task_default_queue = "doctor"
    sagas = Sagas(app, store, events=events)
    with store.engine.begin() as connection:
        events.publish(PatientAdmitted(name="ann"), connection)
        long_ago = store.now() - timedelta(hours=1)
        connection.execute(schema.outbox.update().values(created_at=long_ago))
        letter = {
            "queue": "patients.greet", "event_id": "e", "type": "t", "version": 1, "correlation_id": "c", "headers": "{}",
            "body": "{}", "error": "e", "attempts": 1, "created_at": long_ago,
        }  # fmt: skip
        connection.execute(insert(schema.event_dead_letters), letter)
    codes = found(sagas, timeout=0.5)
    assert codes["event-queue-missing"] is Level.PROBLEM
    assert codes["outbox"] is Level.PROBLEM
    assert codes["event-dead-letters"] is Level.WARNING
    events.apply_topology()
    assert "event-queue-missing" not in found(sagas, timeout=0.2)
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="ERROR"):
        assert "event-queues" not in found_beside_a_worker(sagas)
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="ERROR", queues=["doctor"]):
        assert found_beside_a_worker(sagas)["event-queues"] is Level.WARNING
    events.broker.close()
    app.close()
    store.engine.dispose()


@pytest.mark.parametrize("database", ["postgres", "mariadb", "sqlite"])
def test_databases(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """What is read of a real one is what the checks ask for."""
    url = f"sqlite:///{tmp_path / 'x.db'}"
    if database != "sqlite":
        server: Postgres | MariaDB = request.getfixturevalue(database)
        url = server.database()
    engine = create_engine(url, isolation_level="REPEATABLE READ") if database != "sqlite" else create_engine(url)
    store, good = SqlStore(engine), SqlStore(url)
    good.upgrade()
    app = Celery("doctor", broker="memory://", set_as_current=False)
    sagas = Sagas(app, store, [Saga("s", Step("a", lambda: 1, compensation=None))])
    codes = found(sagas, timeout=0.2)
    expected = {"postgres": "isolation", "mariadb": "isolation", "sqlite": "foreign-keys"}[database]
    assert expected in codes
    sagas.store = good
    codes = found(sagas, timeout=0.2)
    assert expected not in codes
    assert {"database", "tables-ok"} <= set(codes)
    if database == "postgres":
        with good.engine.begin() as connection:
            connection.execute(text("alter role postgres set idle_in_transaction_session_timeout = '5s'"))
        good.engine.dispose()
        assert found(sagas, timeout=0.2)["database-timeout"] is Level.WARNING
        with good.engine.begin() as connection:
            connection.execute(text("alter role postgres reset idle_in_transaction_session_timeout"))
    if database == "mariadb":
        assert codes["durability"] is codes["wait-timeout"] is Level.WARNING  # as the tests' server is
    app.close()
    engine.dispose()
    good.engine.dispose()


def test_work_that_waits(rig: Rig) -> None:
    first, second, third = (rig.start("line") for _ in range(3))
    stuck = schema.sagas.update().values(status="STUCK").where(schema.sagas.c.id == first.id)
    still = schema.sagas.update().values(idle_checks=5).where(schema.sagas.c.id == second.id)
    old = schema.sagas.update().where(schema.sagas.c.id == third.id)
    letter = {"saga_id": third.id, "step": "one", "direction": "FORWARD", "error": "e"}
    store = rig.sagas.store
    assert isinstance(store, SqlStore)
    now = store.now()
    with store.engine.begin() as connection:
        connection.execute(stuck)
        connection.execute(still)
        connection.execute(old.values(created_at=now - timedelta(days=3), outline='[{"step": "other"}]'))
        for _ in range(2):
            connection.execute(insert(schema.dead_letters), {**letter, "created_at": now})
    codes = found(rig.sagas, timeout=0.2)
    for code in ("stuck", "not-progressing", "dead-letters", "stranded"):
        assert codes[code] is Level.PROBLEM
    assert codes["old-saga"] is Level.WARNING


def test_as_typed(tmp_path: Path) -> None:
    def run(url: str, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SAGAS_DATABASE_URL": url, "BROKER_URL": "redis://127.0.0.1:1/0"}
        command = [sys.executable, "-m", "celery", "-A", "config", "sagas", "doctor", "--timeout", "1", *words]
        return forks.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    away = run("postgresql+psycopg://x@127.0.0.1:1/x")
    assert away.returncode == 1
    assert "database-unreachable: " in away.stdout
    assert "broker-unreachable: " in away.stdout
    assert "Traceback" not in away.stderr
    printed = json.loads(run(f"sqlite:///{tmp_path / 'x.db'}", "--json").stdout)
    assert {"level": "problem", "code": "tables"}.items() <= next(f for f in printed if f["code"] == "tables").items()
