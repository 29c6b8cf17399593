"""Pages that a new user begins with, typed as they stand by somebody who has the wheel and what the page installs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bare import build
from tests.reader import read
from tests.rig import ROOT
from tests.servers import Postgres, RabbitMQ, Redis, free_port

DOCS = ROOT / "docs"
BROKER = "redis://127.0.0.1:6379/0"
DATABASE = "postgresql+psycopg://shop@127.0.0.1/shop"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def test_tutorial(wheel: Path, tmp_path: Path) -> None:
    read(DOCS / "tutorial.md", tmp_path, wheel)


def test_two_services(wheel: Path, tmp_path: Path, rabbitmq: RabbitMQ) -> None:
    rabbitmq.forget("stock.reserve")
    read(DOCS / "how-to" / "two-services.md", tmp_path, wheel, BROKER_URL=rabbitmq.url)


def test_flask(wheel: Path, tmp_path: Path, postgres: Postgres, redis_server: Redis) -> None:
    redis_server.flush()
    port = str(free_port())
    instead = {BROKER: redis_server.url, DATABASE: postgres.database(), "127.0.0.1:5000": f"127.0.0.1:{port}"}
    read(DOCS / "flask.md", tmp_path, wheel, instead, FLASK_RUN_PORT=port)


def test_django(wheel: Path, tmp_path: Path, postgres: Postgres, redis_server: Redis) -> None:
    redis_server.flush()
    name = postgres.database().rpartition("/")[2]
    instead = {
        BROKER: redis_server.url,
        '"NAME": "shop"': f'"NAME": "{name}"',
        '"USER": "shop"': '"USER": "postgres"',
        '"PORT": 5432': f'"PORT": {postgres.port}',
        "127.0.0.1:8000": f"127.0.0.1:{free_port()}",
    }
    read(DOCS / "django.md", tmp_path, wheel, instead)


def test_fastapi(wheel: Path, tmp_path: Path, postgres: Postgres, redis_server: Redis) -> None:
    redis_server.flush()
    port = str(free_port())
    instead = {BROKER: redis_server.url, DATABASE: postgres.database(), "127.0.0.1:8000": f"127.0.0.1:{port}"}
    read(DOCS / "fastapi.md", tmp_path, wheel, instead | {"--port 8000": f"--port {port}"})
