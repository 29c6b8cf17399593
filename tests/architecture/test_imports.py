"""What is not loaded where it is not needed: every worker, web process and command pays for what is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sagas import SqlStore

ROOT = Path(__file__).parent.parent.parent

#: Parts of the library that only those load who use them.
PARTS = ("sagas.events", "sagas.contrib", "sagas.doctor", "sagas.testing", "sagas.check", "sagas.drawing")
#: What those parts load, and the engine must not.
HEAVY = ("alembic", "confluent_kafka", "jsonschema", "prometheus_client", "redis", "rich")
#: Celery imports the `flower` package for every command, to have `celery flower`; and with it come these.
WITH_FLOWER = ("prometheus_client", "redis")

LIST = """
import sys
from celery.bin.celery import main
sys.argv = ["celery", "-A", "bare", "sagas", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def loaded(code: str, *words: str, folder: Path) -> set[str]:
    """Run code in a process of its own, and return the modules that are loaded at its end."""
    tell = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    done = subprocess.run(
        [sys.executable, "-c", tell, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def unwanted(modules: set[str], *names: str) -> list[str]:
    return sorted(module for module in modules if any(f"{module}.".startswith(f"{name}.") for name in names))


def test_importing_the_library_loads_the_engine_alone(tmp_path: Path) -> None:
    assert (
        unwanted(loaded("import sagas", folder=tmp_path), *PARTS, *HEAVY, "flower", "sagas.cli", "sagas.worker") == []
    )


@pytest.mark.parametrize("words", [("list",), ("show", "order-1"), ("retry", "order-1", "--reason", "x", "--dry-run")])
def test_a_command_loads_what_it_needs(tmp_path: Path, words: tuple[str, ...]) -> None:
    url = f"sqlite:///{tmp_path / 'bare.db'}"
    SqlStore(url).upgrade()
    (tmp_path / "bare.py").write_text(
        "from celery import Celery\n"
        "from sagas import Saga, Sagas, SqlStore, Step\n"
        "app = Celery('bare', broker='memory://')\n"
        "order = Saga('order', Step('reserve', lambda: 1, compensation=None))\n"
        f"Sagas(app, SqlStore({url!r}), [order])\n"
        "order.start(key='order-1')\n"
    )
    heavy = [name for name in HEAVY if name not in WITH_FLOWER]
    assert unwanted(loaded(LIST, *words, folder=tmp_path), *PARTS, *heavy) == []
