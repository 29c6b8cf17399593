"""The tests of a Django project, run by Django's own runner on each database, and what `manage.py` says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import django
import pytest
from sqlalchemy import make_url

from tests import forks
from tests.rig import ROOT


def database(request: pytest.FixtureRequest, kind: str, folder: Path) -> dict[str, Any]:
    """Return an entry of `DATABASES` for a new database."""
    if kind == "sqlite":
        where = {"NAME": str(folder / "db.sqlite3"), "TEST": {"NAME": str(folder / "test.sqlite3")}}
        options: dict[str, Any] = {"timeout": 20}
        if django.VERSION >= (5, 1):
            options |= {"init_command": "PRAGMA journal_mode = WAL", "transaction_mode": "IMMEDIATE"}
        return {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": options, **where}
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
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def manage(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::DeprecationWarning", "-m", "django", *arguments]
    return forks.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


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


def test_what_check_says(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    databases = {"default": database(request, "sqlite", tmp_path)}

    def said(*arguments: str, database: dict[str, Any] | None = None, **settings: Any) -> str:
        urls = "django.contrib.auth.urls"  # those of the project import what cannot be there with these settings
        changed = {"default": {**databases["default"], **(database or {})}}
        done = manage(project(tmp_path, DATABASES=changed, ROOT_URLCONF=urls, **settings), "check", *arguments)
        return done.stderr + done.stdout

    lacking = said("--database", "default")
    assert "sagas.W002" in lacking
    assert ("sagas.W001" in lacking) == (django.VERSION < (5, 1)), "older Django has no better way with SQLite"
    undeclared = {
        "CELERY_TASK_CREATE_MISSING_QUEUES": False,
        "CELERY_TASK_ROUTES": {"place_order.*": {"queue": "nope"}},
    }
    report = said(database={"OPTIONS": {}}, **undeclared)
    assert "sagas.W001" in report
    assert "PRAGMA journal_mode = WAL" in report
    assert "(sagas.E003) the Celery app cannot run sagas: saga 'place_order', step 'reserve'" in report
    assert "'nope'" in report
    wrong = said(
        database={"AUTOCOMMIT": False}, CELERY_SAGAS_LEASES=1, CELERY_SAGAS_LEASE="30", CELERY_SAGAS_REDACT="card"
    )
    assert "has AUTOCOMMIT = False" in wrong
    assert "there is no setting CELERY_SAGAS_LEASES. The settings are: CELERY_SAGAS_APP, " in wrong
    assert "CELERY_SAGAS_LEASE is '30', but must be a positive number of seconds" in wrong
    assert "CELERY_SAGAS_REDACT is 'card', but must be a list of field names" in wrong
    assert "CELERY_SAGAS_DATABASE is 'main', which is not in DATABASES" in said(CELERY_SAGAS_DATABASE="main")
    assert "there is no Celery app there: No module named 'nowhere'" in said(CELERY_SAGAS_APP="nowhere")
    assert "accept_content has 'pickle'" in said(CELERY_ACCEPT_CONTENT=["pickle"])
    broken = project(tmp_path, DATABASES=databases)
    apps = ["sagas.contrib.django", "django.contrib.contenttypes", "django.contrib.auth"]
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "sagas.py").write_text("from sagas import Saga\nSaga('empty')\n")
    broken["PROJECT"] = json.dumps(
        {"DATABASES": databases, "INSTALLED_APPS": [*apps, "shop"], "ROOT_URLCONF": "django.contrib.auth.urls"}
    )
    broken["PYTHONPATH"] += os.pathsep + str(tmp_path)
    report = manage(broken, "check").stderr
    assert "(sagas.E002) sagas are not set up: DefinitionError: saga 'empty' has no steps" in report
    assert "HINT: " in report


def test_the_command_is_the_librarys_own(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    environment = project(tmp_path, DATABASES={"default": database(request, "sqlite", tmp_path)})
    migrated = manage(environment, "migrate", "--run-syncdb")
    assert migrated.returncode == 0
    assert "sagas.W002" not in migrated.stderr, "it is about to make them"
    helped = manage(environment, "sagas", "--help")
    assert "Manage sagas and their tables." in helped.stdout, helped.stderr
    refused = manage(environment, "sagas", "db", "upgrade")
    assert refused.returncode == 2
    assert "manage.py migrate" in refused.stderr
    celery = [sys.executable, "-m", "celery", "-A", "tests.django_project", "sagas", "events", "outbox"]
    for command in (celery, [sys.executable, "-m", "django", "sagas", "events", "outbox"]):
        done = forks.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
