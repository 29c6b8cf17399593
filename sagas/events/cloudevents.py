"""Convert envelopes to and from CloudEvents 1.0, for systems that do not use this library's own format.

`read` recognizes an incoming CloudEvent by its content type and headers. `Events(wire=)` or `Service(wire=)` selects
the outgoing format: this library's envelope, or a CloudEvent in structured or binary mode.
==================  ==============================================================================================
CloudEvents         here
==================  ==============================================================================================
id                  `event_id`. An id that is not a UUID is unique only within its source, so both are hashed
source, time        `source`, `timestamp`
type                `topic`, as in orders.order.placed.v1. Without a version at its end, it is version 1
data                `data`; only JSON
partitionkey        `key`
correlationid,      `correlationId`, `causationId`, `kind`, `hops`, `path` of the metadata
causationid,
sagaskind,
sagashops,
sagaspath
traceparent,        the same: the Distributed Tracing extension
tracestate
any other           the same name in `metadata`. Metadata that cannot be an extension because of its name or type
                    travels in the extension sagasmetadata, as JSON
==================  ==============================================================================================
"""

from __future__ import annotations

import enum
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from sagas.errors import ConfigurationError, InvalidMessage
from sagas.events.envelope import Envelope

__all__ = [
    "CONTENT_TYPE",
    "PREFIX",
    "Wire",
    "from_binary",
    "from_structured",
    "read",
    "to_binary",
    "to_structured",
    "topic_of",
    "written",
]

#: The media type of the structured mode.
CONTENT_TYPE = "application/cloudevents+json"

#: The header with the media type of the body.
_TYPE = "content-type"

#: The prefixes of binary-mode headers: in HTTP and with RabbitMQ, with Kafka, and the two forms of AMQP 1.0.
_PREFIXES = ("ce-", "ce_", "cloudevents:", "cloudevents_")

_JSON = "application/json"
_IS_JSON = re.compile(r"[\w.-]+/([\w.-]+\+)?json(\s*;.*)?", re.IGNORECASE)
_VERSIONED = re.compile(r"(.+)\.v([1-9][0-9]{0,8})")
_EXTENSION = re.compile(r"[a-z0-9]+")
#: The prefix of binary-mode headers for brokers without a convention of their own.
PREFIX = "ce-"

#: Metadata whose extension has another name.
_NAMES = {
    "correlationId": "correlationid", "causationId": "causationid", "key": "partitionkey",
    "kind": "sagaskind", "hops": "sagashops", "path": "sagaspath",
}  # fmt: skip
_BACK = {theirs: ours for ours, theirs in _NAMES.items()}
#: Attributes of other producers whose names have another meaning here, and the metadata that keeps them.
_FOREIGN = {name: f"ce{name}" for name in ("id", "type", "key", "kind", "hops", "path")}
_FOREIGN_BACK = {ours: theirs for theirs, ours in _FOREIGN.items()}
_REST = "sagasmetadata"
#: Names that metadata may not use.
_TAKEN = frozenset(["specversion", "source", "time", "data", _REST, *_BACK, *_FOREIGN])
_ZONED = re.compile(r"(Z|[+-]\d\d:?\d\d)$", re.IGNORECASE)
#: Printable ASCII except `"` and `%`: what a header may contain unescaped. `quote` adds letters and digits.
_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


class Wire(enum.StrEnum):
    """The format of messages at a broker. Consumers read every format."""

    ENVELOPE = "envelope"  #: this library's own
    STRUCTURED = "structured"  #: a CloudEvent as one JSON object
    BINARY = "binary"  #: a CloudEvent with its attributes as headers and its data as the body

    @classmethod
    def of(cls, name: str) -> Wire:
        """Return the format with this name. Raises `ConfigurationError` if there is none."""
        try:
            return cls(name)
        except ValueError as error:
            raise ConfigurationError(f"wire={name!r} must be one of {', '.join(map(repr, map(str, cls)))}") from error


def written(envelope: Envelope, wire: Wire, prefix: str) -> tuple[dict[str, str], bytes]:
    """Return the headers and body of a message for a broker.

    `prefix`: the prefix of that broker's CloudEvents headers in binary mode.
    """
    if wire is Wire.ENVELOPE:
        return envelope.headers(), envelope.encode()
    if wire is Wire.STRUCTURED:
        return {_TYPE: CONTENT_TYPE}, to_structured(envelope)
    attributes = _texts(envelope)
    return (
        {_TYPE: attributes.pop("datacontenttype")} | {prefix + name: text for name, text in attributes.items()},
        bytes(envelope.data),
    )


def read(body: bytes, headers: Mapping[str, str]) -> Envelope | None:
    """Return the envelope of a CloudEvent, or None if the message does not claim to be a CloudEvent.

    The content type decides, then the headers: in binary mode, every producer sets `specversion`. Raises
    `InvalidMessage` if the message claims to be a CloudEvent and is not a valid one.
    """
    named = {name.lower(): value for name, value in headers.items()}
    content_type = named.get(_TYPE, named.get("content_type", "")).partition(";")[0].strip().lower()
    if content_type == CONTENT_TYPE:
        return from_structured(body)
    if content_type.startswith("application/cloudevents"):
        raise InvalidMessage(f"CloudEvents in the format {content_type!r} are not supported. Send {CONTENT_TYPE!r}")
    for prefix in _PREFIXES:
        if f"{prefix}specversion" in named:
            about = {name.removeprefix(prefix): text for name, text in named.items() if name.startswith(prefix)}
            if "time" in about:
                about["time"] = _time(about["time"])
            return _of_texts(about, named.get(_TYPE), body)
    return None


def _time(text: str) -> str:
    """Return the time of a CloudEvent as text, for brokers that have their own type for timestamps."""
    if text.isascii() and text.isdecimal() and len(text) < 15:  # AMQP: milliseconds
        return datetime.fromtimestamp(int(text) / 1000, UTC).isoformat()
    moment = text.strip('"').replace(" ", "T")
    return moment if _ZONED.search(moment) else f"{moment}Z"


def topic_of(body: bytes, headers: Mapping[str, str]) -> str:
    """Return the topic of a message published without one, from its CloudEvents type; empty if it has none."""
    try:
        envelope = read(body, headers)
    except InvalidMessage:
        return ""
    return "" if envelope is None else envelope.topic


def to_structured(envelope: Envelope) -> bytes:
    """Return the CloudEvent as one JSON object; its content type is `CONTENT_TYPE`."""
    return msgspec.json.encode({**_attributes(envelope), "data": envelope.data})


def from_structured(body: bytes | str) -> Envelope:
    """Read a CloudEvent from one JSON object. Raises `InvalidMessage` for anything else."""
    try:
        raw: dict[str, msgspec.Raw] = _OBJECT.decode(body)
        data = raw.pop("data", msgspec.Raw(b"null"))
        attributes = {name: msgspec.json.decode(value) for name, value in raw.items()}
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"this is not a JSON CloudEvent: {error}") from error
    if "data_base64" in attributes:
        raise InvalidMessage("this CloudEvent has binary data (data_base64), but a message must be JSON")
    return _envelope(attributes, data)


def to_binary(envelope: Envelope) -> tuple[dict[str, str], bytes]:
    """Return the CloudEvent as the headers and body of an HTTP message. Numbers in the headers become text."""
    attributes = _texts(envelope)
    headers = {_TYPE: attributes.pop("datacontenttype")}
    return headers | {PREFIX + name: quote(text, safe=_SAFE) for name, text in attributes.items()}, bytes(envelope.data)


def from_binary(headers: Mapping[str, str], body: bytes) -> Envelope:
    """Read a CloudEvent from the headers and body of an HTTP message. Raises `InvalidMessage` for anything else.

    Header names may be in any case; headers that do not belong to the event are ignored.
    """
    named = {name.lower(): value for name, value in headers.items()}
    about = {name.removeprefix(PREFIX): unquote(text) for name, text in named.items() if name.startswith(PREFIX)}
    return _of_texts(about, named.get(_TYPE), body)


def _texts(envelope: Envelope) -> dict[str, str]:
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in _attributes(envelope).items()
    }


def _of_texts(about: Mapping[str, str], content_type: str | None, body: bytes) -> Envelope:
    attributes: dict[str, Any] = {**about, "datacontenttype": content_type}
    try:
        data = _RAW.decode(body or b"null")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"this CloudEvent's data is not JSON: {error}") from error
    return _envelope(attributes, data)


def _attributes(envelope: Envelope) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": envelope.event_id,
        "source": envelope.source,
        "type": envelope.topic,
        "time": envelope.timestamp.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": _JSON,
    }
    rest = {}
    for name, value in envelope.metadata.items():
        if name == "path":
            if value:
                attributes["sagaspath"] = ",".join(value)
        elif value is None:
            pass  # the same as absent
        elif name in _NAMES and value != "":
            attributes[_NAMES[name]] = value
        elif name in _FOREIGN_BACK and _is_scalar(value):
            attributes[_FOREIGN_BACK[name]] = value
        elif _EXTENSION.fullmatch(name) and name not in _TAKEN and _is_scalar(value):
            attributes[name] = value
        else:
            rest[name] = value
    if rest:
        attributes[_REST] = msgspec.json.encode(rest).decode()
    return attributes


def _is_scalar(value: Any) -> bool:
    """Return whether an extension can hold a value of this type."""
    if isinstance(value, str):
        return value != ""
    return isinstance(value, bool) or (isinstance(value, int) and -(2**31) <= value < 2**31)


def _envelope(attributes: dict[str, Any], data: msgspec.Raw) -> Envelope:
    about = {name: value for name, value in attributes.items() if value is not None}
    version, given_id, source, type_ = (about.pop(name, None) for name in ("specversion", "id", "source", "type"))
    if version != "1.0":
        raise InvalidMessage(f"this is not a CloudEvent with specversion 1.0: specversion={version!r}")
    if not all(isinstance(text, str) and text for text in (given_id, source, type_)):
        raise InvalidMessage(
            f"a CloudEvent needs text for each of id={given_id!r}, source={source!r} and type={type_!r}"
        )
    content_type = str(about.pop("datacontenttype", _JSON))
    if not _IS_JSON.fullmatch(content_type):
        raise InvalidMessage(
            f"CloudEvent {given_id!r} of {source!r} has data of type {content_type!r}, but a message must be JSON"
        )
    event_id = given_id if _is_uuid(given_id) else str(uuid.uuid5(uuid.NAMESPACE_URL, f"{source} {given_id}"))
    versioned = _VERSIONED.fullmatch(type_)
    foreign = {
        "datacontenttype": content_type if content_type != _JSON else None,
        _FOREIGN["id"]: given_id if event_id != given_id else None,
        _FOREIGN["type"]: type_ if versioned is None else None,
    }
    try:
        fields = {
            "eventId": event_id,
            "eventType": type_ if versioned is None else versioned[1],
            "version": 1 if versioned is None else int(versioned[2]),
            "timestamp": msgspec.convert(about.pop("time", None) or datetime.now(UTC), datetime),
            "source": source,
            "data": data,
            "metadata": _metadata(about) | {name: value for name, value in foreign.items() if value is not None},
        }
        return msgspec.convert(fields, Envelope).checked()
    except (msgspec.MsgspecError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidMessage(f"CloudEvent {given_id!r} of {source!r}: {error}") from error


def _metadata(about: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"kind": "event", "causationId": None, "hops": 0, "path": []}
    metadata |= msgspec.json.decode(about.pop(_REST, "{}"), type=dict[str, Any])
    for name, value in about.items():
        metadata[_BACK.get(name) or _FOREIGN.get(name) or name] = value
    if "sagaspath" in about:
        metadata["path"] = about["sagaspath"].split(",")
    if "sagashops" in about:
        metadata["hops"] = int(about["sagashops"])
    return metadata


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW = msgspec.json.Decoder(msgspec.Raw)
