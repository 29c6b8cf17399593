"""The system checks for sagas in `manage.py check`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import django
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django's name for it
from django.db import connections
from django.db.migrations.executor import MigrationExecutor

from sagas.contrib.django import conf
from sagas.contrib.django.project import PROJECT, describe
from sagas.errors import ConfigurationError

__all__ = ["check_set_up", "check_sqlite", "check_tables"]


def check_set_up(**_: Any) -> list[CheckMessage]:
    """Check the settings, or else report why the sagas could not be set up."""
    wrong = [Error(problem, id="sagas.E001") for problem in conf.problems()]
    if wrong:
        return wrong
    if PROJECT.failure is None:
        return _check_app()
    hint = None
    if (cause := PROJECT.failure).__traceback__ is not None and not wrong:
        innermost = cause.__traceback__
        while innermost.tb_next is not None:
            innermost = innermost.tb_next
        hint = f"{innermost.tb_frame.f_code.co_filename}, line {innermost.tb_lineno}"
    return [Error(f"sagas are not set up: {describe(cause)}", hint=hint, id="sagas.E002")]


def _check_app() -> list[CheckMessage]:
    """Check that the Celery app can run sagas: it may have been configured after they were set up."""
    try:
        PROJECT.get().check()
    except ConfigurationError as error:
        return [Error(f"the Celery app cannot run sagas: {error}", id="sagas.E003")]
    return []


def check_sqlite(**_: Any) -> list[CheckMessage]:
    """Warn if SQLite would refuse one of two concurrent writers instead of letting it wait."""
    if conf.problems():
        return []
    connection = connections[conf.alias()]
    if connection.vendor != "sqlite":
        return []
    # From the settings: Django reads them when it connects, and nothing has connected yet.
    mode = connection.settings_dict.get("OPTIONS", {}).get("transaction_mode") or "DEFERRED"
    if mode.upper() != "DEFERRED":
        return []
    hint = 'OPTIONS: {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode = WAL"}'
    if django.VERSION < (5, 1):
        hint = f"with Django 5.1 you can make writers wait: {hint}. Until then use PostgreSQL, MySQL or MariaDB"
    return [
        Warning(
            f"DATABASES[{connection.alias!r}] is SQLite with deferred transactions: when two processes write at the "
            'same time, one fails at once ("database is locked")',
            hint=hint,
            id="sagas.W001",
        )
    ]


def check_tables(*, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Warn if migrations of sagas have not been applied."""
    if conf.problems() or (alias := conf.alias()) not in (databases or ()):
        return []
    if "migrate" in sys.argv[1:]:  # it is about to apply them
        return []
    executor = MigrationExecutor(connections[alias])
    targets = [node for node in executor.loader.graph.leaf_nodes() if node[0] == "sagas"]
    lacking = [migration.name for migration, _ in executor.migration_plan(targets)]
    if not lacking:
        return []
    return [
        Warning(
            f"DATABASES[{alias!r}] lacks these migrations of sagas: {', '.join(lacking)}",
            hint="manage.py migrate",
            id="sagas.W002",
        )
    ]
