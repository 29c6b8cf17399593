"""What led to what: the cause of the messages and the sagas that running code publishes and starts.

A handler, a step and a Celery task run with their cause set. What is published or started meanwhile takes it from
there, so the correlation id, the causation id and the chain of messages travel without the user's help.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec

__all__ = ["CURRENT", "LONGEST_PATH", "Cause", "within"]

#: How many types of messages a chain carries along: the latest.
LONGEST_PATH = 32


class Cause(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a message or a saga is the consequence of."""

    id: str  #: an event id; `saga_id:step`, or the id of a saga
    correlation_id: str  #: of the whole story
    hops: int = 0  #: how many messages led to what this causes
    path: tuple[str, ...] = ()  #: their types, oldest first
    trace: Mapping[str, str] = {}  #: W3C's `traceparent` and `tracestate`

    def encode(self) -> str:
        """Return it as JSON, for a column or a header."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str | bytes) -> Cause | None:
        """Read what `encode` made. None for anything else: a lost cause must not stop what has to be done."""
        try:
            return _DECODER.decode(text)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None


_DECODER = msgspec.json.Decoder(Cause)

#: The cause of what is published or started by the code that runs now.
CURRENT: ContextVar[Cause | None] = ContextVar("sagas_current_cause", default=None)


@contextmanager
def within(cause: Cause | None) -> Iterator[None]:
    """Have what is published and started in here caused by this."""
    before = CURRENT.set(cause)
    try:
        yield
    finally:
        CURRENT.reset(before)
