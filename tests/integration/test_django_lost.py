"""What a Django project is after its database was away for a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.test_django import database, manage, project


@pytest.mark.parametrize("kind", ["postgres", "postgres-pool", "mariadb"])
def test_a_connection_that_is_lost_at_any_moment(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    where = database(request, kind.partition("-")[0], tmp_path)
    if kind.endswith("pool"):
        where["OPTIONS"] = {"pool": {"min_size": 1, "max_size": 4, "timeout": 10}}
    environment = project(tmp_path, DATABASES={"default": where})
    done = manage(environment, "test", "tests.django_project.orders.tests_losses", "--noinput")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK" in done.stderr
