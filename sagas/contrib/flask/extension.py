"""The extension: gives a Flask app its Celery app, its sagas, and `flask sagas`."""

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
from sagas.contrib.flask.current import AppSagas, tell_of_uncommitted
from sagas.contrib.flask.store import FlaskStore, adopt_sessions
from sagas.definition import Saga
from sagas.errors import ConfigurationError
from sagas.events import Events
from sagas.schedules import Schedule
from sagas.stores import autogenerate  # noqa: F401 - it keeps our tables out of what Flask-Migrate generates

__all__ = ["FlaskSagas"]

#: Settings, `SAGAS_LEASE` for `lease`: all options of `Sagas` that are plain values.
_OPTIONS = {
    f"SAGAS_{name.upper()}": name
    for name, parameter in inspect.signature(Sagas).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in ("events", "schedules")
}


class FlaskSagas:
    """Adds sagas to Flask apps, in the database of their Flask-SQLAlchemy.

    `db`: the `SQLAlchemy` of the apps. `sagas`: the definitions, every version that may still be in flight.
    `schedules`: start sagas at the times of a cron expression.
    `events`: given the engine, in the app's context, returns the `Events` that steps publish through.
    `app`: left out, call `init_app` for each app.

    `place_order.start(...)` then joins the transaction of `db.session`: the saga is dispatched when you commit that,
    and is gone when you roll it back. Steps run in an app context, and their `db.session` is their `step.session`.

    Settings: `CELERY`, a mapping of Celery's own; and each option of `Sagas`, as in `SAGAS_LEASE = 60`.

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
        """Give an app its sagas, and return them; they are in `app.extensions["sagas"]` too. After `db.init_app(app)`.

        Raises `ConfigurationError` for a setting that cannot be.
        """
        if "sagas" in app.extensions:
            raise ConfigurationError(f"the app {app.name!r} already has its sagas")
        options = _options(app)
        store = FlaskStore(app, self.db)
        if self._events is not None:
            with app.app_context():
                options["events"] = self._events(store.engine)
        celery = celery_of(app)
        sagas = AppSagas(celery, store, self._sagas, schedules=self._schedules, **options)
        sagas.db = self.db
        app.extensions["sagas"] = sagas
        tell_of_uncommitted(app, self.db)
        app.cli.add_command(group_for(app, celery))
        return sagas


def _options(app: Flask) -> dict[str, Any]:
    given = {name: value for name, value in app.config.items() if name.startswith("SAGAS_")}
    if unknown := sorted(given.keys() - _OPTIONS.keys()):
        raise ConfigurationError(f"{unknown[0]} is no setting; there are {', '.join(sorted(_OPTIONS))}")
    return {_OPTIONS[name]: value for name, value in given.items()}
