"""How the shop runs."""

from config.celery import app, sagas, store

__all__ = ["app", "sagas", "store"]
