"""The consumers of a process."""

from __future__ import annotations

import time
from collections.abc import Iterable

from sagas.events.consumer import Consumer

__all__ = ["Consumers"]


class Consumers:
    """Several consumers, started and stopped together."""

    def __init__(self, consumers: Iterable[Consumer]) -> None:
        self._consumers = list(consumers)

    @property
    def queues(self) -> list[str]:
        return [consumer.queue for consumer in self._consumers]

    def start(self) -> None:
        for consumer in self._consumers:
            consumer.start()

    def stop(self, grace: float) -> None:
        """Begin no more messages, and end running handlers within `grace` seconds. Does not wait."""
        for consumer in self._consumers:
            consumer.stop(grace)

    @property
    def cut_off(self) -> list[str]:
        """The queues whose handlers have not ended."""
        return [consumer.queue for consumer in self._consumers if consumer.running]

    def join(self, timeout: float) -> bool:
        """Wait until all have ended, at most `timeout` seconds; return whether they have."""
        until = time.monotonic() + timeout
        return all(consumer.join(max(until - time.monotonic(), 0.0)) for consumer in self._consumers)
