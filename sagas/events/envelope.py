"""The envelope of every event and command, and the link from one message to the next."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Any, Self

import msgspec
import uuid_utils

from sagas import causes, values
from sagas.causes import LONGEST_PATH, Cause
from sagas.errors import InvalidMessage
from sagas.events.messages import Kind, MessageType, dump, topic, type_of
from sagas.text import is_clean

__all__ = ["Envelope", "new_id"]

#: The longest header value, in characters. W3C allows 512 for a `tracestate`; a broker refuses far more.
_LONGEST_HEADER = 1_000

#: The longest message type, in characters. The path that other producers send may contain longer ones.
_LONGEST_TYPE = 100

#: The limits of the columns that store them.
_LARGEST = 2**31 - 1
_Count = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST)]
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=36)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
_Text = Annotated[str, msgspec.Meta(max_length=200)]


def new_id() -> str:
    """Return the id of a new message. Later ids sort after earlier ones."""
    return str(uuid_utils.uuid7())


class Envelope(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A message with the data needed to route, order, trace and read it.

    On the wire it is the JSON object `{eventId, eventType, version, timestamp, source, data, metadata}`.
    """

    event_id: _Id  #: unique; the same for every delivery of the message
    event_type: _Name
    version: Annotated[int, msgspec.Meta(ge=1, le=_LARGEST)]
    timestamp: Annotated[datetime, msgspec.Meta(tz=True)]  #: when it happened, UTC
    source: _Name  #: the service that published it
    data: msgspec.Raw  #: JSON
    metadata: dict[str, Any]

    @classmethod
    def wrap(
        cls,
        message: Any,
        *,
        source: str,
        key: str | None = None,
        correlation_id: str | None = None,
        cause: Envelope | Cause | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Self:
        """Put a message into a new envelope.

        `key`: messages with the same key stay in order. `correlation_id`: identifies the flow that the message belongs
        to; by default the cause's, or else the id of this message, which then starts a flow. `cause`: what led to this
        message; by default the message or step that is being handled.
        Raises `InvalidMessage` if it cannot be stored as JSON, or if one of its fields is too long.
        """
        declared = type_of(message)
        try:
            values.dump(metadata)
        except TypeError as error:
            raise InvalidMessage(f"{declared.kind} {declared.name!r}: its metadata: {error}") from error
        cause = causes.CURRENT.get() if cause is None else cause.cause if isinstance(cause, Envelope) else cause
        event_id = new_id()
        about: dict[str, Any] = {
            "kind": declared.kind.value,
            "correlationId": correlation_id or (cause.correlation_id if cause else event_id),
            "causationId": cause.id if cause else None,
            "hops": min(cause.hops, _LARGEST) if cause else 0,
            "path": list(cause.path) if cause else [],
        }
        if key is not None:
            about["key"] = key
        if cause is not None:
            about |= cause.trace
        return cls(
            event_id=event_id,
            event_type=declared.name,
            version=declared.version,
            timestamp=datetime.now(UTC),
            source=source,
            data=msgspec.Raw(dump(message)),
            metadata=about | (metadata or {}),
        ).checked()

    def encode(self) -> bytes:
        return _ENCODER.encode(self)

    @classmethod
    def decode(cls, body: bytes | str) -> Envelope:
        """Read an envelope. Raises `InvalidMessage`, with the reason, for anything else."""
        try:
            envelope = _DECODER.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidMessage(f"this is not an envelope: {error}") from error
        return envelope.checked()

    def checked(self) -> Self:
        """Return the envelope, after checking that it can be stored and forwarded and that known metadata is valid.

        Raises `InvalidMessage`.
        """
        where = f"{self.event_type!r}, id {self.event_id!r}"
        try:
            msgspec.convert(self.metadata, _Known)
            self.timestamp.astimezone(UTC)
            self.encode().decode()  # data is JSON, but nobody has checked yet that it is text
        except msgspec.ValidationError as error:
            raise InvalidMessage(f"{where}: its metadata: {error}") from error
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidMessage(f"{where}: it cannot be stored: {error}") from error
        for name in (self.event_id, self.event_type, self.source, self.key, self.correlation_id, self.causation_id):
            if name is not None and not is_clean(name):
                raise InvalidMessage(f"{where}: {name!r} contains a NUL character")
        for name in (self.event_id, self.source):
            if name != name.rstrip():  # MariaDB ignores trailing spaces in comparisons
                raise InvalidMessage(f"{where}: {name!r} ends with a space")
        return self

    def open(self, declared: MessageType) -> Any:
        """Return the message inside, upcast to the version that is read here. See `MessageType.load`."""
        return declared.load(self.data, self.version)

    # -- frequently used metadata ---------------------------------------------------------------------------------

    @property
    def kind(self) -> Kind:
        return Kind(self.metadata.get("kind", Kind.EVENT))

    @property
    def topic(self) -> str:
        return topic(self.event_type, self.version)

    @property
    def key(self) -> str | None:
        return self.metadata.get("key")

    @property
    def correlation_id(self) -> str:
        """Identifies the flow that this message belongs to; the message's own id if the producer set none."""
        return self.metadata.get("correlationId") or self.event_id

    @property
    def causation_id(self) -> str | None:
        """The id of the message that led to this one."""
        return self.metadata.get("causationId")

    @property
    def hops(self) -> int:
        """How many messages led to this one."""
        hops: int = self.metadata.get("hops", 0)
        return hops

    @property
    def path(self) -> list[str]:
        """The types of the messages that led to this one, oldest first."""
        path: list[str] = self.metadata.get("path", [])
        return path

    def is_same(self, other: Envelope) -> bool:
        """Return whether the other is this message, apart from its metadata."""
        return (self.source, self.event_id, self.digest) == (other.source, other.event_id, other.digest)

    @property
    def digest(self) -> str:
        """A hash of its content. Different content gives a different digest."""
        return hashlib.sha256(f"{self.event_type} {self.version} ".encode() + bytes(self.data)).hexdigest()

    @property
    def cause(self) -> Cause:
        """The cause of the messages and sagas that follow from this message."""
        trace = {name: self.metadata.get(name) for name in ("traceparent", "tracestate")}
        return Cause(
            self.event_id,
            self.correlation_id,
            hops=min(self.hops + 1, _LARGEST),
            path=tuple(one[:_LONGEST_TYPE] for one in [*self.path, self.event_type][-LONGEST_PATH:]),
            trace={name: value for name, value in trace.items() if value and trace["traceparent"]},
        )

    def headers(self) -> dict[str, str]:
        """Return what a broker's own headers repeat, so that a message can be routed and traced unread."""
        found = {
            "eventId": self.event_id,
            "eventType": self.event_type,
            "version": str(self.version),
            "kind": self.kind.value,
            "source": self.source,
            "correlationId": self.correlation_id,
            "causationId": self.causation_id,
            "key": self.key,
            "traceparent": self.metadata.get("traceparent"),
            "tracestate": self.metadata.get("tracestate"),
        }
        return {name: value for name, value in found.items() if value is not None and len(value) <= _LONGEST_HEADER}


class _Known(msgspec.Struct, rename="camel"):
    """The metadata that this library reads. Producers may add to it."""

    kind: Kind = Kind.EVENT
    key: _Text | None = None
    correlation_id: _Text | None = None
    causation_id: _Text | None = None
    hops: _Count = 0
    path: list[str] = []
    traceparent: str | None = None
    tracestate: str | None = None


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Envelope)
