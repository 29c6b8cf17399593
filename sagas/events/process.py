"""A process for events: consumers, threads for handlers, a relay, and an orderly shutdown."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from sagas.events.bus import Events
from sagas.events.runners import InProcess

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
    """Consume and relay until SIGTERM or SIGINT. Call this in the main thread of a process of its own.

    `queues`: the queues to consume; None: all queues of the services; empty: none. `threads`: how many handlers run at
        once. `relay`: whether to send the messages in the outbox. `grace`: seconds that handlers have to end at
        shutdown. After that they are cut off, and their messages are delivered again.
    Raises `ConfigurationError` for a queue that belongs to none of the services.
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
        os._exit(1)  # otherwise the interpreter would wait for them


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
