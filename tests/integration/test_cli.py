"""`celery -A app sagas ...`, as typed."""

import os
import subprocess
import sys
from pathlib import Path

from sagas import SqlStore
from sagas.stores import migrate
from tests.rig import ROOT


def run(app: str, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "celery", "-A", app, "sagas", *words]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


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
    assert "Look after sagas and their tables." in done.stdout
