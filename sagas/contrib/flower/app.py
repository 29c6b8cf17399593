"""Flower with one tab more. It has no plug-ins; what is used here is Tornado's: a template loader and more handlers."""

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
    """Flower for a Celery app that has sagas.

    Raises `ConfigurationError` for an app that has none, or keeps them in anything else than SQL.
    """

    def __init__(
        self, options: Any = None, capp: Celery | None = None, events: Any = None, io_loop: Any = None, **kwargs: Any
    ) -> None:
        kwargs["template_loader"] = Templates(kwargs["template_path"])
        super().__init__(options=options, capp=capp, events=events, io_loop=io_loop, **kwargs)
        if not hasattr(self.capp, "sagas"):
            raise ConfigurationError(
                f"the Celery app {self.capp.main!r} has no sagas to show: Sagas(app, store, [...]) where it is made"
            )
        self.operations = Operations(self.capp.sagas)
        self.counts = Counts(self.operations.store)
        # They come before Flower's answer to whatever it does not know, which is 404.
        self.add_handlers(r".*", routes(self.options.url_prefix))


def enable() -> None:
    """Have `celery -A yourapp flower` show sagas too. Call it in the flowerconfig.py that Flower reads at its start.

    >>> from sagas.contrib.flower import enable
    >>> enable()
    """
    flower.command.Flower = SagasFlower
