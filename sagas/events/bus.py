"""The composition root of events: services, a database, a broker, and what runs between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Engine

from sagas.errors import DefinitionError, DuplicateName
from sagas.events.brokers import Broker
from sagas.events.messages import MessageType
from sagas.events.projections import Projection, Projections
from sagas.events.services import Service, Subscription
from sagas.events.store import EventStore

__all__ = ["Events"]


class Events:
    """Puts together what a process needs to publish and to consume.

    `services`: those that this code declares. `engine`: the database whose transactions the outbox and the inbox share.
    `broker`: what carries messages between processes. `exchange`: the name that all of its topics are under.
    `store`: where events are kept for good, if they are. `projections`: what is made of those; every version that this
    code has.
    Raises `DuplicateName` for two services, or two projections, of one name, `DefinitionError` for projections that
    have no store, or whose events it was not given.
    """

    def __init__(
        self,
        services: Iterable[Service],
        *,
        engine: Engine,
        broker: Broker,
        exchange: str = "sagas.events",
        store: EventStore | None = None,
        projections: Iterable[Projection] = (),
    ) -> None:
        self.services: Mapping[str, Service] = {}
        for service in services:
            if service.name in self.services:
                raise DuplicateName(f"there are two services {service.name!r}")
            self.services = {**self.services, service.name: service}
        self.engine = engine
        self.broker = broker
        self.exchange = exchange
        self.store = store
        projections = tuple(projections)
        if projections and store is None:
            raise DefinitionError(f"projection {projections[0]} has no events: Events(..., store=EventStore(...))")
        self.projections = None if store is None else Projections(store, projections)

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
