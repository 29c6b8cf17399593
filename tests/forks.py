"""Python processes that do not start Python: forks of a process that has imported Celery already.

`Popen` and `run` are those of `subprocess`, many times as fast. Each pytest process has one server for them,
`tests/preloaded.py`, which ends with it. A fork is a process like any other, in a session of its own: it can be killed,
has the environment, folder and files that it was given and nothing else, and ends with the test process.

What a fork cannot be is executed: see `_can_be_a_fork`. Tests that are about the start of Python, about what is
imported when, or about an installed wheel use `subprocess`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from tests.preloaded import Request
from tests.servers import die_with_parent

ROOT = Path(__file__).parent.parent
_BIN = Path(sys.executable).parent
#: What is read once, as Python starts or a library is imported; and so are most of Python's own variables.
_READ_ONCE = ("LD_PRELOAD", "PROMETHEUS_MULTIPROC_DIR", "COVERAGE_PROCESS_START", "LANG", "LC_ALL", "LC_CTYPE")
_READ_BY_FORKS = ("PYTHONPATH", "PYTHONUNBUFFERED")
_workers: set[int] = set()


class Popen(subprocess.Popen[Any]):
    """A `subprocess.Popen` whose process has a session of its own, ends with the tests, and is a fork if it can be."""

    _fork: socket.socket | None = None  #: says how the process ended, if it is a fork

    def __init__(self, args: Sequence[str | Path], **options: Any) -> None:
        words = [str(word) for word in args]
        super().__init__(words, start_new_session=True, preexec_fn=die_with_parent, **options)

    # What follows overrides the parts of Popen that make a process, and that ask the system how it ended.

    def _execute_child(self, args: Any, *rest: Any) -> None:
        # fmt: off
        (_, _, _, _, cwd, env, _, _, _,
         p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *_) = rest
        # fmt: on
        environment = dict(os.environ if env is None else env)
        if not _can_be_a_fork(args, environment):
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        files = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        self._fork, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(_server(), [b"."], [theirs.fileno(), *files])
        request = Request(args, environment, os.path.abspath(cwd or ""))
        self._fork.sendall(pickle.dumps(tuple(request)))
        self.pid = self._number()
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]
        if "worker" in args:
            _workers.add(self.pid)

    def _internal_poll(self, *args: Any, **options: Any) -> int | None:
        if self._fork is None:
            return super()._internal_poll(*args, **options)  # type: ignore[misc, no-any-return]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._wait(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self._fork is None:
            return super()._wait(timeout)  # type: ignore[misc, no-any-return]
        with self._waitpid_lock:  # type: ignore[attr-defined]
            if self.returncode is None:
                if not select.select([self._fork], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
                self.returncode = self._number()
                self._fork.close()
        return self.returncode

    def _number(self) -> int:
        assert self._fork is not None
        if len(said := self._fork.recv(8, socket.MSG_WAITALL)) < 8:
            raise RuntimeError("the server of the forks has ended")
        return int.from_bytes(said, "big", signed=True)


def run(
    args: Sequence[str | Path],
    *,
    check: bool = False,
    input: str | None = None,  # noqa: A002 - as subprocess calls it
    timeout: float | None = None,
    capture_output: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run`, with a fork."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Popen(args, **options) as process:
        try:
            out, errors = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, errors)
    if check:
        done.check_returncode()
    return done


def _can_be_a_fork(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return whether a process that has started already can become this one."""
    if any(word for word in command if "gevent" in word or "eventlet" in word):
        return False  # they patch Python before the first import
    if _read_once(environment) != _read_once(_server_environment()):
        return False
    places = environment.get("PYTHONPATH", "").split(os.pathsep)
    if any(Path(place, "sitecustomize.py").exists() for place in places if place):
        return False  # Python imports it as it starts
    program, *words = command
    if program != sys.executable:
        return Path(program).parent == _BIN and Path(program).name in ("celery", "flask")
    while words[0] == "-W":
        words = words[2:]
    return words[0] in ("-m", "-c") or not words[0].startswith("-")


def _read_once(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name in _READ_ONCE or (name.startswith("PYTHON") and name not in _READ_BY_FORKS)
    }


@cache
def _server_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _READ_BY_FORKS}


@cache
def _server() -> socket.socket:
    """Start the server of this pytest process, which ends when this socket is closed."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "tests.preloaded"]
        environment = _server_environment()
        subprocess.Popen(command, cwd=ROOT, env=environment, stdin=theirs.fileno(), start_new_session=True)
    return ours


def left_workers() -> Iterator[psutil.Process]:
    """Find Celery workers among the forks, and the pools that killed ones have left."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) in _workers and "tests.preloaded" in process.cmdline():
                yield process
