"""Steps and events in Django's transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import transaction
from sqlalchemy import Engine

from sagas.context import StepContext
from sagas.contrib.django.conf import alias
from sagas.contrib.django.connections import open_engine
from sagas.contrib.django.errors import told_to_django
from sagas.contrib.django.project import PROJECT
from sagas.errors import ConfigurationError
from sagas.events import Events
from sagas.events.envelope import Envelope

__all__ = ["atomic", "engine", "publish", "send"]


@contextmanager
def atomic(step: StepContext) -> Iterator[None]:
    """Commit ORM writes together with the success of a step, or not at all: they happen exactly once.

    This holds for the database that stores the sagas. One transaction lasts from the first use until the step returns,
    and also checkpoints the step; it does not end with the block. Put slow work, such as a call to another service,
    before the block. An exception that leaves the block undoes the block; one that leaves the step undoes everything.

    >>> def reserve(sku: str, step: StepContext) -> None:
    ...     with atomic(step):
    ...         Stock.objects.filter(sku=sku).update(left=F("left") - 1)
    """
    try:
        session = step.session
    except ConfigurationError as error:  # a store in memory
        raise ConfigurationError(_ELSEWHERE.format(alias=alias())) from error
    if session.get_bind() is not engine():
        raise ConfigurationError(_ELSEWHERE.format(alias=alias()))
    with told_to_django(engine()):
        session.connection()
    with transaction.atomic(using=alias()):
        yield


_ELSEWHERE = (
    "atomic(step): this saga is not stored in Django's database {alias!r}, so ORM writes could not commit with the "
    "step. In tests use Inline(sagas.store), with sagas from sagas.contrib.django"
)


def engine() -> Engine:
    """Return a SQLAlchemy engine on Django's own connection to the database that stores the sagas.

    For `Events(..., engine=engine())`. Its transactions are Django's atomic blocks.
    """
    return open_engine(alias())


def publish(event: Any, **options: Any) -> Envelope:
    """Publish an event in the current `transaction.atomic()`, or else at once. Options and errors: `Events.publish`.

    Raises `ConfigurationError` if `CELERY_SAGAS_EVENTS` is not set.
    """
    with told_to_django(engine()), engine().begin() as connection:
        return _events().publish(event, connection, **options)


def send(command: Any, **options: Any) -> Envelope:
    """Send a command in the current `transaction.atomic()`, or else at once. Options and errors: `Events.send`.

    Raises `ConfigurationError` if `CELERY_SAGAS_EVENTS` is not set.
    """
    with told_to_django(engine()), engine().begin() as connection:
        return _events().send(command, connection, **options)


def _events() -> Events:
    events = PROJECT.get().events
    if events is None:
        raise ConfigurationError('there are no events. Set CELERY_SAGAS_EVENTS = "yourapp.events.events"')
    return events
