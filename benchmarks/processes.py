"""Processes that a benchmark owns, and what they cost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.servers import die_with_parent

ROOT = Path(__file__).parent.parent


class Program:
    """A Python program of ours, in a process group of its own, that ends when we end."""

    def __init__(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self._log = tempfile.NamedTemporaryFile("w+b", prefix="bench-", suffix=".log")  # noqa: SIM115 - closed in stop
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - no thread runs yet
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raise with the end of its log when it has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.process.args!r} ended\n{Path(self._log.name).read_text()[-3000:]}")

    def pause(self) -> None:
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        if self.process.poll() is None:
            end_tree(self.pid)
        self.process.wait(30)
        self._log.close()


def end_tree(pid: int, patience: float = 10.0) -> None:
    """End a process and its descendants: politely, then for sure."""
    try:
        top = psutil.Process(pid)
        family = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        top.terminate()
    _, left = psutil.wait_procs(family, timeout=patience)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=patience)


def cpu_seconds(roots: Sequence[int], *, tree: bool = True) -> float:
    """Return the CPU time that process trees have used, with that of descendants that have ended."""
    total = 0.0
    for root in roots:
        top = psutil.Process(root)
        for process in [top, *(top.children(recursive=True) if tree else [])]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
                if tree:
                    total += times.children_user + times.children_system
    return total
