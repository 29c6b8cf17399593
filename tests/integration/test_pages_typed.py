"""Pages that a new user begins with, typed as they stand by somebody who has the wheel and what the page installs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bare import build
from tests.pages import fences
from tests.reader import read
from tests.rig import ROOT
from tests.servers import Postgres, RabbitMQ, Redis, free_port

DOCS = ROOT / "docs"
BROKER = "redis://127.0.0.1:6379/0"
DATABASE = "postgresql+psycopg://shop@127.0.0.1/shop"

# Nobody's processes are fast on a machine that has other work to do.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def test_tutorial(wheel: Path, tmp_path: Path) -> None:
    # kombu's SQL transport fails where two processes create a queue at the same moment. A human types slowly.
    worker = " > worker.log 2>&1 &"
    read(DOCS / "tutorial.md", tmp_path, wheel, {worker: f"{worker}\nup messages.db celery"})


def test_two_services(wheel: Path, tmp_path: Path, rabbitmq: RabbitMQ) -> None:
    read(DOCS / "how-to" / "two-services.md", tmp_path, wheel, BROKER_URL=rabbitmq.virtual_host("two-services"))


def test_flask(wheel: Path, tmp_path: Path, postgres: Postgres, redis_server: Redis) -> None:
    redis_server.flush()
    port = str(free_port())
    instead = {BROKER: redis_server.url, DATABASE: postgres.database(), "127.0.0.1:5000": f"127.0.0.1:{port}"}
    instead |= {address: f"127.0.0.1:{free_port()}" for address in ("127.0.0.1:8001", "127.0.0.1:8002")}
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


def test_readme(wheel: Path, tmp_path: Path, postgres: Postgres, redis_server: Redis) -> None:
    redis_server.flush()
    read(ROOT / "README.md", tmp_path, wheel, {BROKER: redis_server.url, DATABASE: postgres.database()})


def test_events(wheel: Path, tmp_path: Path) -> None:
    read(DOCS / "events.md", tmp_path, wheel)


def test_encryption(wheel: Path, tmp_path: Path) -> None:
    read(DOCS / "retention.md", tmp_path, wheel)


def test_flower(wheel: Path, tmp_path: Path) -> None:
    port = str(free_port())
    yours = fences(DOCS / "tutorial.md", "python")[0].source
    read(
        DOCS / "flower.md",
        tmp_path,
        wheel,
        {"--port=5555": f"--port={port}"},
        before={"yourapp.py": yours},
        after=["celery -A yourapp sagas db upgrade", f"curl -sf http://127.0.0.1:{port}/sagas | grep '<title>'"],
    )


def test_monitoring(wheel: Path, tmp_path: Path, redis_server: Redis) -> None:
    port = str(free_port())
    instead = {BROKER: redis_server.url, "127.0.0.1:9101": f"127.0.0.1:{port}", "address 9101": f"address {port}"}
    read(DOCS / "monitoring.md", tmp_path, wheel, instead, after=["python -c 'import shop'"])
