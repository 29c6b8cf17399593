"""A message as a record of Kafka, and what is found in a record from any sender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Message

from sagas.events.brokers import Outgoing
from sagas.events.brokers.shared import texts
from sagas.events.cloudevents import topic_of

__all__ = ["Record", "body_of", "headers_of", "publishers_headers", "published_under"]

#: The record header that this library sets. All other headers are the publisher's.
_TOPIC = "sagas-topic"

#: The header that marks a message whose body was null rather than empty: a tombstone.
_TOMBSTONE = "kafka-tombstone"


@dataclass(frozen=True, slots=True)
class Record:
    """What is written to a Kafka topic."""

    topic: str
    key: bytes | None
    value: bytes
    headers: Sequence[tuple[str, bytes]] = ()

    @classmethod
    def of(cls, message: Outgoing, exchange: str) -> Record:
        """Return the record of a message, for its queue's topic or for that of the exchange."""
        headers = [(name, value.encode()) for name, value in message.headers.items()]
        headers.append((_TOPIC, message.topic.encode()))
        key = None if message.key is None else message.key.encode()
        return cls(message.queue or exchange, key, message.body, headers)


def headers_of(message: Message) -> dict[str, str]:
    """Return all headers of a record, as text."""
    try:
        headers: Any = message.headers() or ()  # pairs, although the stubs allow more
    except UnicodeDecodeError:  # a header name that is not text
        return {}
    return texts(headers)


def published_under(message: Message, headers: Mapping[str, str]) -> str:
    """Return the topic a record was published under. Other publishers set a CloudEvents type, or nothing at all."""
    said = headers.get(_TOPIC)
    return topic_of(body_of(message), headers) if said is None else said


def publishers_headers(message: Message, headers: Mapping[str, str]) -> dict[str, str]:
    """Return a record's headers without those of this library, and with a mark if its value is null."""
    others = {name: value for name, value in headers.items() if name != _TOPIC}
    return {**others, _TOMBSTONE: "true"} if message.value() is None else others


def body_of(message: Message) -> bytes:
    """Return the body of a record; empty where it is null."""
    return message.value() or b""
