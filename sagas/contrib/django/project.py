"""Puts the `Sagas` of a Django project together, once a process: its Celery app, its database, its sagas."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from typing import Any

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

__all__ = ["PROJECT", "Project", "describe"]

logger = logging.getLogger(__name__)

#: The module of each installed app whose sagas are registered.
_MODULE = "sagas"


class Project:
    """This Django project: its `Sagas`, or why there are none.

    What is wrong does not keep Django from starting: `manage.py check` is to say it, with all else that is wrong.
    Whoever asks for the sagas is told, too, and a worker does not start.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._sagas: Sagas | None = None

    def prepare(self) -> None:
        """Put them together. For `AppConfig.ready`."""
        found: list[Saga] = []
        try:
            found += _discover()
            self._sagas = _assemble(found)
        except Exception as failure:  # noqa: BLE001 - a module of the project may raise anything
            logger.error("sagas are not set up: %r", failure)  # noqa: TRY400 - who asks for them gets it all
            self.failure = failure
            for saga in found:
                saga._starter = _Refusing(self)  # noqa: SLF001

    def get(self) -> Sagas:
        """Return them. Raises `ConfigurationError` where something is wrong, or Django is not set up yet."""
        if self._sagas is not None:
            return self._sagas
        if self.failure is not None:
            raise ConfigurationError(f"sagas are not set up: {describe(self.failure)}") from self.failure
        raise ConfigurationError(
            "sagas are there once Django is set up, with 'sagas.contrib.django' in INSTALLED_APPS; "
            "a module that Django imports before that must not use them yet"
        )


class _Refusing:
    """What a saga is started by where the set-up failed."""

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
    """Say what went wrong in one line."""
    return str(failure) if isinstance(failure, ConfigurationError) else f"{type(failure).__name__}: {failure}"


def _discover() -> Iterator[Saga]:
    """Yield each `Saga` that a `sagas.py` of an installed app has a name for."""
    seen: set[int] = set()
    for config in apps.get_app_configs():
        if not module_has_submodule(config.module, _MODULE):
            continue
        for value in vars(importlib.import_module(f"{config.name}.{_MODULE}")).values():
            if isinstance(value, Saga) and id(value) not in seen:
                seen.add(id(value))
                yield value


def _assemble(found: list[Saga]) -> Sagas:
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
    )


def _celery_app(path: str) -> Celery:
    if path:
        try:
            return find_app(path)
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(f"{PREFIX}APP is {path!r}, and there is no Celery app: {error}") from error
    app: Celery = current_app._get_current_object()  # noqa: SLF001 - the app itself, whatever is current later
    if app.main == "default":  # the one that Celery makes up when it is asked for an app and there is none
        raise ConfigurationError(
            "there is no Celery app: import it in the project's __init__.py (from .celery import app as celery_app), "
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


#: That of this process.
PROJECT = Project()
