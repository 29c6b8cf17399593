"""`manage.py dumpdata`: Django's own, without the tables of sagas."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError
from django.core.management.commands import dumpdata

from sagas.contrib.django.fixtures import WHY

__all__ = ["Command"]


class Command(dumpdata.Command):
    """Leaves sagas and events out of what it writes, and says so."""

    def handle(self, *app_labels: str, **options: Any) -> Any:
        """Do as Django does. Raises `CommandError` when sagas are asked for by name."""
        if asked := [label for label in app_labels if label.partition(".")[0] == "sagas"]:
            raise CommandError(f"{', '.join(asked)}: {WHY}")
        if not app_labels and "sagas" not in options["exclude"]:
            options["exclude"] = [*options["exclude"], "sagas"]
            if options["verbosity"]:
                self.stderr.write("dumpdata leaves out the tables of sagas and events (--exclude sagas says so, too)")
        return super().handle(*app_labels, **options)
