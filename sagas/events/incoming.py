"""The way in: what a broker gave out becomes an envelope, or is none.

Brokers give out the body and the headers of every message as they came, whoever sent it: `headers` are text (see
`sagas.events.brokers.shared.texts`), the content type among them as `content-type`, whatever the broker calls it. What
else a body may be than our own envelope is decided here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping

from sagas.events.envelope import Envelope

__all__ = ["read"]


def read(body: bytes, headers: Mapping[str, str]) -> Envelope:  # noqa: ARG001 - for what is no envelope of ours
    """Return the envelope of a message. Raises `InvalidMessage`, with what is wrong, for anything that is none.

    `body` and `headers` may be those of a `Delivery`, or of a `DeadLetter` that is replayed.
    """
    return Envelope.decode(body)
