"""Threads that ask for the same at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tests.servers import wait_for

T = TypeVar("T")


def at_the_same_moment(gathering: Any, first: Callable[[], T], others: Sequence[Callable[[], T]]) -> list[Any]:
    """Do this in so many threads, where all but the first come while that is being served. Errors are returned."""
    served, free, serve = threading.Event(), threading.Event(), gathering._serve

    def first_waits(items: Any) -> Any:
        if not served.is_set():
            served.set()
            assert free.wait(30)
        return serve(items)

    gathering._serve = first_waits

    def done(do: Callable[[], T]) -> T | Exception:
        try:
            return do()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(others) + 1) as pool:
        try:
            calls = [pool.submit(done, first)]
            assert served.wait(30)
            calls += [pool.submit(done, each) for each in others]
            wait_for(lambda: len(gathering._callers) == len(others), 30, "all have gathered")
        finally:
            free.set()
        return [call.result(30) for call in calls]
