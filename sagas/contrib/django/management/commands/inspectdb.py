"""`manage.py inspectdb`: Django's command without the tables of sagas, which already have models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core.management.commands import inspectdb

from sagas.stores import schema
from sagas.stores.migrate import VERSION_TABLE

__all__ = ["Command"]

_OURS = frozenset(schema.metadata.tables) | {VERSION_TABLE}


class Command(inspectdb.Command):
    """Writes no models for the library's tables unless they are named: two models for one table are an error."""

    def handle_inspection(self, options: dict[str, Any]) -> Iterator[str]:
        """Yield the same lines as Django, but without those tables."""
        given = options.get("table_name_filter")
        if not options["table"] and given is None:
            options = {**options, "table_name_filter": lambda name: name not in _OURS}
            yield "# The tables of sagas and events are omitted: their models are in sagas.contrib.django.models."
        yield from super().handle_inspection(options)
