"""Read incoming messages: turn what a broker delivered into an envelope, or reject it.

Brokers deliver the body and headers of every message as received, from any sender. Headers are text (see
`sagas.events.brokers.shared.texts`), and `content-type` is among them, whatever the broker calls it. Only this module
decides which formats besides our own envelope are accepted.
"""

from __future__ import annotations

from collections.abc import Mapping

from sagas.events import cloudevents
from sagas.events.envelope import Envelope

__all__ = ["read"]


def read(body: bytes, headers: Mapping[str, str]) -> Envelope:
    """Return the envelope of a message. Raises `InvalidMessage`, with the reason, if it is not one.

    `body` and `headers` come from a `Delivery`, or from an `EventDeadLetter` that is replayed.
    """
    return cloudevents.read(body, headers) or Envelope.decode(body)
