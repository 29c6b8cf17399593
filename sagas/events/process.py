"""A process of its own for events: readers, threads for handlers, a relay, and an end in good order."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from sagas.events.bus import Events
from sagas.events.consumer import InProcess

__all__ = ["run", "until_signalled"]

logger = logging.getLogger(__name__)


def run(
    events: Events,
    *,
    queues: Iterable[str] | None = None,
    threads: int = 8,
    relay: bool = True,
    grace: float = 30.0,
) -> None:
    """Consume, and relay, until SIGTERM or SIGINT. This is what a process is for: call it in the main thread.

    `queues`: which of the services' queues; None: all; empty: none. `threads`: how many handlers run at once.
    `relay`: also send what is in the outbox. `grace`: seconds that handlers have to end once the process is told to;
        what does not end by then is cut off, and its message given out again.
    Raises `ConfigurationError` for a queue that is none of theirs.
    """
    executor = ThreadPoolExecutor(threads, thread_name_prefix="sagas-handler")
    consumers = events.consumers(InProcess(events.handle, executor), queues)
    with until_signalled() as stopping:
        consumers.start()
        if relay:
            events.relay.start()
        logger.info("events: consuming %s%s", ", ".join(consumers.queues) or "no queue", ", relaying" if relay else "")
        stopping.wait()
        logger.info("events: stopping")
        consumers.stop(grace)
        if relay:
            events.relay.stop()
        consumers.join(grace + 5)
    executor.shutdown(wait=False, cancel_futures=True)
    events.broker.close()
    if consumers.cut_off:
        logger.warning("events: cut off after %g s: handlers of %s", grace, ", ".join(consumers.cut_off))
        logging.shutdown()
        os._exit(1)  # else the interpreter would wait for them


@contextmanager
def until_signalled() -> Iterator[threading.Event]:
    """Return an event that SIGTERM and SIGINT set, in place of what they otherwise do."""
    stopping = threading.Event()
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.signal(number, lambda *_: stopping.set()) for number in numbers]
    try:
        yield stopping
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
