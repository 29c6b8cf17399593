"""The reference shop: its demo, its participants, its sagas."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig import ROOT
from tests.servers import wait_for

DEMO = [sys.executable, "-m", "tasks.demo"]


def test_the_demo() -> None:
    """One order completes, one is declined and undone in reverse, one times out, one loses its worker."""
    done = subprocess.run(DEMO, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed with SIGKILL" in done.stdout
    assert "no answer within" in done.stdout
    assert "declined" in done.stdout
    assert re.search(r"OK every order went through or was undone", done.stdout)


def test_orders_of_ones_own(tmp_path: Path) -> None:
    orders = tmp_path / "mine.csv"
    orders.write_text(
        "order_id,customer,sku,quantity,amount,address\n"
        "mine-1,Ann,tea,2,12.50,1 Main Street\n"
        'mine-2,Bob,tea,1000,12.50,"2 Main Street, Rear"\n'
    )
    done = subprocess.run([*DEMO, str(orders)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 completed, 1 compensated" in done.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("order_id,customer,sku,quantity,amount,address\nx,Ann,tea,two,12.50,Main\n", "quantity"),
        ("order_id,customer\nx,Ann\n", "sku"),
    ],
)
def test_a_broken_file_is_explained(tmp_path: Path, text: str, says: str) -> None:
    orders = tmp_path / "broken.csv"
    orders.write_text(text)
    done = subprocess.run([*DEMO, str(orders)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "broken.csv" in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_can_be_interrupted(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with (tmp_path / "out").open("w") as out:
        # As from a terminal: whoever runs the tests in the background has SIGINT ignored, and children inherit that.
        listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        process = subprocess.Popen(
            [*DEMO, "--folder", str(folder)], cwd=ROOT, stdout=out, stderr=out, preexec_fn=listen
        )
    log = folder / "worker.log"
    wait_for(lambda: log.exists() and " ready." in log.read_text(), 60, "the worker is ready")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    worker = re.search(r"worker 1 started \(pid (\d+)\)", (tmp_path / "out").read_text())
    assert worker is not None
    with pytest.raises(ProcessLookupError):
        os.kill(int(worker[1]), 0)
