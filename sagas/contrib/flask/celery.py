"""The Celery app of a Flask app."""

from __future__ import annotations

from typing import Any

from celery import Celery, Task
from flask import Flask

from sagas.errors import ConfigurationError

__all__ = ["celery_of"]


def celery_of(app: Flask) -> Celery:
    """Return the Celery app in `app.extensions["celery"]`, or create it from the setting `CELERY`.

    Tasks of a created app run in an app context. It becomes the default app, so that `shared_task` finds it.
    """
    known: Celery | None = app.extensions.get("celery")
    if known is not None:
        return known
    if "CELERY" not in app.config:
        raise ConfigurationError(
            f"the app {app.name!r} has no Celery app. Set CELERY = {{'broker_url': 'redis://...'}} in its "
            "configuration, or first put your own app into app.extensions['celery']"
        )

    class ContextTask(Task):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery = Celery(app.name, task_cls=ContextTask)
    celery.config_from_object(app.config["CELERY"])
    celery.set_default()
    app.extensions["celery"] = celery
    return celery
