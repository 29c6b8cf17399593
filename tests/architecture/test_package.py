"""The public names, the wheel, and the words that must not be there."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import get_origin

import pytest

import sagas

ROOT = Path(__file__).parent.parent.parent

PUBLIC = """
Saga Step Parallel Pivot Wait Sleep Child Each COMPENSATE Retry NEVER StepContext TerminalError RetryableError
Sagas SqlStore Schedule SagaHandle Completion StartResult StartStatus
SagaStatus StepStatus Direction SagaRecord SagaSummary StepRecord StepProgress
SagaError DefinitionError UnboundParameter DuplicateName ConfigurationError StartError InvalidInput PayloadTooLarge
KeyConflict SagaNotFound AmbiguousSaga DefinitionMissing NotAllowed SignalRefused InvalidToken
SagaNotCompleted WaitTimeout StoreRefused StoreUnavailable
PayloadUnreadable UnserialisableResult StepCancelled StepFailed
""".split()


def test_the_public_names_are_frozen() -> None:
    assert sagas.__all__ == PUBLIC
    assert all(getattr(sagas, name).__doc__ for name in PUBLIC)


def test_every_error_is_drawn() -> None:
    errors = importlib.import_module("sagas.errors")
    for name in errors.__all__:
        assert name in (errors.__doc__ or ""), f"{name} is not in the drawing"
        assert issubclass(getattr(errors, name), sagas.SagaError)


def _modules() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages(sagas.__path__, "sagas.") if "migrations" not in m.name]
    # What is for Django cannot be looked at outside of a project; the tests of one do.
    return [name for name in found if not name.startswith("sagas.contrib.django")]


# What is lazy of Django's looks like a function to doctest, which then opens it.
@pytest.mark.parametrize("name", [name for name in _modules() if not name.startswith("sagas.contrib.django")])
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL)
    assert failed == 0


def test_every_public_docstring_is_there() -> None:
    for name in _modules():
        module = importlib.import_module(name)
        assert module.__doc__, name
        for public in getattr(module, "__all__", []):
            value = getattr(module, public)
            alias = get_origin(value) is not None
            assert value.__doc__ or alias or not callable(value), f"{name}.{public}"


def test_the_wheel_has_the_library_and_nothing_else(tmp_path: Path) -> None:
    """Built, installed outside of the checkout into an environment of its own, and used there."""
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"sagas", f"celery_sagas-{_version()}.dist-info"}
    assert "sagas/py.typed" in names
    assert "sagas/stores/migrations/env.py" in names
    assert "sagas/contrib/flower/templates/sagas/list.html" in names
    assert "sagas/contrib/flower/static/sagas.js" in names
    assert "sagas/contrib/django/templates/admin/sagas/saga/history.html" in names
    assert "sagas/contrib/django/locale/de/LC_MESSAGES/django.mo" in names
    assert any(name.startswith("sagas/stores/migrations/versions/0001") for name in names)
    inside = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(inside), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (tmp_path / "app.py").write_text(
        "from celery import Celery\n"
        "from sagas import *\n"
        "import sagas\n"
        "app = Celery('app', broker='memory://')\n"
        "saga = Saga('s', Step('a', lambda: 1, compensation=None))\n"
        "Sagas(app, SqlStore('sqlite:///s.db'), [saga])\n"
    )
    environment = {"PYTHONPATH": str(inside), "PATH": "/usr/bin:/bin"}
    celery = [sys.executable, "-P", "-m", "celery", "--workdir", str(tmp_path), "-A", "app", "sagas", "db", "upgrade"]
    done = subprocess.run(celery, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "is up to date" in done.stdout
    where = [sys.executable, "-P", "-c", "import sagas; print(sagas.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(inside))


def _version() -> str:
    import tomllib  # noqa: PLC0415

    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


def test_the_drawings_are_of_the_tables() -> None:
    check = [sys.executable, str(ROOT / "docs" / "generate_states.py"), "--check"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
