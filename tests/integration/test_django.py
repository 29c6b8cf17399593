"""The tests of a Django project, run by Django's own runner on each database, and what `manage.py` says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from tests.rig import ROOT


def database(request: pytest.FixtureRequest, kind: str, folder: Path) -> dict[str, Any]:
    """Return an entry of `DATABASES` for a new database."""
    if kind == "sqlite":
        where = {"NAME": str(folder / "db.sqlite3"), "TEST": {"NAME": str(folder / "test.sqlite3")}}
        options = {"timeout": 20, "init_command": "PRAGMA journal_mode = WAL"}
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "OPTIONS": {**options, "transaction_mode": "IMMEDIATE"},
            **where,
        }
    url = make_url(request.getfixturevalue(kind).database())
    engine = {"postgres": "postgresql", "mariadb": "mysql"}[kind]
    return {
        "ENGINE": f"django.db.backends.{engine}", "HOST": "127.0.0.1", "PORT": url.port, "USER": url.username,
        "NAME": url.database,
    }  # fmt: skip


def project(folder: Path, **settings: Any) -> dict[str, str]:
    """Return the environment of a process of the project."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DJANGO_")}
    return {
        **environment,
        "DJANGO_SETTINGS_MODULE": "tests.django_project.settings",
        "PROJECT_FOLDER": str(folder),
        "PROJECT": json.dumps(settings),
        "PYTHONPATH": str(ROOT),
    }


def manage(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::DeprecationWarning", "-m", "django", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sqlite", {}),
        ("postgres", {}),
        ("postgres", {"USE_TZ": False, "TIME_ZONE": "America/Chicago"}),
        ("mariadb", {}),
    ],
    ids=["sqlite", "postgres", "postgres-naive", "mariadb"],
)
def test_the_tests_of_the_project(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    other = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "other.sqlite3")}
    databases = {"default": database(request, kind, tmp_path), "other": other}
    done = manage(project(tmp_path, DATABASES=databases, **settings), "test", "tests.django_project", "--noinput")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK" in done.stderr
