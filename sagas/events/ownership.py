"""Who may publish, send and emit what: checked before a message is written to the outbox."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sagas.errors import DefinitionError, NoHandler, NotOwner
from sagas.events.inbox import HANDLING
from sagas.events.messages import Kind, MessageType, type_of
from sagas.events.services import Service
from sagas.text import quoted

__all__ = ["Ownership"]


class Ownership:
    """What the services of one process may publish and send."""

    def __init__(self, services: Mapping[str, Service]) -> None:
        self._services = services

    def publishable(self, message: Any, kind: Kind) -> MessageType:
        """Return the declaration of a message that the caller may publish or send.

        Raises `DefinitionError` for another kind of message, and inside a handler that does not declare it.
        """
        if isinstance(message, type):
            raise DefinitionError(f"{message.__qualname__} is the class of a message. Pass an instance")
        declared = type_of(message)
        if declared.kind is not kind:
            verb = "send" if declared.kind is Kind.COMMAND else "publish"
            raise DefinitionError(f"{declared.name!r} is a {declared.kind}. Use Events.{verb}")
        handler = HANDLING.get()
        if handler is not None and declared not in handler.emits:
            raise DefinitionError(
                f"service {handler.service!r}, handler {handler.name!r}: it does not declare that it emits "
                f"{declared.name!r}. Add emits=[{declared.cls.__name__}] to its decorator: the flow is drawn and "
                "checked from these declarations"
            )
        return declared

    def check_owner(self, declared: MessageType) -> None:
        """Raise `NotOwner` if no service of this process owns an event."""
        if declared.context not in self._services:
            raise NotOwner(
                f"event {declared.name!r} belongs to service {declared.context!r}, and this process has "
                f"{quoted(self._services)}. Only its owner publishes an event. Send a command to have it act"
            )

    def queue_of(self, declared: MessageType) -> str:
        """Return the queue of a command's receiver. Raises `NoHandler` if that is here, without a handler."""
        if declared.context in self._services and not self._receives(declared):
            raise NoHandler(
                f"command {declared.name!r}: service {declared.context!r} belongs to this process and has no handler "
                f"for {declared.topic}. Declare one with @{declared.context}.handles({declared.cls.__name__})"
            )
        return f"{declared.context}.commands"

    def _receives(self, declared: MessageType) -> bool:
        subscriptions = self._services[declared.context].subscriptions
        return any(declared.topic in s.handlers for s in subscriptions if s.is_for_commands)

    def sender_of(self, declared: MessageType) -> str:
        """Return the service that sends a command. Raises `DefinitionError` if it could be any of several."""
        handler = HANDLING.get()
        if handler is not None:
            return handler.service
        if len(self._services) == 1:
            return next(iter(self._services))
        raise DefinitionError(
            f"command {declared.name!r}: this process has {quoted(self._services)}. Name the sender with source="
        )
