"""A dead letter: what is kept of a message that could not be handled, and how that is stored."""

from __future__ import annotations

import base64
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping

from sagas.errors import InvalidMessage
from sagas.events.envelope import Envelope
from sagas.events.incoming import read
from sagas.text import is_clean

__all__ = ["REPLAY_OF", "EventDeadLetter", "EventResolution", "replay_of", "stored"]

#: The metadata entry of a replayed message: the id of its dead letter.
REPLAY_OF = "replayOf"

#: Our header that says how a body that is not text is encoded.
_ENCODING = "sagas-body"


class EventResolution(enum.StrEnum):
    """What became of the dead letter of a message."""

    REPLAYING = "replaying"  #: sent again, and not handled yet
    REPLAYED = "replayed"
    DISCARDED = "discarded"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDeadLetter:
    """A message that one subscriber could not handle, the error, and its resolution."""

    id: int
    queue: str  #: the subscriber's queue; empty if the broker rejected the message for everyone
    event_id: str  #: empty if the body is not an envelope
    type: str
    version: int
    key: str | None
    correlation_id: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    error: str
    attempts: int
    behind: int | None  #: in an ordered queue: the dead letter with the same key that it is parked behind
    created_at: datetime
    resolved_at: datetime | None
    resolution: str | None  #: an `EventResolution`
    reason: str | None
    actor: str | None

    @classmethod
    def of(cls, row: RowMapping) -> EventDeadLetter:
        """Read a row; see `stored`."""
        headers = json.loads(row["headers"])
        encoded = headers.pop(_ENCODING, None) == "base64"
        body = base64.b64decode(row["body"]) if encoded else row["body"].encode()
        return cls(**{**row, "headers": headers, "body": body})

    def envelope(self) -> Envelope | None:
        """Return its message, or None if this code cannot read it."""
        try:
            return read(self.body, self.headers)
        except InvalidMessage:
            return None

    def is_of(self, envelope: Envelope) -> bool:
        """Return whether it holds this message."""
        mine = self.envelope()
        return mine is not None and envelope.is_same(mine)


def stored(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the columns of a body and its headers, byte for byte."""
    try:
        text = body.decode()
        readable = is_clean(text)
    except UnicodeDecodeError:
        readable = False
    if not readable:
        text = base64.b64encode(body).decode()
        headers = {**headers, _ENCODING: "base64"}
    return {"headers": json.dumps(dict(headers)), "body": text}


def replay_of(envelope: Envelope) -> int | None:
    """Return the id of the dead letter that a message replays."""
    letter = envelope.metadata.get(REPLAY_OF)
    return letter if type(letter) is int and 0 < letter < 2**63 else None  # any producer may have set it
