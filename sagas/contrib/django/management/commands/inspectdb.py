"""`manage.py inspectdb`: Django's own, without the tables of sagas, whose models there are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core.management.commands import inspectdb

from sagas.stores import schema
from sagas.stores.migrate import VERSION_TABLE

__all__ = ["Command"]

_OURS = frozenset(schema.metadata.tables) | {VERSION_TABLE}


class Command(inspectdb.Command):
    """Writes no models of the library's tables, unless they are named: two models of one table are an error."""

    def handle_inspection(self, options: dict[str, Any]) -> Iterator[str]:
        """Yield the lines that Django yields, but for those tables."""
        given = options.get("table_name_filter")
        if not options["table"] and given is None:
            options = {**options, "table_name_filter": lambda name: name not in _OURS}
            yield "# The tables of sagas and events are left out: their models are in sagas.contrib.django.models."
        yield from super().handle_inspection(options)
