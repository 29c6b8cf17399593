"""The shop as docs/how-to/production.md runs it: the Procfile, with real servers, and orders."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.rig import ROOT
from tests.servers import Postgres, Redis, die_with_parent, free_port, wait_for
from tests.terminal import in_terminal, plain

Done = subprocess.CompletedProcess[str]


def commands() -> list[list[str]]:
    """Return the commands that the page has for the reference shop, as they stand there."""
    section = (ROOT / "docs" / "how-to" / "production.md").read_text().partition("## The reference shop")[2]
    fence = section.split("```")[1]
    return [shlex.split(line, comments=True) for line in fence.strip().splitlines()]


class Shop:
    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.environment = environment
        self.log = log
        self.processes: subprocess.Popen[bytes] | None = None

    def run(self, *words: str, **more: str) -> Done:
        """Run a command as a person would, with the virtual environment active."""
        environment = {**self.environment, **more}
        return subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170, check=False
        )

    def start(self, *words: str) -> None:
        with self.log.open("wb") as log:
            self.processes = subprocess.Popen(
                words, cwd=ROOT, env=self.environment, stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        wait_for(lambda: self.log.read_text().count(" ready.") == 6, 120, "six workers are ready")

    def stop(self) -> None:
        if self.processes is not None:
            family = psutil.Process(self.processes.pid).children(recursive=True)
            self.processes.send_signal(signal.SIGTERM)
            try:
                self.processes.wait(20)
            finally:
                for process in psutil.wait_procs(family, timeout=5)[1]:
                    process.kill()


@pytest.fixture
def shop(redis_server: Redis, postgres: Postgres, tmp_path: Path) -> Iterator[Shop]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "BROKER_URL": redis_server.url.rpartition("/")[0] + "/9",  # apart from the tests' own messages
        "SAGAS_DATABASE_URL": postgres.database(),
        "FLOWER_PORT": str(free_port()),
    }
    shop = Shop(environment, tmp_path / "log")
    yield shop
    shop.stop()


@pytest.mark.timeout(400)  # seven processes start, and a shop's worth of others
def test_the_reference_shop(shop: Shop, tmp_path: Path) -> None:
    migrate, start, place, doctor = commands()
    done = shop.run(*migrate)
    assert done.returncode == 0, done.stdout + done.stderr
    shop.start(*start)
    # One of them asks for a worker to be killed, which honcho would not survive.
    done = shop.run(*place)
    assert done.returncode == 0, done.stdout + done.stderr + shop.log.read_text()[-3000:]
    assert "4 orders ask for a fault, which needs --faults" in done.stdout
    assert "\n12 completed\nOK every order is complete or was undone" in done.stdout

    # More than the terminal has lines for: a bar.
    many = tmp_path / "many.csv"
    fault = "o-7,Ann,lamp,1,4.50,Main,shipping.create,decline,COMPENSATED"
    lines = [fault if number == 7 else f"o-{number},Ann,tea,2,4.50,Main,,,COMPLETED" for number in range(45)]
    many.write_text("\n".join(["order_id,customer,sku,quantity,amount,address,fault_at,fault_kind,expect", *lines]))
    code, seen = in_terminal([*place[:-1], str(many), "--faults"], shop.environment)
    assert code == 0, plain(seen)
    assert "45/45" in plain(seen)
    assert "44 completed, 1 compensated" in plain(seen)
    assert "OK every order is complete or was undone" in plain(seen)

    found = json.loads(shop.run(*doctor, "--json", "--timeout", "5").stdout)
    bad = {finding["code"]: finding["says"] for finding in found if finding["level"] != "ok"}
    assert bad == {"durability": bad.get("durability")}, bad  # the tests' server does not sync

    order = tmp_path / "order.json"
    order.write_text('{"order_id": "r", "customer": "A", "sku": "tea", "quantity": 1, "amount": "1", "address": "x"}')
    rehearsal = shop.run(*doctor[:-1], "rehearse", "place_order", "--input", str(order), "--yes")
    assert rehearsal.returncode == 2
    assert "workers of this app are running (" in rehearsal.stderr
