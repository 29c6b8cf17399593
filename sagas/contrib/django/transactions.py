"""Steps and events in transactions of Django's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import transaction
from sqlalchemy import Engine

from sagas.contrib.django.conf import alias
from sagas.contrib.django.connections import open_engine
from sagas.contrib.django.errors import told_to_django
from sagas.contrib.django.project import PROJECT
from sagas.definition import StepContext
from sagas.errors import ConfigurationError
from sagas.events import Events
from sagas.events.envelope import Envelope

__all__ = ["atomic", "engine", "publish", "send"]


@contextmanager
def atomic(step: StepContext) -> Iterator[None]:
    """Have what the ORM writes commit together with the success of a step, or not at all: it happens exactly once.

    That is so on the database that holds the sagas. From its first use until the step returns there is one
    transaction, which also checkpoints the step; it is not over at the end of the block. So keep what is slow, such as
    a call to another service, before it. An error that leaves the block undoes the block; one that leaves the step
    undoes it all.

    >>> def reserve(sku: str, step: StepContext) -> None:
    ...     with atomic(step):
    ...         Stock.objects.filter(sku=sku).update(left=F("left") - 1)
    """
    try:
        session = step.session
    except ConfigurationError as error:  # sagas in memory
        raise ConfigurationError(_ELSEWHERE.format(alias=alias())) from error
    if session.get_bind() is not engine():
        raise ConfigurationError(_ELSEWHERE.format(alias=alias()))
    with told_to_django(engine()):
        session.connection()
    with transaction.atomic(using=alias()):
        yield


_ELSEWHERE = (
    "atomic(step): this saga is not kept in Django's database {alias!r}, so what the ORM writes could not commit with "
    "the step. In tests: Inline(sagas.store), with sagas from sagas.contrib.django"
)


def engine() -> Engine:
    """Return an engine of SQLAlchemy on Django's own connection to the database that holds the sagas.

    For `Events(..., engine=engine())`. Its transactions are atomic blocks of Django's.
    """
    return open_engine(alias())


def publish(event: Any, **options: Any) -> Envelope:
    """Publish an event in the running `transaction.atomic()`, or else at once. Options and errors: `Events.publish`.

    Raises `ConfigurationError` where there is no `CELERY_SAGAS_EVENTS`.
    """
    with told_to_django(engine()), engine().begin() as connection:
        return _events().publish(event, connection, **options)


def send(command: Any, **options: Any) -> Envelope:
    """Send a command in the running `transaction.atomic()`, or else at once. Options and errors: `Events.send`.

    Raises `ConfigurationError` where there is no `CELERY_SAGAS_EVENTS`.
    """
    with told_to_django(engine()), engine().begin() as connection:
        return _events().send(command, connection, **options)


def _events() -> Events:
    events = PROJECT.get().events
    if events is None:
        raise ConfigurationError('there are no events: set CELERY_SAGAS_EVENTS = "yourapp.events.events"')
    return events
