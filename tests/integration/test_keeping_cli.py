"""`sagas purge`, `sagas audit` and `sagas db reencrypt`, as typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from sagas import Saga, SqlStore, Step
from sagas.stores import schema
from sagas.stores.archive import load_archive
from sagas.stores.encryption import AesGcm
from sagas.testing import Inline
from tests import forks
from tests.rig import ROOT

APP = """
from celery import Celery
from sagas import *
from sagas.stores.encryption import AesGcm
app = Celery("keep", broker="memory://")
codec = AesGcm({{"k": bytes(32)}}, current="k", reads_plain=True)
Sagas(app, SqlStore("sqlite:///{path}", codec=codec))
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    """Holds three sagas that ended, two of them long ago."""
    store = SqlStore(f"sqlite:///{tmp_path / 'sagas.db'}")
    store.upgrade()
    inline = Inline(store)
    saga = Saga("greet", Step("hello", lambda: "hi", compensation=None))
    old = [inline.start(saga).id for _ in range(3)][:2]
    with store.engine.begin() as connection:
        of_them = schema.sagas.update().where(schema.sagas.c.id.in_(old))
        connection.execute(of_them.values(updated_at=store.now() - timedelta(hours=2)))
    (tmp_path / "keepapp.py").write_text(APP.format(path=tmp_path / "sagas.db"))
    yield store
    store.engine.dispose()


def run(folder: Path, *words: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "celery", "-A", "keepapp", "sagas", *words]
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
    return forks.run(command, cwd=folder, env=environment, input=answer, capture_output=True, text=True)


def test_purge(store: SqlStore, tmp_path: Path) -> None:
    assert run(tmp_path, "purge", "--older-than", "1h", "--reason", "policy", "--dry-run").stdout == "would delete 2\n"
    refused = run(tmp_path, "purge", "--older-than", "1h")
    assert (refused.returncode, store.queries.count()) == (2, 3)
    assert "Missing option '--reason'" in refused.stderr
    asked = run(tmp_path, "purge", "--older-than", "1h", "--reason", "policy", answer="n\n")
    assert (asked.returncode, store.queries.count()) == (2, 3)
    assert "delete these 2, without an archive?" in asked.stderr
    for wrong in ("soon", "0d"):
        assert run(tmp_path, "purge", "--older-than", wrong, "--reason", "x").returncode != 0
    words = ("purge", "--older-than", "1h", "--reason", "policy", "--actor", "ann", "--yes", "--archive", "a.jsonl.gz")
    done = run(tmp_path, *words)
    assert done.stdout == "deleted 2\n", done.stderr
    assert store.queries.count() == 1
    assert len(list(load_archive(tmp_path / "a.jsonl.gz"))) == 2
    assert run(tmp_path, *words).stdout == "deleted 0\n"
    [entry] = json.loads(run(tmp_path, "db", "audit", "--json").stdout)
    assert (entry["actor"], entry["what"], entry["reason"], entry["count"]) == ("ann", "purge", "policy", 2)
    assert entry["detail"].endswith("archived in a.jsonl.gz")


def test_reencrypt(store: SqlStore, tmp_path: Path) -> None:
    done = run(tmp_path, "db", "reencrypt", "--reason", "begin", "--actor", "ann")
    assert done.stdout.startswith("3 sagas were encrypted again"), done.stderr
    sealed = SqlStore(store.engine, codec=AesGcm({"k": bytes(32)}, current="k"))
    assert [sealed.queries.payloads(record.id).results["hello"] for record in sealed.queries.select()] == ['"hi"'] * 3
    assert run(tmp_path, "db", "reencrypt", "--reason", "again").stdout.startswith("0 sagas")
    with store.engine.begin() as connection:
        first = connection.execute(select(func.min(schema.sagas.c.id))).scalar_one()
        connection.execute(schema.sagas.update().where(schema.sagas.c.id == first).values(input="~aesgcm:gone:x"))
    partly = run(tmp_path, "db", "reencrypt", "--reason", "again")
    assert partly.returncode == 1
    assert ":input is encrypted with the key 'gone'" in partly.stderr
    assert "1 payloads, listed above, cannot be read" in partly.stdout
