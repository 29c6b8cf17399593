"""How the library's commands are typed in this process, so that messages name commands that can be copied."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["app_option", "command", "typed_as", "worker_command"]

_typed: str | None = None


def command(*words: str) -> str:
    """Return a command of the group `sagas` as it is typed here.

    >>> typed_as("manage.py sagas")
    >>> command("list", "--key", "order 1")
    "manage.py sagas list --key 'order 1'"
    >>> typed_as(None)
    """
    group = f"celery -A {_app() or 'yourapp'} sagas" if _typed is None else _typed
    return " ".join([group, *map(shlex.quote, words)])


def worker_command() -> str:
    """Return how a worker is started, as far as that is known in this process."""
    app = _app()
    return "a Celery worker of this app" if app is None else f"celery -A {app} worker"


def typed_as(group: str | None) -> None:
    """Say how the group `sagas` is typed in this process: `manage.py sagas`, `flask -A shop sagas`.

    None: as a plug-in of Celery's, with the app that this process was given.
    """
    global _typed  # noqa: PLW0603 - a fact about the process
    _typed = group


def app_option(typed: Sequence[str]) -> list[str]:
    """Return the option that named the app, and no other: there may be a password in them."""
    words = iter(typed)
    for word in words:
        if word in ("-A", "--app"):
            return ["-A", shlex.quote(next(words, ""))]
        if word.startswith(("--app=", "-A")):
            return ["-A", shlex.quote(word.removeprefix("--app=").removeprefix("-A"))]
        if word == "sagas":
            break
    return []


def _app() -> str | None:
    """Return the app that this process of Celery's was given, on its command line or by its environment."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    if name != "celery":
        return None
    option = app_option(sys.argv[1:])
    return option[-1] if option else os.environ.get("CELERY_APP")
