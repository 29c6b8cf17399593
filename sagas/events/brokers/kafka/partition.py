"""How far a partition was read and acknowledged, and how often its messages were delivered."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from confluent_kafka import TopicPartition

__all__ = ["Partition"]

#: How many ranges of one partition are recorded; Kafka stores 4,096 bytes of metadata.
_RANGES = 50


@dataclass(slots=True, eq=False)
class Partition:
    """How far one partition was delivered and acknowledged, and how often its unacknowledged messages were delivered.

    `history` covers earlier deliveries: (end, count) stands for the messages from the previous end up to this one. It
    is stored in the metadata of the committed offset.
    """

    position: int | None  #: the next offset to read; None: not known yet
    history: tuple[tuple[int, int], ...] = ()
    given: int = 0  #: the end of what this process delivered
    unacknowledged: dict[int, None] = field(default_factory=dict)  #: in order
    committed: tuple[int, str] | None = None  #: what was last sent to be committed
    is_noted: bool = False  #: whether Kafka knows that this process delivered something

    @classmethod
    def of(cls, committed: TopicPartition) -> Partition:
        if committed.offset < 0:
            return cls(None)
        try:
            history = msgspec.json.decode(committed.metadata or "[]", type=tuple[tuple[int, int], ...])
        except msgspec.MsgspecError:  # another program committed it
            history = ()
        return cls(committed.offset, history)

    def read(self, offset: int) -> int:
        """Record a message as read, and return how many messages before it are missing."""
        missing = 0 if self.position is None else offset - self.position
        self.position = offset + 1
        self.unacknowledged[offset] = None
        return missing

    def give(self, offset: int) -> None:
        """Record that a message is delivered."""
        self.given = offset + 1

    def deliveries(self, offset: int) -> int:
        """Return how often a message has been delivered, this time included."""
        return 1 + next((count for end, count in self.history if offset < end), 0)

    def to_commit(self) -> tuple[int, str] | None:
        """Return the offset up to which everything is acknowledged, and the history from there on as metadata."""
        if self.position is None:
            return None
        offset = start = next(iter(self.unacknowledged), self.position)
        ranges: list[tuple[int, int]] = []
        for end, count in self.history:
            again = min(end, max(start, self.given))  # the end of what was redelivered
            if again > start:
                ranges.append((again, count + 1))
            if end > max(again, start):
                ranges.append((end, count))
            start = max(start, end)
        if self.given > start:
            ranges.append((self.given, 1))
        return offset, msgspec.json.encode(ranges[:_RANGES]).decode() if ranges else ""
