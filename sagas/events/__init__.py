"""Events and commands: facts that are broadcast and requests to one service, with or without sagas."""

from sagas.events.bus import Events
from sagas.events.deadletters import CommandFailed
from sagas.events.envelope import Envelope
from sagas.events.local import LocalBus
from sagas.events.messages import Kind, MessageType, NamingWarning, command, event, type_of
from sagas.events.projections import Projection, Projections, ProjectionState
from sagas.events.services import Handler, HandlerContext, Service, Subscription
from sagas.events.store import ANY, NO_STREAM, EventStore, Loaded, Snapshots, StoredEvent, fold

__all__ = [
    # declare
    "event",
    "command",
    "type_of",
    "Kind",
    "MessageType",
    "NamingWarning",
    "Service",
    "Subscription",
    "Handler",
    "HandlerContext",
    # transport
    "Events",
    "Envelope",
    "LocalBus",
    "CommandFailed",
    # store
    "EventStore",
    "StoredEvent",
    "ANY",
    "NO_STREAM",
    "fold",
    "Loaded",
    "Snapshots",
    "Projection",
    "ProjectionState",
    "Projections",
]
