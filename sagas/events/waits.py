"""Events as signals: what a saga waits for with `Wait(on=, key=)`.

`Service.forward_to` declares the queues, and `EventSignals` delivers what arrives in them to the sagas. The engine
knows neither: to a saga, an event is a signal like any other, with the id of the event.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sagas.definition import Saga
from sagas.errors import ConfigurationError, SagaNotFound, SignalRefused, TerminalError
from sagas.events.envelope import Envelope
from sagas.nodes import Wait
from sagas.observers import Observers
from sagas.values import field_of

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sagas.stores import CheckpointStore
    from sagas.stores.sessions import AnySession

__all__ = ["EventSignals", "Signalled", "event_waits", "queue_of"]

logger = logging.getLogger(__name__)


class _Defined(Protocol):
    @property
    def sagas(self) -> Mapping[tuple[str, int], Saga]: ...


class Signalled(Protocol):
    """The sagas of an app, as far as events need to know them. `Sagas` is what they get."""

    @property
    def orchestrator(self) -> _Defined:
        """What has the definitions."""

    @property
    def store(self) -> CheckpointStore:
        """Where the sagas are kept."""

    def send_signal(
        self,
        saga_id: str,
        name: str,
        payload: Any = None,
        *,
        id: str | None = None,  # noqa: A002
        sender: str | None = None,
        session: AnySession | None = None,
    ) -> None:
        """Send a signal to a saga by its id."""


def event_waits(sagas: Iterable[Saga]) -> Mapping[tuple[str, str], Sequence[type]]:
    """Return the events that sagas wait for, by the names of the saga and the wait. Versions of a saga share them."""
    found: dict[tuple[str, str], list[type]] = {}
    for saga in sagas:
        for wait in _waits(saga):
            classes = found.setdefault((saga.name, wait.name), [])
            if wait.on is not None and wait.on not in classes:
                classes.append(wait.on)
    return found


def queue_of(saga: str, wait: str) -> str:
    """Return the name of the queue, within its service, for the events that a wait receives.

    >>> queue_of("shop.place_order", "payment")
    'shop-place_order-payment'
    """
    return f"{saga.replace('.', '-')}-{wait}"


class EventSignals:
    """Delivers events to the sagas of one app, each in the transaction of its inbox entry."""

    def __init__(self, observers: Observers) -> None:
        self._observers = observers
        self._sagas: Signalled | None = None

    def connect(self, sagas: Signalled) -> None:
        """Say whose sagas wait. Raises `ConfigurationError` if that was said of other sagas."""
        if self._sagas not in (None, sagas):
            raise ConfigurationError(
                f"these events belong to {self._sagas!r}, whose sagas would no longer receive the events that they "
                "wait for. Create an Events object for each Sagas"
            )
        self._sagas = sagas

    def deliver(self, saga: str, wait: str, event: Any, envelope: Envelope, session: Session) -> None:
        """Send an event to the saga that it is for. The same event twice counts once.

        An event for a saga that does not exist is no error, because an event goes to everybody: it is counted. So is
        an event that the saga no longer wants, or that came after another one.
        """
        if self._sagas is None:
            raise ConfigurationError(
                f"event {envelope.event_type!r} is for the sagas {saga!r}, and these events belong to no Sagas: "
                "Sagas(app, store, [...], events=events)"
            )
        outcome, about = "unknown", f"event {envelope.event_type} {envelope.event_id} for {saga}, wait {wait}"
        for saga_id in self._meant(saga, wait, event):
            try:
                self._sagas.send_signal(saga_id, wait, event, id=envelope.event_id, session=session)
                outcome = "delivered"
            except SignalRefused as error:
                outcome = "refused"
                logger.info("%s: %s", about, error)
        if outcome == "unknown":
            logger.info("%s: there is no such saga", about)
        self._observers.signalled(saga, wait, outcome)

    def _meant(self, saga: str, wait: str, event: Any) -> Iterator[str]:
        """Yield the id of the saga that the event is for. Each version of a definition says so in its own way."""
        assert self._sagas is not None
        for (name, version), definition in self._sagas.orchestrator.sagas.items():
            found = next((each for each in _waits(definition) if each.name == wait), None) if name == saga else None
            if found is None or found.on is not type(event):
                continue
            try:
                record = self._sagas.store.find(saga, _key_of(found, event, saga))
            except SagaNotFound:
                continue
            if record.version == version:
                yield record.id


def _waits(saga: Saga) -> Iterator[Wait]:
    return (bound.step for bound in saga.steps.values() if isinstance(bound.step, Wait) and bound.step.on is not None)


def _key_of(wait: Wait, event: Any, saga: str) -> str:
    key = field_of(event, wait.key) if isinstance(wait.key, str) else wait.key and wait.key(event)
    if not isinstance(key, str):
        raise TerminalError(
            f"saga {saga!r}, wait {wait.name!r}: its key= returned {type(key).__name__}, and the key of a saga is a str"
        )
    return key
