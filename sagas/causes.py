"""Causation: what led to the messages and sagas that running code publishes and starts.

Handlers, steps and Celery tasks run with their cause set. Whatever is published or started meanwhile inherits it, so
the correlation id, the causation id and the chain of messages are passed on without any code of the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec

__all__ = ["CURRENT", "LONGEST_PATH", "Cause", "within"]

#: How many message types a chain carries: the latest ones.
LONGEST_PATH = 32


class Cause(msgspec.Struct, frozen=True, omit_defaults=True):
    """What led to a message or a saga."""

    id: str  #: an event id, `saga_id:step`, or a saga id
    correlation_id: str  #: of the whole flow
    hops: int = 0  #: how many messages led to what this causes
    path: tuple[str, ...] = ()  #: their types, oldest first
    trace: Mapping[str, str] = {}  #: W3C's `traceparent` and `tracestate`

    def encode(self) -> str:
        """Return the cause as JSON, for a column or header."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str | bytes) -> Cause | None:
        """Read the output of `encode`. Returns None for anything else: a lost cause must not stop the work itself."""
        try:
            return _DECODER.decode(text)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None


_DECODER = msgspec.json.Decoder(Cause)

#: The cause of what the running code publishes or starts.
CURRENT: ContextVar[Cause | None] = ContextVar("sagas_current_cause", default=None)


@contextmanager
def within(cause: Cause | None) -> Iterator[None]:
    """Use this cause for everything that is published and started inside the block."""
    before = CURRENT.set(cause)
    try:
        yield
    finally:
        CURRENT.reset(before)
