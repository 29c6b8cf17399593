"""Flower with an additional tab. Flower has no plugins, so this uses Tornado: a template loader and more handlers."""

from __future__ import annotations

from typing import Any

import flower.command
from celery import Celery
from flower.app import Flower

from sagas.contrib.flower.counts import Counts
from sagas.contrib.flower.loader import Templates
from sagas.contrib.flower.routes import routes
from sagas.errors import ConfigurationError
from sagas.operations import Operations

__all__ = ["SagasFlower", "enable"]


class SagasFlower(Flower):  # type: ignore[misc]  # Flower is not typed
    """Flower for a Celery app with sagas.

    Raises `ConfigurationError` for an app that has no sagas, or does not store them in SQL.
    """

    def __init__(
        self, options: Any = None, capp: Celery | None = None, events: Any = None, io_loop: Any = None, **kwargs: Any
    ) -> None:
        kwargs["template_loader"] = Templates(kwargs["template_path"])
        super().__init__(options=options, capp=capp, events=events, io_loop=io_loop, **kwargs)
        if not hasattr(self.capp, "sagas"):
            raise ConfigurationError(
                f"the Celery app {self.capp.main!r} has no sagas to show. Create Sagas(app, store, [...]) with the app"
            )
        self.operations = Operations(self.capp.sagas)
        self.counts = Counts(self.operations.store)
        # Before Flower's catch-all handler, which answers 404.
        self.add_handlers(r".*", routes(self.options.url_prefix))


def enable() -> None:
    """Make `celery -A yourapp flower` show sagas too. Call it in the flowerconfig.py that Flower reads when it starts.

    >>> from sagas.contrib.flower import enable
    >>> enable()
    """
    flower.command.Flower = SagasFlower
