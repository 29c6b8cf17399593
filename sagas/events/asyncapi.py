"""Describe the messages between services as an AsyncAPI 3.0 document: channels, operations, messages.

A channel is either the topic of an event or the queue of a service's commands. The payload is the envelope; the message
itself is in its `data`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sagas.events.bus import Events
from sagas.events.envelope import Envelope
from sagas.events.messages import Kind, MessageType, topic
from sagas.events.schema_registry.derive import describe
from sagas.events.services import COMMANDS, Service

__all__ = ["asyncapi"]


def asyncapi(events: Events, *, title: str, version: str) -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document of these services, as JSON.

    `title`, `version`: the title and version of the application that the document describes.
    Raises `SchemaRefused` for a message type that has no JSON Schema.

    >>> from sagas import SqlStore
    >>> from sagas.events import Service, event
    >>> @event("orders.order.placed")
    ... class OrderPlaced:
    ...     order_id: str
    >>> orders = Service("orders", publishes=[OrderPlaced])
    >>> document = asyncapi(
    ...     Events([orders], engine=SqlStore("sqlite://").engine, broker=None), title="Shop", version="1.0.0"
    ... )
    >>> list(document["operations"])
    ['orders.sends.orders.order.placed.v1']
    """
    messages = _messages(events)
    schemas = dict(_schemas(messages))
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": title,
            "version": version,
            "description": f"Events and commands under {events.exchange!r}.",
            "tags": [{"name": name} for name in sorted(events.services)],
        },
        "defaultContentType": "application/json",
        "channels": _channels(messages),
        "operations": _operations(events),
        "components": {
            "messages": {each.topic: _message(each) for each in messages},
            "schemas": schemas,
        },
    }


@dataclass(frozen=True, slots=True)
class _Message:
    """A message type in one version: the declared version, or an older one that an upcaster reads."""

    declared: MessageType
    version: int

    @property
    def topic(self) -> str:
        return topic(self.declared.name, self.version)

    @property
    def is_described(self) -> bool:
        return self.version == self.declared.version

    @property
    def channel(self) -> str:
        return _channel(self.declared, self.version)


def _messages(events: Events) -> list[_Message]:
    """Return every message, including the old versions that a handler here still reads."""
    found = {each.topic: _Message(each, each.version) for each in events.types}
    for subscription in events.subscriptions:
        for handler in subscription.handlers.values():
            for declared in handler.handles:
                for version in declared.upcasters:
                    found.setdefault(topic(declared.name, version), _Message(declared, version))
    return [found[each] for each in sorted(found)]


def _channel(declared: MessageType, version: int) -> str:
    if declared.kind is Kind.COMMAND:
        return f"{declared.context}.{COMMANDS}"
    return topic(declared.name, version)


def _channels(messages: Iterable[_Message]) -> dict[str, Any]:
    channels: dict[str, Any] = {}
    for each in messages:
        if each.declared.kind is Kind.COMMAND:
            description = f"The queue of commands to {each.declared.context!r}."
        else:
            description = f"Events that {each.declared.context!r} publishes."
        channel = channels.setdefault(
            each.channel, {"address": each.channel, "description": description, "messages": {}}
        )
        channel["messages"][each.topic] = {"$ref": f"#/components/messages/{each.topic}"}
    return channels


def _operations(events: Events) -> dict[str, Any]:
    operations: dict[str, Any] = {}
    for service in events.services.values():
        for declared in _sent_by(service):
            key = f"{service.name}.sends.{declared.topic}"
            operations[key] = _operation("send", service, declared, declared.version)
        for subscription in service.subscriptions:
            for handler in {each.name: each for each in subscription.handlers.values()}.values():
                for declared in handler.handles:
                    for version in declared.versions:
                        key = f"{subscription.queue}.receives.{topic(declared.name, version)}"
                        operations[key] = _operation("receive", service, declared, version)
                        operations[key]["x-queue"] = subscription.queue
                        if text := inspect.getdoc(handler.function):
                            operations[key]["description"] = text
    return operations


def _sent_by(service: Service) -> list[MessageType]:
    sent = {each.topic: each for each in service.publishes}
    for handler in service.handlers:
        sent |= {each.topic: each for each in handler.emits}
    return [sent[each] for each in sorted(sent)]


def _operation(action: str, service: Service, declared: MessageType, version: int) -> dict[str, Any]:
    channel = f"#/channels/{_channel(declared, version)}"
    return {
        "action": action,
        "channel": {"$ref": channel},
        "messages": [{"$ref": f"{channel}/messages/{topic(declared.name, version)}"}],
        "tags": [{"name": service.name}],
    }


def _message(message: _Message) -> dict[str, Any]:
    declared = message.declared
    data = {"data": {"$ref": f"#/components/schemas/{message.topic}"}} if message.is_described else {}
    described: dict[str, Any] = {
        "name": message.topic,
        "title": f"{declared.name} version {message.version}",
        "contentType": "application/json",
        "correlationId": {"location": "$message.header#/correlationId"},
        "headers": {"$ref": "#/components/schemas/Headers"},
        "payload": {
            "allOf": [
                {"$ref": "#/components/schemas/Envelope"},
                {
                    "type": "object",
                    "properties": {
                        "eventType": {"const": declared.name},
                        "version": {"const": message.version},
                        **data,
                    },
                },
            ]
        },
        "tags": [{"name": str(declared.kind)}, *([{"name": "failure"}] if declared.failure else [])],
    }
    if not message.is_described:
        described["description"] = f"An old version. Handlers read it as version {declared.version}."
        described["x-read-as"] = declared.version
    return described


def _schemas(messages: Iterable[_Message]) -> Iterator[tuple[str, Any]]:
    headers = ("eventId", "eventType", "version", "kind", "source", "correlationId")
    others = ("causationId", "key", "traceparent", "tracestate")
    text = {"type": "string"}
    yield (
        "Headers",
        {"type": "object", "properties": dict.fromkeys((*headers, *others), text), "required": list(headers)},
    )
    yield from _components("Envelope", describe(Envelope))
    for message in messages:
        if message.is_described:
            yield from _components(message.topic, describe(message.declared.cls))


def _components(name: str, definition: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a definition and its inner definitions, with qualified names: two services may each have an `Address`."""
    inner = dict(definition.pop("$defs", {}))
    root = definition.get("$ref", "").removeprefix("#/$defs/")
    names = {each: name if each == root else f"{name}.{each}" for each in inner}
    if root:
        definition = inner.pop(root)
    yield name, _converted(definition, names)
    for each, schema in inner.items():
        yield names[each], _converted(schema, names)


def _converted(schema: Any, names: dict[str, str]) -> Any:
    """Convert a schema to JSON Schema draft 7, which AsyncAPI uses, and point its references to the components."""
    if isinstance(schema, list):
        return [_converted(each, names) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for word, value in schema.items():
        if word == "$ref":
            made[word] = f"#/components/schemas/{names[value.removeprefix('#/$defs/')]}"
        elif word == "properties":
            made[word] = {name: _converted(each, names) for name, each in value.items()}
        elif word == "discriminator":
            made[word] = value["propertyName"]
        elif word == "prefixItems":
            made["items"] = _converted(value, names)
        elif word == "items" and "prefixItems" in schema:
            made["additionalItems"] = _converted(value, names)
        elif word in ("enum", "const", "default", "examples"):
            made[word] = value
        else:
            made[word] = _converted(value, names)
    return made
