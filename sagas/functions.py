"""The signature of a user's function, and how to call it: synchronous or async, and run to its end.

A callable may be a function, a method, a Celery task, a `functools.partial` or an object with `__call__`. A callable
that looks synchronous may still return a coroutine (a lambda, a decorator), so the returned object decides.
"""

from __future__ import annotations

import asyncio
import collections.abc
import concurrent.futures
import contextvars
import functools
import inspect
import sys
import threading
import types
import typing
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import TypeAliasType

__all__ = ["Look", "allows_none", "bare", "describe", "finish", "look_at", "refuse_unfinished"]


@dataclass(frozen=True, slots=True)
class Look:
    """The parameters and types of a callable."""

    parameters: Mapping[str, inspect.Parameter]  #: those that can be passed, without those that a partial has set
    hints: Mapping[str, Any]  #: of the parameters and, as "return", of the awaited result


def look_at(given: Callable[..., Any]) -> Look:
    """Return the parameters and types of a callable.

    Raises `TypeError` for a class, a generator or a callable without a signature, and `NameError` for an annotation
    that cannot be resolved.
    """
    # A Celery task's own signature is (*args, **kwargs); the author's is that of its run().
    function = given.run if hasattr(given, "run") and hasattr(given, "apply_async") else given
    inner, filled = _unwrapped(function)
    if inspect.isclass(inner):
        raise TypeError(
            f"{describe(given)} is a class: calling it only creates an instance. Pass a function, or an instance with "
            f"__call__: {inner.__name__}()"
        )
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise TypeError(f"{describe(given)} is a generator: calling it runs nothing. Make it a function without yield")
    try:
        parameters = inspect.signature(function).parameters
    except ValueError as error:
        raise TypeError(f"{describe(given)} has no readable signature. Wrap it in a function of your own") from error
    hints = _hints(inner)
    if "return" in hints:
        hints["return"] = _in_the_end(hints["return"])
    return Look({name: each for name, each in parameters.items() if name not in filled}, hints)


def _unwrapped(function: Any) -> tuple[Any, frozenset[str]]:
    """Return the function inside partials, methods and callable objects, and the arguments that partials have set."""
    filled: frozenset[str] = frozenset()
    for _ in range(100):  # nobody nests deeper, and a __call__ may refer to itself
        partial = getattr(function, "__partialmethod__", None) or getattr(function, "_partialmethod", None)
        if isinstance(function, functools.partial) or isinstance(partial, functools.partialmethod):
            found: Any = partial or function
            filled |= frozenset(found.keywords)
            function = found.func
        elif inspect.ismethod(function) or isinstance(function, staticmethod | classmethod):
            function = function.__func__
        elif inspect.isroutine(function) or inspect.isclass(function) or hasattr(function, "__wrapped__"):
            break
        else:
            function = type(function).__call__
    return function, filled


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except TypeError:  # a builtin has no annotations
        return {}


def _in_the_end(hint: Any) -> Any:
    """Return the type of a result after awaiting it: int for `Awaitable[int]`."""
    while True:
        origin, arguments = typing.get_origin(bare(hint)), typing.get_args(bare(hint))
        if not (inspect.isclass(origin) and arguments and issubclass(origin, Awaitable | concurrent.futures.Future)):
            return hint
        hint = arguments[-1]


def bare(hint: Any) -> Any:
    """Return a type without `Annotated`, `type` aliases and an optional None."""
    while True:
        if isinstance(hint, TypeAliasType):
            hint = hint.__value__
        elif typing.get_origin(hint) is typing.Annotated:
            hint = typing.get_args(hint)[0]
        elif (
            _is_union(hint) and len(rest := [each for each in typing.get_args(hint) if each is not types.NoneType]) == 1
        ):
            hint = rest[0]
        else:
            return hint


def allows_none(hint: Any) -> bool:
    """Return whether a parameter of this type accepts None."""
    if isinstance(hint, TypeAliasType):
        return allows_none(hint.__value__)
    if typing.get_origin(hint) is typing.Annotated or _is_union(hint):
        return any(allows_none(each) for each in typing.get_args(hint)[: None if _is_union(hint) else 1])
    return hint in (None, types.NoneType, Any)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def describe(function: Any) -> str:
    """Return the name of a callable, with its module."""
    if isinstance(function, functools.partial):
        return f"partial of {describe(function.func)}"
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", None)
    if name is None and not getattr(function, "name", None):
        return f"an object of {describe(type(function))}"
    return f"{module}.{name}" if name else str(function.name)


# -- calls --------------------------------------------------------------------------------------------------------


def finish(returned: Any, timeout: float | None = None) -> Any:
    """Return the final result of a call: awaitables are awaited, futures waited for.

    This creates an event loop. After `timeout` seconds, the coroutine is cancelled and `TimeoutError` is raised.
    """
    while True:
        if isinstance(returned, concurrent.futures.Future):
            returned = returned.result(timeout)
        elif inspect.isawaitable(returned):
            returned = _run(functools.partial(_awaited, returned, timeout))
        else:
            return returned


async def _awaited(awaitable: Awaitable[Any], seconds: float | None) -> Any:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await awaitable
    except TimeoutError as error:
        if limit.expired():
            raise TimeoutError(f"it was cancelled because its timeout of {seconds:g} s expired") from error
        raise


def _run(make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine in its own event loop, even if one is running in this thread."""
    # Green threads share their thread's running loop: each gets a real thread instead.
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        pool = type(sys.modules["gevent"].get_hub().threadpool)(1)
        try:
            return _elsewhere(make, pool.apply)
        finally:
            pool.kill()
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        from eventlet import tpool  # noqa: PLC0415 - only if it is in use

        return _elsewhere(make, tpool.execute)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(make())
    return _elsewhere(make, _in_a_thread)  # for example an async test that runs a step


def _elsewhere(make: Callable[[], Coroutine[Any, Any, Any]], run: Callable[[Callable[[], None]], object]) -> Any:
    """Run a coroutine through `run` with the current context, and return or raise its outcome here."""
    context = contextvars.copy_context()
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(context.run(asyncio.run, make()))
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller
            future.set_exception(error)

    run(work)
    return future.result()


def _in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work, name="sagas-async-step", daemon=True)
    thread.start()
    thread.join()


def refuse_unfinished(returned: Any) -> None:
    """Raise `TypeError` for a result that still has to be run: the intended work has not happened."""
    lazy = (types.GeneratorType, types.AsyncGeneratorType, collections.abc.AsyncIterator, map, filter)
    if isinstance(returned, lazy):
        what = "none of it has run. Make it a plain function that does its work itself"
    elif isinstance(getattr(returned, "gen", None), types.GeneratorType | types.AsyncGeneratorType):
        what = "a context manager that was never entered. Use it inside a function"
    elif isinstance(returned, types.FunctionType | types.MethodType | functools.partial):
        what = f"{describe(returned)} was returned but not called"
    elif hasattr(returned, "apply_async") and hasattr(returned, "set_immutable"):
        what = "a Celery signature that was never sent"
    else:
        return
    raise TypeError(f"it returned a {type(returned).__name__}: {what}")
