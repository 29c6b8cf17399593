"""The how-to of two services, typed in an environment that has the wheel, what it depends on, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.bare import Bare, build_wheel
from tests.integration.test_tutorial import assert_said
from tests.rig import ROOT
from tests.servers import RabbitMQ

PAGE = ROOT / "docs" / "how-to" / "two-services.md"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def bare(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Bare:
    return Bare(tmp_path_factory.mktemp("bare") / "venv", wheel)


def test_two_services_in_a_bare_environment(bare: Bare, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    rabbitmq.forget("stock.reserve")
    without = subprocess.run(
        [str(bare.programs / "python"), "-c", "import limits"], capture_output=True, text=True, check=False
    )
    assert "No module named 'limits'" in without.stderr  # it is bare
    assert_said(PAGE, tmp_path, {"PATH": str(bare.programs), "BROKER_URL": rabbitmq.url})
