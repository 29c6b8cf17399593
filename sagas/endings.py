"""Which exceptions end a process, and which are failures of the code of yours that raised them.

A step may raise anything, also what is no `Exception`: `asyncio.run` of something that was cancelled raises
`CancelledError`, a library that gives up calls `sys.exit()`. That is a failure like any other, and must not take the
worker along. What is thrown *into* running code from outside is none: the worker is told to stop, a person presses
Ctrl-C, a greenlet is killed. That has to go through, and recovery sees to what it cut off.
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

#: Packages whose exceptions steer a test: `pytest.fail()` in a step is for pytest, not for the saga.
_TEST_TOOLS = frozenset({"_pytest", "hypothesis"})


class ProcessEnd(BaseException):
    """The process ends here, or a test pretends that it does."""


class _Interrupted(KeyboardInterrupt):
    """A person pressed Ctrl-C."""


def ends_process(error: BaseException) -> bool:
    """Tell whether an exception that came out of a step, a handler or an observer was thrown in from outside.

    >>> ends_process(SystemExit(1)), ends_process(ValueError())
    (False, False)
    """
    if _is_told_to_end():
        return True  # whatever comes out of it now is a consequence of that
    if isinstance(error, BaseExceptionGroup):
        return any(ends_process(leaf) for leaf in _leaves(error))
    return not isinstance(error, Exception) and (
        isinstance(error, ProcessEnd | _Interrupted)
        or (isinstance(error, KeyboardInterrupt) and _handles_ctrl_c())
        or _is_one_of(error, "celery.exceptions", "WorkerShutdown", "WorkerTerminate")
        or _is_one_of(error, "greenlet", "GreenletExit")  # how gevent and eventlet kill what runs
        or any(kind.__module__.partition(".")[0] in _TEST_TOOLS for kind in type(error).__mro__)
    )


def _is_told_to_end() -> bool:
    """Tell whether a signal has told this process to end at once, in the midst of the code that runs in this thread."""
    if not _is_main_thread():
        return False
    billiard, worker = sys.modules.get("billiard.common"), sys.modules.get("celery.worker.state")
    if billiard is not None and billiard._should_have_exited[0]:  # noqa: SLF001 - older ones have no function for it
        return True  # a child of the prefork pool
    # The solo pool, whose steps Celery's handler interrupts. A worker that is told to stop lets them end.
    told = None if worker is None else worker.should_terminate  # an exit code, which may be 0
    return told is not None and told is not False


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _handles_ctrl_c() -> bool:
    """Tell whether Ctrl-C would be a `KeyboardInterrupt` here. Workers ignore SIGINT, or handle it themselves."""
    return _is_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _is_one_of(error: BaseException, module: str, *names: str) -> bool:
    """Tell whether an exception is of classes of a module that is loaded. One that is not has raised nothing."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(error, tuple(getattr(loaded, name) for name in names))


@contextmanager
def interruptible() -> Iterator[None]:
    """Have Ctrl-C end what runs within, while a `KeyboardInterrupt` that a step raises itself is its failure.

    For sagas that run in the calling thread. Outside of the main thread, and where somebody else handles SIGINT, there
    is nothing to do.
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
    """Return what a group of exceptions says: the same as those in it, if all of them say the same.

    A group of nothing but `TerminalError` is a `TerminalError`. A group of nothing but `RetryableError` is a
    `RetryableError` with the longest wait. Any other group, and what is no group, comes back as it is.

    >>> meant(ExceptionGroup("", [RetryableError("busy", after=1), RetryableError("away", after=9)])).after
    9.0
    """
    if not isinstance(error, BaseExceptionGroup) or isinstance(error, StepSignal):
        return error
    inner = _leaves(error)
    told = "; ".join(describe(leaf) for leaf in inner)
    if all(isinstance(leaf, TerminalError) for leaf in inner):
        return TerminalError(told)
    if all(isinstance(leaf, RetryableError) for leaf in inner):
        waits = [leaf.after for leaf in inner if isinstance(leaf, RetryableError) and leaf.after is not None]
        return RetryableError(told, after=max(waits, default=None))
    return error


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Return the exceptions in a group, and in the groups in it."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
