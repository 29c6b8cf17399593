"""A web shop whose orders are sagas: `python -m examples.flask_shop`. See README.md."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from flask import Flask
from kombu.transport import TRANSPORT_ALIASES

from examples.flask_shop import admin, bank, orders, refunds, views
from examples.flask_shop.models import Bank, Product, db
from sagas import SqlStore
from sagas.contrib.flask import FlaskSagas, approvals_blueprint, status_blueprint, webhook_blueprint
from sagas.webhooks import Webhook

__all__ = ["create_app", "prepare"]

# kombu's own transport lets readers find incomplete messages.
TRANSPORT_ALIASES["filesystem"] = "config.folder_broker:Transport"

flask_sagas = FlaskSagas(db, [orders.place_order, refunds.refund_order])

CATALOGUE = (
    ("tea", "Darjeeling", 12_50, 40),
    ("cup", "Porcelain cup", 18_00, 12),
    ("pot", "Cast-iron pot", 64_00, 3),
    ("tray", "Lacquer tray", 39_90, 0),
)


def create_app(settings: dict[str, Any] | None = None) -> Flask:
    """Create the app. Settings come from the environment variables SHOP_..., or from the arguments."""
    app = Flask(__name__)
    app.config.from_mapping(
        FOLDER="/tmp/flask-shop",
        SQLALCHEMY_DATABASE_URI="",
        BROKER_URL="",
        ADMIN_PASSWORD="admin",
        STEP_SECONDS=1.0,
        SAGAS_LEASE=5,
        SAGAS_REDISPATCH_AFTER=5,
        SAGAS_RECOVERY_INTERVAL=0.5,
        SAGAS_REDACT=["card"],
        SESSION_COOKIE_SAMESITE="Strict",
    )
    app.config.from_prefixed_env("SHOP")
    app.config.update(settings or {})
    folder = Path(app.config["FOLDER"])
    folder.mkdir(parents=True, exist_ok=True)
    app.config["SQLALCHEMY_DATABASE_URI"] = app.config["SQLALCHEMY_DATABASE_URI"] or f"sqlite:///{folder / 'shop.db'}"
    app.config.setdefault("CELERY", _celery(app.config["BROKER_URL"], folder))
    app.secret_key = app.config["SECRET_KEY"] or secrets.token_hex()
    db.init_app(app)
    flask_sagas.init_app(app)
    app.register_blueprint(views.shop)
    app.register_blueprint(admin.admin, url_prefix="/admin")
    status = status_blueprint(views.is_mine, show_error=lambda _record: True)
    app.register_blueprint(status, url_prefix="/sagas")
    app.register_blueprint(approvals_blueprint(admin.approver), url_prefix="/approvals")
    app.register_blueprint(
        webhook_blueprint(Webhook(translate=bank.translate), name="from_bank"), url_prefix="/from-bank"
    )
    app.register_blueprint(bank.bank, url_prefix="/bank")
    app.jinja_env.filters["money"] = lambda cents: f"€ {cents / 100:.2f}"
    return app


def _celery(broker: str, folder: Path) -> dict[str, Any]:
    common = {"worker_prefetch_multiplier": 1, "task_default_queue": "flask_shop"}
    if broker:
        return {**common, "broker_url": broker, "broker_transport_options": {"socket_timeout": 30}}
    messages = folder / "messages"
    messages.mkdir(exist_ok=True)
    options = {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(folder / "control"),
        "polling_interval": 0.1,
    }
    return {**common, "broker_url": "filesystem://", "broker_transport_options": options}


def prepare(app: Flask) -> None:
    """Create the tables, and add products if there are none."""
    store = app.extensions["sagas"].store
    assert isinstance(store, SqlStore)
    store.upgrade()
    with app.app_context():
        db.create_all()
        if db.session.get(Bank, 1) is None:
            db.session.add(Bank(id=1, away=False))
            for sku, name, cents, stock in CATALOGUE:
                db.session.add(Product(sku=sku, name=name, cents=cents, stock=stock))
            db.session.commit()
