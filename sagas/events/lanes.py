"""What a consumer has received and not acknowledged yet: a line of messages for each key."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from sagas.errors import InvalidMessage
from sagas.events.brokers import Delivery, Reader
from sagas.events.envelope import Envelope
from sagas.events.incoming import read
from sagas.events.letters import replay_of
from sagas.text import describe

__all__ = ["Job", "Lanes"]

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Job:
    """A message that was received and is not acknowledged yet."""

    delivery: Delivery
    envelope: Envelope | None  #: None if the message is not one
    reader: Reader
    attempts: int = 0  #: failed attempts
    lost: int = 0
    begun: int | None = None  #: how often other processes began it without ending it; None: not looked up yet
    due: float = 0.0  #: the earliest time to begin, by the monotonic clock
    running: bool = False
    admitted: bool = False
    alone: bool = False  #: whether it holds the lock `alone`, so that no other redelivered message runs
    rolled_back: bool = False  #: whether it was in a batch that was rolled back
    verdict: str | None = None  #: why it becomes a dead letter, once the database accepts that

    @classmethod
    def of(cls, delivery: Delivery, reader: Reader) -> Job:
        """Read a message. One that cannot be read has its verdict."""
        try:
            return cls(delivery, read(delivery.body, delivery.headers), reader)
        except InvalidMessage as error:
            return cls(delivery, None, reader, verdict=str(error))
        except Exception as error:
            logger.exception("a message of %s could not be read because of a bug in celery-sagas", delivery.queue)
            return cls(delivery, None, reader, verdict=f"{type(error).__name__}: {describe(error)}")

    @property
    def redelivered(self) -> bool:
        """Whether it was delivered or begun before without an outcome."""
        return self.delivery.deliveries > 1 or self.lost > 0

    @property
    def joins_batches(self) -> bool:
        """Whether it may share a transaction: nothing is known of it that needs one of its own."""
        return not (
            self.rolled_back or self.redelivered or self.envelope is None or replay_of(self.envelope) is not None
        )

    @property
    def lane(self) -> object:
        """What it stays in order with: the messages of its key, or only itself."""
        key = self.delivery.key if self.envelope is None else self.envelope.key
        return key or self

    @property
    def name(self) -> str:
        return "a message" if self.envelope is None else f"{self.envelope.event_type} {self.envelope.event_id}"


@dataclass(slots=True)
class Lanes:
    """The received messages: a line for each key, of which only the first may run. Messages without a key are alone."""

    lines: dict[object, deque[Job]] = field(default_factory=dict)

    def add(self, job: Job) -> None:
        self.lines.setdefault(job.lane, deque()).append(job)

    def remove(self, job: Job) -> None:
        line = self.lines[job.lane]
        line.remove(job)
        if not line:
            del self.lines[job.lane]

    def heads(self) -> Iterator[Job]:
        return (line[0] for line in list(self.lines.values()))

    def all(self) -> list[list[Job]]:
        return [list(line) for line in self.lines.values()]

    def jobs(self) -> list[Job]:
        return [job for line in self.lines.values() for job in line]
