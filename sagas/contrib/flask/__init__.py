"""Sagas in a Flask app with Flask-SQLAlchemy: `FlaskSagas(db, [place_order]).init_app(app)`. See `docs/flask.md`."""

from sagas.contrib.flask.approvals import approvals_blueprint
from sagas.contrib.flask.current import AppSagas, current_sagas
from sagas.contrib.flask.extension import FlaskSagas
from sagas.contrib.flask.status import status_blueprint
from sagas.contrib.flask.webhooks import webhook_blueprint

__all__ = ["AppSagas", "FlaskSagas", "current_sagas", "approvals_blueprint", "status_blueprint", "webhook_blueprint"]
