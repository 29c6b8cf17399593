"""Distinguishes exceptions that end a process from failures of the user's code.

A step may raise anything, even exceptions that are no `Exception`: `asyncio.run` of a cancelled coroutine raises
`CancelledError`, and a library may call `sys.exit()`. Such an exception is a failure like any other, and must not end
the worker. Exceptions thrown *into* running code from outside are different: the worker is stopped, a person presses
Ctrl-C, a greenlet is killed. They must propagate, and recovery takes care of the interrupted work.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sagas.errors import RetryableError, StepSignal, TerminalError
from sagas.text import describe

__all__ = ["ProcessEnd", "ends_process", "interruptible", "meant"]

#: Packages whose exceptions control a test: `pytest.fail()` in a step is for pytest, not for the saga.
_TEST_TOOLS = frozenset({"_pytest", "hypothesis"})


class ProcessEnd(BaseException):
    """The process ends here, or a test simulates that."""


class _Interrupted(KeyboardInterrupt):
    """A person pressed Ctrl-C."""


def ends_process(error: BaseException) -> bool:
    """Return whether an exception from a step, handler or observer was thrown in from outside.

    >>> ends_process(SystemExit(1)), ends_process(ValueError())
    (False, False)
    """
    if _is_ending():
        return True  # any exception is now a consequence of that
    if isinstance(error, BaseExceptionGroup):
        return any(ends_process(leaf) for leaf in _leaves(error))
    return not isinstance(error, Exception) and (
        isinstance(error, ProcessEnd | _Interrupted)
        or (isinstance(error, KeyboardInterrupt) and _handles_ctrl_c())
        or _is_one_of(error, "celery.exceptions", "WorkerShutdown", "WorkerTerminate")
        or _is_one_of(error, "greenlet", "GreenletExit")  # how gevent and eventlet kill greenlets
        or any(kind.__module__.partition(".")[0] in _TEST_TOOLS for kind in type(error).__mro__)
    )


def _is_ending() -> bool:
    """Return whether a signal is ending this process at once, in the middle of the code in this thread."""
    if not _is_main_thread():
        return False
    billiard, worker = sys.modules.get("billiard.common"), sys.modules.get("celery.worker.state")
    if billiard is not None and billiard._should_have_exited[0]:  # noqa: SLF001 - older versions have no function
        return True  # a child of the prefork pool
    # The solo pool, whose steps Celery's handler interrupts. A worker that stops normally lets them finish.
    exit_code = None if worker is None else worker.should_terminate  # may be 0
    return exit_code is not None and exit_code is not False


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _handles_ctrl_c() -> bool:
    """Return whether Ctrl-C raises `KeyboardInterrupt` here. Workers ignore SIGINT, or handle it themselves."""
    return _is_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _is_one_of(error: BaseException, module: str, *names: str) -> bool:
    """Return whether an exception belongs to classes of a loaded module. A module that is not loaded raised nothing."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(error, tuple(getattr(loaded, name) for name in names))


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the code inside, while a `KeyboardInterrupt` that a step raises itself is a failure of the step.

    For sagas that run in the calling thread. It has no effect outside the main thread, or if other code handles SIGINT.
    """

    def interrupt(_signal: int, _frame: Any) -> None:
        raise _Interrupted

    if not _handles_ctrl_c():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def meant(error: BaseException) -> BaseException:
    """Return the meaning of a group of exceptions, if all exceptions in it agree.

    A group that contains only `TerminalError` is a `TerminalError`. A group that contains only `RetryableError` is a
    `RetryableError` with the longest wait. Other groups and other exceptions are returned unchanged.

    >>> meant(ExceptionGroup("", [RetryableError("busy", after=1), RetryableError("away", after=9)])).after
    9.0
    """
    if not isinstance(error, BaseExceptionGroup) or isinstance(error, StepSignal):
        return error
    inner = _leaves(error)
    text = "; ".join(describe(leaf) for leaf in inner)
    if all(isinstance(leaf, TerminalError) for leaf in inner):
        return TerminalError(text)
    if all(isinstance(leaf, RetryableError) for leaf in inner):
        waits = [leaf.after for leaf in inner if isinstance(leaf, RetryableError) and leaf.after is not None]
        return RetryableError(text, after=max(waits, default=None))
    return error


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Return the exceptions in a group, including those in nested groups."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
