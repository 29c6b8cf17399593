"""`manage.py dumpdata`: Django's command without the tables of sagas."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError
from django.core.management.commands import dumpdata

from sagas.contrib.django.fixtures import WHY

__all__ = ["Command"]


class Command(dumpdata.Command):
    """Excludes sagas and events from the dump, and prints a note about it."""

    def handle(self, *app_labels: str, **options: Any) -> Any:
        """Dump data as Django does. Raises `CommandError` if sagas are named explicitly."""
        if asked := [label for label in app_labels if label.partition(".")[0] == "sagas"]:
            raise CommandError(f"{', '.join(asked)}: {WHY}")
        if not app_labels and "sagas" not in options["exclude"]:
            options["exclude"] = [*options["exclude"], "sagas"]
            if options["verbosity"]:
                self.stderr.write("dumpdata excludes the tables of sagas and events, as --exclude sagas does")
        return super().handle(*app_labels, **options)
