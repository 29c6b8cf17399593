"""A column of a model that nobody can search."""

from __future__ import annotations

from typing import Any

from django.db import models

__all__ = ["PayloadField"]


class PayloadField(models.TextField):
    """Text that may hold redacted values or is encrypted: it can be read, and not looked up.

    In an admin everybody who may look at a list may filter it by the URL (`?input__contains=4111`), and a list that
    is empty or not tells them what they must not see.
    """

    def get_lookup(self, lookup_name: str) -> Any:
        return super().get_lookup(lookup_name) if lookup_name == "isnull" else None

    def get_transform(self, lookup_name: str) -> None:  # noqa: ARG002
        return None

    def deconstruct(self) -> Any:
        name, _, args, kwargs = super().deconstruct()
        return name, "django.db.models.TextField", args, kwargs  # what migrations see
