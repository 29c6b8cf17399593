"""The composition root of events: services, a database, a broker, and what runs between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Engine

from sagas.errors import DuplicateName
from sagas.events.brokers import Broker
from sagas.events.messages import MessageType
from sagas.events.schema_registry import SchemaRegistry
from sagas.events.services import Service, Subscription

__all__ = ["Events"]


class Events:
    """Puts together what a process needs to publish and to consume.

    `services`: those that this code declares. `engine`: the database whose transactions the outbox and the inbox share.
    `broker`: what carries messages between processes. `exchange`: the name that all of its topics are under.
    `registry`: where the schemas of messages are kept, and checked at deployment; None: nowhere.
    """

    def __init__(
        self,
        services: Iterable[Service],
        *,
        engine: Engine,
        broker: Broker,
        exchange: str = "sagas.events",
        registry: SchemaRegistry | None = None,
    ) -> None:
        self.services: Mapping[str, Service] = {}
        for service in services:
            if service.name in self.services:
                raise DuplicateName(f"there are two services {service.name!r}")
            self.services = {**self.services, service.name: service}
        self.engine = engine
        self.broker = broker
        self.exchange = exchange
        self.registry = registry

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        return tuple(subscription for service in self.services.values() for subscription in service.subscriptions)

    @property
    def types(self) -> tuple[MessageType, ...]:
        """Every message that the services handle, emit or publish, sorted by name."""
        found: set[MessageType] = set()
        for service in self.services.values():
            found.update(service.publishes)
            for handler in service.handlers:
                found.update(handler.handles + handler.emits + handler.compensates)
        return tuple(sorted(found, key=lambda declared: (declared.name, declared.version)))
