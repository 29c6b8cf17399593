"""The extension: adds a Celery app, sagas and `flask sagas` to a Flask app."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine

from sagas.app import Sagas
from sagas.contrib.flask.celery import celery_of
from sagas.contrib.flask.commands import group_for
from sagas.contrib.flask.current import AppSagas, warn_of_uncommitted
from sagas.contrib.flask.store import FlaskStore, adopt_sessions
from sagas.definition import Saga
from sagas.errors import ConfigurationError
from sagas.events import Events
from sagas.schedules import Schedule
from sagas.stores import autogenerate  # noqa: F401 - excludes our tables from what Flask-Migrate generates

__all__ = ["FlaskSagas"]

#: Settings, such as `SAGAS_LEASE` for `lease`: all options of `Sagas` with simple values.
_OPTIONS = {
    f"SAGAS_{name.upper()}": name
    for name, parameter in inspect.signature(Sagas).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in ("events", "schedules")
}


class FlaskSagas:
    """Adds sagas to Flask apps, in their Flask-SQLAlchemy database.

    `db`: the apps' `SQLAlchemy` object. `sagas`: the definitions, including every version that may still be in flight.
    `schedules`: start sagas at the times of a cron expression.
    `events`: called with the engine in the app's context, returns the `Events` that steps publish through.
    `app`: the app; without it, call `init_app` for each app.

    `place_order.start(...)` then joins the transaction of `db.session`: when you commit, the saga is dispatched; when
    you roll back, the saga does not exist. Steps run in an app context, where `db.session` is their `step.session`.

    Settings: `CELERY`, a mapping of Celery's settings; and each option of `Sagas`, such as `SAGAS_LEASE = 60`.

    >>> from flask import Flask
    >>> from flask_sqlalchemy import SQLAlchemy
    >>> from sagas import Saga, Step
    >>> greet = Saga("greet", Step("hello", lambda: "hi", compensation=None))
    >>> db = SQLAlchemy()
    >>> flask_sagas = FlaskSagas(db, [greet])
    >>> app = Flask("shop")
    >>> app.config |= {"SQLALCHEMY_DATABASE_URI": "sqlite:////tmp/shop.db", "CELERY": {"broker_url": "memory://"}}
    >>> db.init_app(app)
    >>> flask_sagas.init_app(app)
    <Sagas of 'shop': greet 1>
    """

    def __init__(
        self,
        db: SQLAlchemy,
        sagas: Iterable[Saga] = (),
        *,
        schedules: Iterable[Schedule] = (),
        events: Callable[[Engine], Events] | None = None,
        app: Flask | None = None,
    ) -> None:
        self.db = db
        self._sagas = tuple(sagas)
        self._schedules = tuple(schedules)
        self._events = events
        adopt_sessions(db)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> AppSagas:
        """Add sagas to an app and return them; `app.extensions["sagas"]` has them too. Call `db.init_app(app)` first.

        Raises `ConfigurationError` for an invalid setting.
        """
        if "sagas" in app.extensions:
            raise ConfigurationError(f"the app {app.name!r} already has sagas. Call init_app once for each app")
        options = _options(app)
        store = FlaskStore(app, self.db)
        if self._events is not None:
            with app.app_context():
                options["events"] = self._events(store.engine)
        celery = celery_of(app)
        sagas = AppSagas(celery, store, self._sagas, schedules=self._schedules, **options)
        sagas.db = self.db
        app.extensions["sagas"] = sagas
        warn_of_uncommitted(app, self.db)
        app.cli.add_command(group_for(app, celery))
        return sagas


def _options(app: Flask) -> dict[str, Any]:
    given = {name: value for name, value in app.config.items() if name.startswith("SAGAS_")}
    if unknown := sorted(given.keys() - _OPTIONS.keys()):
        raise ConfigurationError(f"there is no setting {unknown[0]}. The settings are: {', '.join(sorted(_OPTIONS))}")
    return {_OPTIONS[name]: value for name, value in given.items()}
