"""A model field that cannot be searched."""

from __future__ import annotations

from typing import Any

from django.db import models

__all__ = ["PayloadField"]


class PayloadField(models.TextField):
    """Text that may contain redacted values or is encrypted: it can be read, but not used in lookups.

    In an admin, any user who can view a list may filter it by URL (`?input__contains=4111`). Whether the list is then
    empty would reveal values that the user must not see.
    """

    def get_lookup(self, lookup_name: str) -> Any:
        return super().get_lookup(lookup_name) if lookup_name == "isnull" else None

    def get_transform(self, lookup_name: str) -> None:  # noqa: ARG002
        return None

    def deconstruct(self) -> Any:
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.TextField", args, kwargs  # for migrations
