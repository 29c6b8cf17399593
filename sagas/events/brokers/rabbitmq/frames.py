"""Frames from any sender: what py-amqp cannot read does not close the connection."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from amqp.method_framing import frame_handler
from amqp.serialization import dumps

__all__ = ["forbearing"]

#: Replaces properties that cannot be read: it holds all of them, as received.
_UNREAD = "amqp-properties"

_METHOD, _HEADER = 1, 2
_DELIVER = b"\0\x3c\0\x3c"


def forbearing(connection: Any, callback: Any, **_: Any) -> Callable[[Any], Any]:
    """Handle frames, and keep the connection open when py-amqp cannot read a message's names or properties.

    The fault lies in a single message, and RabbitMQ would send it again. An example is a date in the year 58,000, where
    a sender used milliseconds instead of seconds.
    """
    handle = frame_handler(connection, callback)

    def on_frame(frame: Any) -> Any:
        kind, channel, content = frame
        if kind == _METHOD and content[:4] == _DELIVER:
            return handle((kind, channel, _with_ascii_names(content)))
        if kind != _HEADER:
            return handle(frame)
        try:
            return handle(frame)
        except Exception:  # noqa: BLE001 - py-amqp does not document what it raises
            return handle((kind, channel, _without_properties(content)))

    return on_frame


def _with_ascii_names(content: Any) -> bytes:
    """Return the method that delivers a message, with readable names: "?" replaces bytes that are not text."""
    text = bytearray(content)
    at = 4
    at += 1 + text[at]  # the consumer tag
    at += 8 + 1  # the delivery tag and the redelivered flag
    for _ in ("exchange", "routing key"):
        begin, end = at + 1, at + 1 + text[at]
        try:
            text[begin:end].decode()
        except UnicodeDecodeError:
            text[begin:end] = bytes(byte if byte < 0x80 else ord("?") for byte in text[begin:end])
        at = end
    return bytes(text)


def _without_properties(content: Any) -> bytes:
    """Return a message's header with one property, which holds all properties as received."""
    fixed, properties = bytes(content[:12]), bytes(content[12:])
    header = {_UNREAD: f"base64:{base64.b64encode(properties).decode()}"}
    table: bytes = dumps("F", (header,))
    return fixed + b"\x20\0" + table
