"""A process that has imported what the tests' processes need, and becomes one of them by a fork: see `tests/forks.py`.

It has no thread, no server's connection and no app. It reads nothing but the end of its control socket, of which each
message is a request: one byte, and the file descriptors of a socket and of the new process's input, output and errors.
The new process reads from that socket what it is to run; the socket then tells its pid, and how it ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import os
import pickle
import runpy
import selectors
import signal
import socket
import sys
import threading
import time
import types
import warnings
from pathlib import Path
from typing import NamedTuple, TextIO

#: What the tests are told to ignore, as under `nohup` or in the background of a script, and so what they start, too.
_IGNORED = {number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN}

#: What takes long to import and does nothing else: no module of a test, and none that reads settings as it is imported.
_MODULES = """
    celery.bin.celery celery.bin.worker celery.apps.worker celery.worker.consumer
    celery.worker.strategy celery.worker.autoscale celery.concurrency.prefork celery.concurrency.solo
    celery.concurrency.thread celery.app.log celery.app.amqp celery.app.control celery.app.events celery.app.builtins
    celery.app.task celery.app.trace celery.backends.redis celery.backends.rpc celery.fixups.django celery.loaders.app
    celery.events.state celery.beat
    kombu.transport.redis kombu.transport.pyamqp kombu.transport.filesystem kombu.transport.memory
    kombu.asynchronous.hub
    sagas sagas.events sagas.worker sagas.doctor sagas.check sagas.cli.actions sagas.cli.listing sagas.cli.showing
    sagas.events.brokers.kafka sagas.events.brokers.rabbitmq sagas.events.brokers.redis_streams
    sagas.stores.migrate sagas.scheduler sagas.operations sagas.schedule_operations sagas.approvals sagas.webhooks
    alembic.command alembic.autogenerate sqlalchemy.orm sqlalchemy.dialects.postgresql.psycopg
    sqlalchemy.dialects.mysql.pymysql sqlalchemy.dialects.sqlite.pysqlite
    amqp confluent_kafka.admin psycopg psycopg_pool pymysql redis redis.asyncio psutil yaml pydantic jsonschema
    cryptography.fernet rich.live rich.table
    tornado.web tornado.httpserver flower.urls flask jinja2
    django.core.management.commands.check django.core.management.commands.migrate
    django.core.management.commands.runserver django.core.management.commands.test django.db.models django.forms
    django.template.backends.django django.test django.urls django.contrib.admin.options django.views.generic
    django.db.backends.postgresql.base django.db.backends.sqlite3.base django.core.handlers.wsgi
    asyncio concurrent.futures.thread multiprocessing.connection unittest.mock xml.etree.ElementTree
""".split()


class Request(NamedTuple):
    """What a new process is to be."""

    command: list[str]  #: `[python, *options, "-m" | "-c" | a script, ...]`, or a script and its arguments
    environment: dict[str, str]
    folder: str


class Fork(NamedTuple):
    """What a new process is made of."""

    socket: socket.socket
    files: list[int]


def main() -> None:
    """Serve until the test process ends; or return in a fork, as the process that was asked for."""
    path = sys.path[1:]
    _preload()
    with socket.socket(fileno=0) as control:
        fork = _serve(control)
    if fork is not None:
        _run(_become(fork), path)


def _preload() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a process that is to fail of one is not forked
        for module in _MODULES:
            with contextlib.suppress(ImportError):  # some rows of scripts/matrix install less
                importlib.import_module(module)
    assert threading.active_count() == 1, f"what is preloaded has started {threading.enumerate()}"
    gc.collect()
    gc.freeze()  # so that no collection writes to the pages that all forks share


def _serve(control: socket.socket) -> Fork | None:
    """Fork on request. Returns in a fork, or None at the end of the test process."""
    forks: dict[int, socket.socket] = {}
    wakeup, woken = socket.socketpair()
    woken.setblocking(False)
    wakeup.setblocking(False)
    signal.set_wakeup_fd(wakeup.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                woken.recv(4096)
                _reap(forks)
            if control in ready:
                _, descriptors, _, _ = socket.recv_fds(control, 1, 4)
                if not descriptors:
                    return None
                ours = socket.socket(fileno=descriptors[0])
                pid = os.fork()
                if pid == 0:
                    return Fork(ours, descriptors[1:])
                for descriptor in descriptors[1:]:
                    os.close(descriptor)
                forks[pid] = ours
                _tell(ours, pid)


def _reap(forks: dict[int, socket.socket]) -> None:
    """Tell how forks ended, at once: who asks the system whether a process lives must not find its remains."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with forks.pop(ended[0]) as ours:
                _tell(ours, os.waitstatus_to_exitcode(ended[1]))


def _tell(ours: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody waits for it any more
        ours.sendall(number.to_bytes(8, "big", signed=True))


def _become(fork: Fork) -> Request:
    """Leave nothing in this process of the one that it was forked from."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ} - _IGNORED:
        with contextlib.suppress(OSError):  # one that belongs to the C library
            signal.signal(number, signal.SIG_DFL)
    if signal.SIGINT not in _IGNORED:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: the server ends with the test process
    with fork.socket, fork.socket.makefile("rb") as stream:
        request = Request(*pickle.load(stream))
    for wanted, descriptor in enumerate(fork.files):
        os.dup2(descriptor, wanted)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    time.tzset()
    sys.stdin = open(0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = _output(1, sys.stdout), _output(2, sys.stderr)
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
    importlib.invalidate_caches()
    return request


def _output(descriptor: int, like: TextIO) -> TextIO:
    """Open an output as Python does when it starts."""
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    file = open(descriptor, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(
        file,
        encoding=like.encoding,
        errors=like.errors,
        line_buffering=not unbuffered and (descriptor == 2 or file.isatty()),
        write_through=unbuffered,
    )


def _run(request: Request, path: list[str]) -> None:
    """Run the command as the interpreter does: in a new `__main__`, with its own `sys.argv` and `sys.path`."""
    words = request.command
    sys.orig_argv = list(words)
    if words[0] == sys.executable:
        words = words[1:]
    while words[0] == "-W":
        sys.warnoptions.append(words[1])
        warnings._processoptions([words[1]])  # type: ignore[attr-defined]
        words = words[2:]
    places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = list(dict.fromkeys([*(os.path.abspath(place) for place in places if place), *path]))
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    match words:
        case ["-m", name, *arguments]:
            sys.argv, sys.path = ["-m", *arguments], [os.getcwd(), *path]
            runpy._run_module_as_main(name)  # type: ignore[attr-defined]
        case ["-c", code, *arguments]:
            sys.argv, sys.path = ["-c", *arguments], ["", *path]
            exec(compile(code, "<string>", "exec"), module.__dict__)
        case [script, *arguments]:
            sys.argv, sys.path = [script, *arguments], [os.path.dirname(os.path.realpath(script)), *path]
            module.__file__ = os.path.abspath(script)
            exec(compile(Path(script).read_bytes(), script, "exec"), module.__dict__)


if __name__ == "__main__":
    main()
