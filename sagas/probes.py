"""What recovery knows of the messages that nobody has answered.

A saga is overdue when nobody has begun its next step for a while. Its message may be lost, or it may wait in a long
queue, where another one would only make the queue longer. So one overdue saga of each task is sent its message again,
as a *probe*. Queues keep their order: once the probe has arrived, every message from before it has arrived too, or is
lost, and the sagas that still wait are sent theirs.

Where a queue does not keep its order, or a worker has taken more messages than it works on, a saga may be sent a
message that it did not need. The claim refuses the second of two.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime, timedelta

__all__ = ["Advice", "Overdue", "Queue"]

#: Sagas of one task that are remembered while its probe is on the way. Others are found when they are due again.
_MOST_HELD_BACK = 10_000

#: How often the wait for the next probe is doubled while none arrives.
_MOST_DOUBLINGS = 20

#: A message leaves at most this many seconds after what was stored about it; or half of `redispatch_after`, if that is
#: less.
_SENDING = 5.0


@dataclass(frozen=True, slots=True)
class Overdue:
    """A saga whose next step nobody has begun."""

    saga_id: str
    step: str
    sent_at: datetime  #: its message
    sent_before: bool = False  #: whether a message of its own was sent for the step, and came to nothing too


class Advice(enum.Enum):
    """What to do about a saga that is overdue."""

    SEND = "send"  #: its message is lost
    PROBE = "probe"  #: nobody knows; send it again to find out
    WAIT = "wait"  #: a probe is on the way


@dataclass(slots=True)
class Queue:
    """The messages of one Celery task, as far as one recovery knows.

    `redispatch_after`: seconds until a probe that has not arrived is followed by another one. That doubles each time.
    """

    redispatch_after: float
    arrived: datetime | None = None  #: all that was sent before this has arrived, or is lost
    probed: datetime | None = None  #: when the last probe was sent
    unanswered: int = 0  #: probes in a row that have not arrived
    _held_back: dict[str, Overdue] = field(default_factory=dict)

    @property
    def waits(self) -> bool:
        """Whether there is anything to learn from an arrival."""
        return bool(self._held_back) or self.unanswered > 0

    def note(self, arrived: datetime) -> None:
        """Take note of the probe that came last, whoever sent it."""
        self.arrived = arrived
        if self.probed is not None and self.probed <= arrived:
            self.probed, self.unanswered = None, 0

    def advise(self, saga: Overdue, now: datetime) -> Advice:
        """Say what to do about an overdue saga. One that has to wait is kept in mind until a probe has arrived."""
        if self.has_lost(saga):
            return Advice.SEND
        if self.wants_probe(now):
            return Advice.PROBE
        if len(self._held_back) < _MOST_HELD_BACK:
            self._held_back[saga.saga_id] = saga
        return Advice.WAIT

    def has_lost(self, saga: Overdue) -> bool:
        """Tell whether the message of a saga is known to be lost."""
        margin = timedelta(seconds=min(_SENDING, self.redispatch_after / 2))
        return self.arrived is not None and saga.sent_at + margin <= self.arrived

    def wants_probe(self, now: datetime) -> bool:
        """Tell whether it is time for a probe, since none is on the way, or none has been heard of for too long."""
        doubled = self.redispatch_after * 2 ** min(self.unanswered - 1, _MOST_DOUBLINGS)
        return self.probed is None or self.probed + timedelta(seconds=doubled) <= now

    def probe(self, now: datetime) -> None:
        """A probe was sent."""
        self.probed = now
        self.unanswered += 1

    def take_oldest(self) -> Overdue | None:
        """Return a saga that could be sent as a probe, and forget it."""
        return self._held_back.pop(next(iter(self._held_back))) if self._held_back else None

    def take_lost(self, limit: int) -> list[Overdue]:
        """Return sagas whose messages are known to be lost by now, and forget them."""
        lost = [saga for saga in self._held_back.values() if self.has_lost(saga)][:limit]
        for saga in lost:
            del self._held_back[saga.saga_id]
        return lost
