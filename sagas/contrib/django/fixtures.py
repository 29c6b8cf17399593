"""Keeps the tables of sagas out of fixtures: a saga that is loaded from one would run, and do everything again."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import pre_save

from sagas.errors import NotAllowed

__all__ = ["WHY", "refuse_loading"]

WHY = (
    "sagas are no fixtures: workers would run a saga that is loaded from a dump, with all of its effects, once more. "
    "Copy the whole database with its own tools, such as pg_dump or mysqldump"
)


def refuse_loading(config: AppConfig) -> None:
    """Have `loaddata`, and whatever else writes rows of these models, be told so before anything is written."""
    for model in config.get_models():
        pre_save.connect(_refuse, sender=model, dispatch_uid="sagas.contrib.django")


def _refuse(*, sender: Any, **_: Any) -> None:
    raise NotAllowed(f"{sender.__name__} cannot be loaded or saved: {WHY}. Leave them out: loaddata --exclude sagas")
