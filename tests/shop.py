"""A worker of the reference shop, which tests can kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import forks
from tests.rig import ROOT
from tests.servers import Redis

__all__ = ["shop"]


@contextmanager
def shop(
    redis: Redis, url: str, folder: Path, *, queues: str = "shop,payments", concurrency: int = 1
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker, with its log in `folder`. `url`: of its database."""
    environment = {
        **os.environ, "BROKER_URL": redis.url, "SAGAS_DATABASE_URL": url, "SAGAS_LEASE": "1",
        "SAGAS_REDISPATCH_AFTER": "1", "SAGAS_RECOVERY_INTERVAL": "0.2",
    }  # fmt: skip
    options = ["-Q", queues, "-c", str(concurrency), "-l", "INFO"]
    command = [sys.executable, "-m", "celery", "-A", "config", "worker", *options]
    with (folder / "worker.log").open("ab") as log:
        process = forks.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
