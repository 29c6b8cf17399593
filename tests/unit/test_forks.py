"""A fork is a process like the one that Python would have started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import forks
from tests.rig import ROOT
from tests.servers import wait_for

TELLS = """
import json, os, random, signal, sys, threading, warnings
print(json.dumps({
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "cwd": os.getcwd(), "name": __name__,
    "main": sorted(name for name in vars(sys.modules["__main__"]) if not name.startswith("__")),
    "file": globals().get("__file__"), "environment": dict(os.environ),
    "signals": {str(number): str(signal.getsignal(number)) for number in sorted(signal.valid_signals())},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "wakeup": signal.set_wakeup_fd(-1), "files": sorted(map(int, os.listdir("/proc/self/fd"))),
    "input": [sys.stdin.fileno(), sys.stdin.encoding, sys.stdin.errors],
    "outputs": [(each.fileno(), each.encoding, each.errors, each.line_buffering, each.write_through)
                for each in (sys.stdout, sys.stderr)],
    "standard": [sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
    "threads": threading.active_count(), "leads": os.getpid() == os.getsid(0) == os.getpgid(0),
    "warnoptions": sys.warnoptions, "first": str(warnings.filters[0]),
}))
"""


def told(run: Callable[..., Any], folder: Path, *words: str, **environment: str) -> dict[str, Any]:
    done = run(
        [sys.executable, *words], cwd=folder, env={**forks._read_once(os.environ), **environment}, check=True,
        capture_output=True, text=True, input="",
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("environment", [{}, {"PYTHONPATH": f"elsewhere{os.pathsep}{ROOT}", "PYTHONUNBUFFERED": "1"}])
@pytest.mark.parametrize(
    "words",
    [
        ("-c", TELLS, "one", "two"),
        ("-m", "tells", "one"),
        ("tells.py", "one"),
        ("-W", "error::DeprecationWarning", "-m", "tells"),
    ],
    ids=["code", "module", "script", "warnings"],
)
def test_it_is_what_python_would_have_started(
    tmp_path: Path, words: tuple[str, ...], environment: dict[str, str]
) -> None:
    (tmp_path / "tells.py").write_text(TELLS)
    executed = told(subprocess.run, tmp_path, *words, **environment)
    forked = told(forks.run, tmp_path, *words, **environment)
    assert forked.pop("leads")
    del executed["leads"]
    assert forked == executed


def ended(code: str) -> int:
    return forks.run([sys.executable, "-c", code], capture_output=True).returncode


def test_how_it_ends() -> None:
    assert ended("") == 0
    assert ended("raise SystemExit(7)") == 7
    assert ended("raise ValueError") == 1
    assert ended("raise KeyboardInterrupt") == -signal.SIGINT
    assert ended("import os; os.kill(os.getpid(), 9)") == -signal.SIGKILL
    assert ended("import atexit, os; atexit.register(os._exit, 5)") == 5


def test_it_can_be_waited_for_and_killed() -> None:
    with forks.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        assert psutil.pid_exists(process.pid)
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
        assert not psutil.pid_exists(process.pid), "nothing is left of it"


def test_its_errors_and_output_can_be_one(tmp_path: Path) -> None:
    code = "import os; os.write(2, b'b'); os.write(1, b'a')"
    done = forks.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.stdout == b"ba"
    with pytest.raises(subprocess.CalledProcessError):
        forks.run([sys.executable, "-c", "raise SystemExit(2)"], check=True)


def test_forks_differ_in_what_is_random() -> None:
    command = [sys.executable, "-c", "import random, uuid; print(random.random(), uuid.uuid4())"]
    one, other = (forks.run(command, capture_output=True, text=True).stdout.split() for _ in range(2))
    assert not {*one} & {*other}


def test_all_forks_end_with_the_test_process(tmp_path: Path) -> None:
    """However that ends: here it is killed."""
    code = f"""
        import sys, pathlib
        sys.path.insert(0, {str(ROOT)!r})
        from tests import forks
        process = forks.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path("pids.new").write_text(f"{{process.pid}} {{forks.psutil.Process(process.pid).ppid()}}")
        pathlib.Path("pids.new").rename("pids")
        process.wait()
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path) as tests:
        pids = tmp_path / "pids"
        wait_for(pids.exists, 60, "the fork runs")
        tests.kill()
    for pid in pids.read_text().split():
        wait_for(lambda pid=pid: not psutil.pid_exists(int(pid)), 30, "it ended with the tests")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (("-m", "celery", "worker", "--pool=gevent"), {}),
        (("-c", "pass"), {"LD_PRELOAD": ""}),
        (("-c", "pass"), {"PROMETHEUS_MULTIPROC_DIR": "/tmp"}),
        (("-X", "importtime", "-c", "pass"), {}),
        (("-c", "pass"), {"PYTHONOPTIMIZE": "1"}),
    ],
)
def test_what_python_or_a_library_reads_as_it_starts_is_executed(
    words: tuple[str, ...], environment: dict[str, str]
) -> None:
    command = [sys.executable, *words]
    assert not forks._can_be_a_fork(command, {**os.environ, **environment})
    assert forks._can_be_a_fork([sys.executable, "-m", "celery"], os.environ)
    assert not forks._can_be_a_fork(["/usr/bin/python3", "-m", "celery"], os.environ)
