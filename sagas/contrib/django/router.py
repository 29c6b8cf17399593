"""The database router for the models of sagas."""

from __future__ import annotations

from typing import Any

from django.db import router

from sagas.contrib.django.conf import alias

__all__ = ["SagasRouter", "install"]

_APP = "sagas"


class SagasRouter:
    """Routes only the models of sagas: they are in `CELERY_SAGAS_DATABASE`, and in no other database.

    Without it, `dumpdata --database other` and the test runner would look for tables that do not exist there, and a
    project's own router would have to handle that.
    """

    def db_for_read(self, model: Any, **_: Any) -> str | None:
        return alias() if model._meta.app_label == _APP else None  # noqa: SLF001 - it is public API

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, **_: Any) -> bool | None:
        return db == alias() if app_label == _APP else None


def install() -> None:
    """Add the router before those in `DATABASE_ROUTERS`."""
    if not any(isinstance(each, SagasRouter) for each in router.routers):
        router.routers.insert(0, SagasRouter())
