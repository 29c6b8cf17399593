"""Keeps the tables of sagas out of fixtures: a saga loaded from a fixture would run again."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import pre_save

from sagas.errors import NotAllowed

__all__ = ["WHY", "refuse_loading"]

WHY = (
    "sagas cannot be fixtures: workers would run a saga from a dump again, with all of its effects. Copy the whole "
    "database with its own tools, such as pg_dump or mysqldump"
)


def refuse_loading(config: AppConfig) -> None:
    """Make `loaddata`, and other code that saves these models, fail before anything is written."""
    for model in config.get_models():
        pre_save.connect(_refuse, sender=model, dispatch_uid="sagas.contrib.django")


def _refuse(*, sender: Any, **_: Any) -> None:
    raise NotAllowed(f"{sender.__name__} cannot be loaded or saved: {WHY}. Exclude sagas: loaddata --exclude sagas")
