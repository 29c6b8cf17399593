"""The installed app: `"sagas.contrib.django"` in `INSTALLED_APPS`."""

from __future__ import annotations

from typing import Any

from celery import signals
from django.apps import AppConfig
from django.core import checks

from sagas.contrib.django import checks as own_checks
from sagas.contrib.django import router
from sagas.contrib.django.fixtures import refuse_loading
from sagas.contrib.django.project import PROJECT, describe

__all__ = ["SagasConfig"]


class SagasConfig(AppConfig):
    """Sets up the project's sagas when Django is set up, in web processes and workers alike."""

    name = "sagas.contrib.django"
    label = "sagas"
    verbose_name = "Sagas"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        router.install()
        refuse_loading(self)
        PROJECT.prepare()
        checks.register(own_checks.check_set_up)
        checks.register(own_checks.check_sqlite)
        checks.register(own_checks.check_tables, checks.Tags.database)
        signals.celeryd_init.connect(_refuse_to_start, dispatch_uid="sagas.contrib.django")


def _refuse_to_start(**_: Any) -> None:
    """End a worker that could not run any saga. Celery ignores failed checks, and all other exceptions in signals."""
    if PROJECT.failure is not None:
        raise SystemExit(f"sagas are not set up: {describe(PROJECT.failure)}") from PROJECT.failure
