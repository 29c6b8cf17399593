"""The page on Flask works as it stands there: its files, its commands, its tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sagas import SagaStatus, SqlStore
from tests.rig import ROOT
from tests.servers import Postgres, Redis, die_with_parent, wait_for

PAGE = (ROOT / "docs" / "flask.md").read_text()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    blocks = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert {name for name, _ in blocks} == {"orders.py", "shop.py", "make_celery.py", "test_orders.py"}
    assert len(re.findall(r"^```python", PAGE, re.MULTILINE)) == len(blocks)
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    return tmp_path


def run(files: Path, environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=files, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_tests(files: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(files), str(ROOT)])}
    assert "2 passed" in run(files, environment, "pytest", "-q", "-p", "no:cacheprovider", "test_orders.py")


def test_its_commands(files: Path, postgres: Postgres, redis_server: Redis) -> None:
    url = postgres.database()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(files), str(ROOT)]),
        "FLASK_SQLALCHEMY_DATABASE_URI": url,
        "FLASK_CELERY__broker_url": redis_server.url,
        "FLASK_CELERY__task_default_queue": "docs",
    }
    assert "is up to date" in run(files, environment, "flask", "--app", "shop", "sagas", "db", "upgrade")
    log = files / "log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "make_celery", "worker", "-c", "1", "-l", "INFO"],
            cwd=files, env=environment, stdout=output, stderr=output, preexec_fn=die_with_parent,
        )  # fmt: skip
    try:
        placing = (
            "import json; from shop import create_app; from orders import db; app = create_app()\n"
            "with app.app_context(): db.create_all()\n"
            "client = app.test_client()\n"
            "print(json.dumps([client.post(f'/orders/o-{cents}/{cents}').json['status'] for cents in (450, 500_000)]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", placing], cwd=files, env=environment, capture_output=True, text=True, check=True
        )
        store = SqlStore(url)
        ids = [path.removeprefix("/sagas/") for path in json.loads(done.stdout)]
        ends = [SagaStatus.COMPLETED, SagaStatus.COMPENSATED]
        wait_for(lambda: [store.load(saga_id).status for saga_id in ids] == ends, 60)
        store.engine.dispose()
    finally:
        worker.terminate()
        worker.wait(30)
