"""`celery -A app sagas ...`, as typed."""

import os
import subprocess
import sys
from pathlib import Path

from sagas import SagaRecord, SqlStore
from sagas.stores import migrate
from tests import forks
from tests.rig import ROOT


def run(app: str, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "celery", "-A", app, "sagas", *words]
    return forks.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def test_db_upgrade(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    for _ in range(2):
        done = run("config", "db", "upgrade", SAGAS_DATABASE_URL=url)
        assert done.returncode == 0, done.stderr
        assert "is up to date" in done.stdout
    store = SqlStore(url)
    assert migrate.current(store.engine) == migrate.head()
    store.engine.dispose()


def test_a_database_that_is_away() -> None:
    done = run("config", "db", "upgrade", SAGAS_DATABASE_URL="postgresql+psycopg://x@127.0.0.1:1/x")
    assert done.returncode == 2
    assert "Error: the database did not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_reads_well() -> None:
    done = run("config", "--help")
    assert "Manage sagas and their tables." in done.stdout


def test_graph_of_a_definition_and_of_a_saga(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    environment = {"SAGAS_DATABASE_URL": url, "BROKER_URL": "memory://"}
    store = SqlStore(url)
    store.upgrade()
    done = run("config", "graph", "place_order", **environment)
    assert done.stdout.startswith("flowchart TD\n"), done.stderr
    assert '{{"capture_payment"}}' in done.stdout
    at = store.now()
    outline = '[{"step": "reserve_stock"}, {"pivot": "gone"}]'
    store.insert(
        SagaRecord(
            id="0198aaaa", name="place_order", version=7, key="order-1", outline=outline, correlation_id="c", input="{}",
            created_at=at, updated_at=at, stage_ready_at=at,
        )
    )  # fmt: skip
    store.engine.dispose()
    for word in ("0198aaaa", "0198", "order-1"):
        done = run("config", "graph", word, "--format", "svg", **environment)
        assert done.stdout.startswith("<svg "), done.stderr
        assert ">gone (pivot)</text>" in done.stdout
    done = run("config", "graph", "nope", **environment)
    assert (done.returncode, "The definitions are: bill_all, book_" in done.stderr) == (2, True)
    done = run("config", "graph", "place_order", "--version", "3", **environment)
    assert (done.returncode, "saga 'place_order' has no version 3. It has: 1" in done.stderr) == (2, True)
