"""Assembles the `Sagas` of a Django project once per process: its Celery app, its database and its sagas."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from typing import Any, TypeVar

from celery import Celery, current_app
from celery.app.utils import find_app
from django.apps import apps
from django.utils.module_loading import import_string, module_has_submodule

from sagas.app import Sagas
from sagas.contrib.django.conf import PREFIX, read
from sagas.contrib.django.store import DjangoStore
from sagas.definition import Saga
from sagas.errors import ConfigurationError
from sagas.events import Events
from sagas.schedules import Schedule

__all__ = ["PROJECT", "Project", "describe"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T", Saga, Schedule)

#: The module in each installed app whose sagas are registered.
_MODULE = "sagas"


class Project:
    """This Django project's `Sagas`, or the reason why there are none.

    A failure does not stop Django from starting: `manage.py check` reports it together with other problems. Code that
    uses the sagas gets the error, too, and a worker does not start.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._sagas: Sagas | None = None

    def prepare(self) -> None:
        """Assemble the sagas. For `AppConfig.ready`."""
        found: list[Saga] = []
        try:
            found += _discover(Saga)
            self._sagas = _assemble(found, list(_discover(Schedule)))
        except Exception as failure:  # noqa: BLE001 - a module of the project may raise anything
            logger.error("sagas are not set up: %r", failure)  # noqa: TRY400 - code that uses them gets the traceback
            self.failure = failure
            for saga in found:
                saga.bind(_Refusing(self), replace=True)

    def get(self) -> Sagas:
        """Return the `Sagas`. Raises `ConfigurationError` if the set-up failed, or if Django is not set up yet."""
        if self._sagas is not None:
            return self._sagas
        if self.failure is not None:
            raise ConfigurationError(f"sagas are not set up: {describe(self.failure)}") from self.failure
        raise ConfigurationError(
            "sagas are available after Django is set up with 'sagas.contrib.django' in INSTALLED_APPS. A module that "
            "Django imports earlier must not use them while it is imported"
        )


class _Refusing:
    """Starts sagas if the set-up failed: it raises the reason."""

    def __init__(self, project: Project) -> None:
        self._project = project

    def start(self, *_: Any, **__: Any) -> Any:
        return self._project.get()

    def start_many(self, *_: Any, **__: Any) -> Any:
        return self._project.get()

    async def astart(self, *_: Any, **__: Any) -> Any:
        return self._project.get()

    async def astart_many(self, *_: Any, **__: Any) -> Any:
        return self._project.get()


def describe(failure: Exception) -> str:
    """Return the failure as one line."""
    return str(failure) if isinstance(failure, ConfigurationError) else f"{type(failure).__name__}: {failure}"


def _discover(kind: type[_T]) -> Iterator[_T]:
    """Yield each `Saga`, or each `Schedule`, that is a module variable of an installed app's `sagas.py`."""
    seen: set[int] = set()
    for config in apps.get_app_configs():
        if not module_has_submodule(config.module, _MODULE):
            continue
        for value in vars(importlib.import_module(f"{config.name}.{_MODULE}")).values():
            if isinstance(value, kind) and id(value) not in seen:
                seen.add(id(value))
                yield value


def _assemble(found: list[Saga], schedules: list[Schedule]) -> Sagas:
    settings = read()
    return Sagas(
        _celery_app(settings.app),
        DjangoStore(settings.database),
        found,
        lease=settings.lease,
        redispatch_after=settings.redispatch_after,
        recovery_interval=settings.recovery_interval,
        max_payload=settings.max_payload,
        run_next_inline=settings.run_next_inline,
        redact=settings.redact,
        events=_events(settings.events),
        schedules=schedules,
    )


def _celery_app(path: str) -> Celery:
    if path:
        try:
            return find_app(path)
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(f"{PREFIX}APP is {path!r}, but there is no Celery app there: {error}") from error
    app: Celery = current_app._get_current_object()  # noqa: SLF001 - the app itself, whichever is current later
    if app.main == "default":  # Celery's placeholder if there is no app
        raise ConfigurationError(
            "there is no Celery app. Import it in the project's __init__.py (from .celery import app as celery_app), "
            f'or set {PREFIX}APP = "yourproject.celery"'
        )
    return app


def _events(path: str) -> Events | None:
    if not path:
        return None
    try:
        events = import_string(path)
    except ImportError as error:
        raise ConfigurationError(f"{PREFIX}EVENTS is {path!r}, which cannot be imported: {error}") from error
    if not isinstance(events, Events):
        raise ConfigurationError(f"{PREFIX}EVENTS is {path!r}, which is {type(events).__name__}, not an Events object")
    return events


#: The project of this process.
PROJECT = Project()
